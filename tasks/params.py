"""What params.yaml may say. Params decide the numbers; nothing here has a default that could hide one."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from models.backbones import Backbone
from models.distill import MST, Method, Omnivorous
from models.distill.divergences import Curriculum
from models.distill.method import Taught
from models.distill.mst import LAYERS
from tasks.errors import UserError
from tasks.modalities import AnyModality
from tasks.section import Section
from tasks.views import Views
from tasks.yaml_file import read_yaml, suggestion, validated

MODALITY = "rgb"
"""What a student sees."""

ENSEMBLE, WEIGHTED_ENSEMBLE = "ensemble", "ensemble-weighted"
"""What a report calls the teachers' mixes: evenly, and by their loss on validation."""

Share = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$", max_length=40)]


class Data(Section):
    """What the raw folder holds and how it is split."""

    name: str = Field(min_length=1, description="Shown in reports and MLflow.")
    format: str = Field(description="A reader of tasks/datasets: folder, epic_kitchens, …")
    heads: dict[Name, list[str]] = Field(min_length=1, description="Label heads and their classes, in order.")
    validation_share: Share = Field(
        description="Share of the groups that becomes val where no split says so."
    )
    test_share: Share = Field(description="Share of the groups that becomes test where no split says so.")
    split_seed: NonNegativeInt = Field(description="Seed of that draw.")
    slices: list[str] = Field(description="Columns of annotations.csv that get a per-slice table.")

    @model_validator(mode="after")
    def _classes_are_distinct(self) -> "Data":
        for head, classes in self.heads.items():
            if len(set(classes)) != len(classes):
                raise ValueError(f"head {head} names a class twice")
            if len(classes) < 2:
                raise ValueError(f"head {head} has {len(classes)} class; there is nothing to recognise")
        return self


class Training(Section):
    """The budget and recipe of one training, the same loop for teachers, baseline and student."""

    epochs: PositiveInt
    batch: PositiveInt = Field(description="Clips a step.")
    learning_rate: PositiveFloat = Field(description="Peak rate of AdamW.")
    weight_decay: NonNegativeFloat
    warmup_epochs: NonNegativeInt = Field(description="Linear rise of the rate from zero.")
    decay: Literal["linear", "cosine"] = Field(description="Fall of the rate from its peak to zero.")
    clip_norm: PositiveFloat = Field(description="Largest norm of a gradient.")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="Decay of the moving average of the weights, which is what is kept; the first steps count "
        "for more, step s for s^-2/3. 0 keeps the last weights."
    )
    precision: Literal["float32", "bfloat16"] = Field(description="Arithmetic of the forward pass (AMP).")
    devices: PositiveInt = Field(
        description="GPUs, or processes on the CPU, that share every batch; above 1 the stage runs under torchrun. "
        "The batch stays the same, and so does the result but for rounding and which features dropout drops."
    )

    @model_validator(mode="after")
    def _every_device_has_a_clip(self) -> "Training":
        if self.devices > self.batch:
            raise ValueError(
                f"devices ({self.devices}) must not exceed batch ({self.batch}), which they share"
            )
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> "Training":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be less than epochs ({self.epochs})")
        return self


class Teacher(Section):
    """One teacher: a network that sees one modality, trained on labels."""

    modality: Name
    folds: PositiveInt = Field(
        description="Networks trained, each without one fold of the training groups, so that teachings on "
        "training clips are out-of-fold; the teacher is their mean. 1: one network on all training clips, "
        "whose teachings on them are what it memorised (as in the paper)."
    )
    hints: bool = Field(
        description="Teachings keep the features of every moment too, for method hints: 2 bytes × clips × views × "
        "frames × width of the backbone."
    )
    backbone: Backbone
    training: Training


class FusedTeacher(Section):
    """A teacher that sees several modalities: a network of one branch each, made from trained teachers."""

    teachers: list[Name] = Field(
        min_length=2,
        description="Whose networks are the branches; each of another modality, all of as many folds.",
    )
    kind: Literal["ume", "head", "umt", "auto"] = Field(
        description="ume: the mean of the branches' calibrated predictions; head: a joint classifier on their frozen "
        "features; umt: trained together, the features pulled to the teachers'. auto: all three are made, the one "
        "with the lowest validation NLL of the action is taken."
    )
    feature_weight: NonNegativeFloat = Field(description="λ of umt: how hard features are pulled.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="Probability of dropping a feature before the joint classifier."
    )
    training: Training = Field(description="Budget of head and of umt.")


class MaskTraining(Section):
    """The masks that make specialists of teachers, and how they are trained."""

    width: PositiveInt = Field(description="Channels of a mask's tokens.")
    attention_heads: PositiveInt = Field(description="Of a mask; divides the width.")
    training: Training = Field(description="Their budget; `ema` plays no part, the best masks are kept.")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "MaskTraining":
        if self.width % self.attention_heads:
            raise ValueError(f"attention_heads {self.attention_heads} must divide width {self.width}")
        return self


class Specialists(Section):
    """Specialised teachers for method mst: each teacher, twice, seen through a mask."""

    fused: Name = Field(description="The fused teacher.")
    auxiliaries: list[Name] = Field(min_length=1, description="Teachers of one modality each.")
    student: Name = Field(
        description="The teacher of RGB as which the student begins that they are trained together with."
    )
    temperature: PositiveFloat = Field(description="τ, in both trainings.")
    training: Training = Field(description="Budget of the training together.")
    masks: MaskTraining

    @model_validator(mode="after")
    def _one_number_of_devices(self) -> "Specialists":
        if self.masks.training.devices != self.training.devices:
            raise ValueError("training and masks.training need the same devices: one stage runs both")
        return self

    @property
    def names(self) -> list[str]:
        """Every specialist."""
        return [f"{teacher}-{layer}" for teacher in (self.fused, *self.auxiliaries) for layer in LAYERS]


class Search(Section):
    """How `auto` is resolved: by short trainings, judged on validation; then the lesson is held against none."""

    epochs: PositiveInt = Field(description="Epochs of a trial.")
    temperature: list[PositiveFloat] = Field(min_length=1, description="Candidates for τ.")
    distillation_weight: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        min_length=1,
        description="Candidates for λ_KD; λ_GT is 1 − λ_KD. With 0 among them, a head may do without, and the lesson "
        "may be refused.",
    )
    divergence: list[Curriculum] = Field(
        min_length=1, description="Candidates for the divergence, tried at the τ and λ that did best."
    )
    weights_temperature: list[PositiveFloat] = Field(min_length=1, description="Candidates for γ.")


class Ensemble(Section):
    """How the teachers' predictions become one lesson."""

    teachers: list[Name] = Field(min_length=1, description="Who is heard.")
    weights: Literal["uniform", "per_sample", "data_set", "learned"] = Field(
        description="Alike; by the loss on the clip itself; by the loss on all clips; such that their mix is "
        "likeliest on clips that they did not learn from, which may leave a teacher out."
    )
    weights_temperature: PositiveFloat | Literal["auto"] = Field(
        description="γ; large: uniform; small: the best. uniform and learned have none."
    )
    space: Literal["logits", "probs"] = Field(description="Where calibrated predictions are averaged.")
    views: Literal["same", "mean"] = Field(
        description="What is said of a view: what the teachers saw in this very view, or the mean over all "
        "views of the clip, which is steadier."
    )


class Student(Section):
    """One student: a network that sees RGB alone."""

    learns_from: (
        Literal["data/index", "artifacts/teachings", "artifacts/teachers"]
        | Annotated[str, Field(pattern=r"^artifacts/(teachings|specialists)/[a-z][a-z0-9_-]*$")]
    ) = Field(
        description="The path of what it learns from beside RGB, so that DVC can follow it: data/index (labels "
        "alone), artifacts/teachings (all teachers) or artifacts/teachings/<teacher>; for method mst "
        "artifacts/specialists/<entry of specialists>; for method omnivorous artifacts/teachers, which stand for their "
        "modalities and backbones."
    )
    backbone: Backbone
    training: Training
    method: Method
    ensemble: Ensemble | None

    @model_validator(mode="after")
    def _lesson_has_a_mix(self) -> "Student":
        kind, hears = self.method.kind, self.method.hears
        if hears == "senses" and self.learns_from != "artifacts/teachers":
            raise ValueError(f"method {kind} is shown what teachers see: learns_from: artifacts/teachers")
        if hears != "senses" and self.learns_from == "artifacts/teachers":
            raise ValueError(
                f"method {kind} is not shown what teachers see: learns_from cannot be artifacts/teachers"
            )
        of_specialists = self.learns_from.startswith("artifacts/specialists/")
        if hears == "specialists" and (self.ensemble is not None or not of_specialists):
            raise ValueError(
                f"method {kind} learns from specialists: learns_from: artifacts/specialists/<entry of specialists>, "
                "and ensemble: null, as its gate does the mixing"
            )
        if hears != "specialists" and of_specialists:
            raise ValueError(f"method {kind} cannot learn from specialists, as mst does")
        if hears == "labels" and self.hears_teachers:
            raise ValueError(f"method {kind} learns from labels alone: learns_from: data/index")
        if hears != "mix":
            return self
        if not self.hears_teachers:
            raise ValueError(f"method {kind} needs teachings: learns_from: artifacts/teachings")
        if self.ensemble is None:
            raise ValueError("a student that learns from teachings needs an `ensemble` section")
        source = self.learns_from.removeprefix("artifacts/teachings").strip("/")
        if source and self.ensemble.teachers != [source]:
            raise ValueError(f"it learns from {source} alone, so ensemble.teachers must be [{source}]")
        return self

    @property
    def hears_teachers(self) -> bool:
        """Whether it learns from teachings, of teachers or specialists, not from labels alone."""
        return self.learns_from.startswith(("artifacts/teachings", "artifacts/specialists/"))

    def may_be_refused(self, search: Search) -> bool:
        """Whether doing without any lesson is among what `auto` chooses from."""
        if not isinstance(self.method, Taught):
            return False
        weighs = self.method.distillation_weight == "auto" and 0 in search.distillation_weight
        return weighs or self.method.unlabelled_weight == "auto"


class Evaluate(Section):
    """What the report measures."""

    clips: list[PositiveInt] = Field(
        min_length=1, description="Numbers of interleaved clips in the views sweep."
    )
    crops: list[Literal[1, 3]] = Field(min_length=1, description="Numbers of crops in the views sweep.")
    bins: PositiveInt = Field(description="Equal-width bins of the ECE.")
    bootstrap: PositiveInt = Field(description="Resamples behind a 95 % interval.")

    @field_validator("clips", "crops")
    @classmethod
    def _holds_what_is_deployed(cls, counts: list[int]) -> list[int]:
        if 1 not in counts:
            raise ValueError(
                "1 must be among them: one view of a clip is what is deployed, compared and calibrated"
            )
        return counts


class Parity(Section):
    """How well the exported forms of the student must agree with torch."""

    clips: int = Field(ge=2, description="Test clips, evenly chosen, on whose views they are compared.")
    tolerance: PositiveFloat = Field(description="Largest difference of a calibrated probability.")


class Register(Section):
    """What goes to the MLflow registry."""

    student: str = Field(description="A student's name, or auto: the one with the best validation NLL.")
    head: str = Field(description="The head the choice and the summary look at; action: all heads right.")
    parity: Parity


class Gate(Section):
    """When a challenger may replace the champion: all must hold, on the same test clips, in the head of `register`."""

    min_top1_gain: Annotated[float, Field(ge=-1, le=1)] = Field(
        description="The 95 % interval of top-1 minus the champion's, paired by clip, must lie above this; 0: better "
        "beyond doubt, -0.02: two points worse is still good enough."
    )
    max_ece_increase: NonNegativeFloat = Field(description="ECE over the champion's, after temperature.")
    max_nll_increase: NonNegativeFloat = Field(description="NLL over the champion's, likewise, in nats.")
    max_worst_slice_drop: Annotated[float, Field(ge=0, le=1)] = Field(
        description="Loss of top-1 in the slice that loses most."
    )
    min_slice_clips: PositiveInt = Field(description="Slices of fewer test clips are not looked at.")
    max_latency_ratio: PositiveFloat = Field(
        description="Time of one clip through the network over the champion's, measured in turn by one process."
    )
    max_size_mb: PositiveFloat = Field(description="Of the weights, in 10⁶ bytes.")
    promote: Literal["manual", "ask", "auto"] = Field(
        description="manual: `understudy promote` moves the champion; ask: a person is asked in Prefect's UI about "
        "each challenger that passes; auto: a challenger that passes becomes it."
    )


class Params(Section):
    """All of params.yaml."""

    data: Data
    seeds: list[NonNegativeInt] = Field(min_length=1, description="Every training is done once a seed.")
    threads: PositiveInt = Field(
        description="CPU threads of a stage: part of the params because sums in another order round differently."
    )
    views: Views
    modalities: dict[Name, AnyModality] = Field(min_length=1)
    teachers: dict[Name, Teacher]
    fused: dict[Name, FusedTeacher] = Field(description="May be empty.")
    specialists: dict[Name, Specialists] = Field(description="May be empty.")
    students: dict[Name, Student] = Field(min_length=1)
    search: Search
    evaluate: Evaluate
    register_: Register = Field(alias="register")
    gate: Gate

    @model_validator(mode="after")
    def _names_agree(self) -> "Params":
        if "rgb" not in self.modalities:
            raise ValueError("modalities: rgb is missing; it is what a student sees")
        for name, teacher in self.teachers.items():
            _known(f"teachers.{name}.modality", teacher.modality, self.modalities)
        for name, fused in self.fused.items():
            self._check_fused(name, fused)
        for name, specialists in self.specialists.items():
            self._check_specialists(name, specialists)
        for section, entries in (
            ("teachers", self.teachers),
            ("fused", self.fused),
            ("students", self.students),
        ):
            for name in {ENSEMBLE, WEIGHTED_ENSEMBLE} & set(entries):
                raise ValueError(
                    f"{section}.{name}: a mix of the teachers has that name already; take another"
                )
        for name, student in self.students.items():
            if name in (*self.teachers, *self.fused):  # a report could not tell them apart
                raise ValueError(f"students.{name}: a teacher has that name already")
            for teacher_name in student.ensemble.teachers if student.ensemble else []:
                _known(f"students.{name}.ensemble.teachers", teacher_name, [*self.teachers, *self.fused])
            if isinstance(student.method, Omnivorous):
                for teacher_name in student.method.teachers:
                    _known(f"students.{name}.method.teachers", teacher_name, self.teachers)
                shown = [MODALITY, *(self.teachers[teacher].modality for teacher in student.method.teachers)]
                if len(set(shown)) < len(shown):
                    raise ValueError(f"students.{name}.method.teachers: a modality is shown twice")
            if isinstance(student.method, MST):
                source = student.learns_from.rpartition("/")[2]
                _known(f"students.{name}.learns_from", source, self.specialists)
                if student.method.top_k > len(self.specialists[source].names):
                    raise ValueError(f"students.{name}.method.top_k: there are fewer specialists")
            heard = student.ensemble.teachers if student.ensemble else []
            hinting = [
                teacher for teacher in heard if teacher in self.teachers and self.teachers[teacher].hints
            ]
            if student.method.needs_hints and not hinting:
                raise ValueError(
                    f"students.{name}: method {student.method.kind} needs `hints: true` for one of its teachers "
                    f"({', '.join(heard)}; fused ones give none); method kd needs no hints"
                )
            for field in ("head_weights", "distillation_weight", "ground_truth_weight"):
                weights = getattr(student.method, field, None)
                for head in weights if isinstance(weights, dict) else {}:
                    _known(f"students.{name}.method.{field}", head, self.data.heads)
        if self.register_.student != "auto":
            _known("register.student", self.register_.student, self.students)
        _known("register.head", self.register_.head, [*self.data.heads, "action"])
        return self

    def _check_fused(self, name: str, fused: FusedTeacher) -> None:
        for teacher in fused.teachers:
            _known(f"fused.{name}.teachers", teacher, self.teachers)
        if name in self.teachers:
            raise ValueError(f"fused.{name}: a teacher has that name already")
        modalities = [self.teachers[teacher].modality for teacher in fused.teachers]
        if len(set(modalities)) < len(modalities):
            raise ValueError(f"fused.{name}.teachers: two of them see the same modality")
        if len({self.teachers[teacher].folds for teacher in fused.teachers}) > 1:
            raise ValueError(
                f"fused.{name}.teachers: all need the same number of folds, so that no branch saw the clips it teaches"
            )

    def _check_specialists(self, name: str, specialists: Specialists) -> None:
        _known(f"specialists.{name}.fused", specialists.fused, self.fused)
        for teacher in specialists.auxiliaries:
            _known(f"specialists.{name}.auxiliaries", teacher, self.teachers)
        _known(f"specialists.{name}.student", specialists.student, self.teachers)
        of_rgb = [teacher for teacher, entry in self.teachers.items() if entry.modality == MODALITY]
        if specialists.student not in of_rgb:
            raise ValueError(
                f"specialists.{name}.student: {specialists.student} does not see {MODALITY}, as a student does; "
                f"teachers that do: {', '.join(of_rgb) or 'none'}"
            )
        if name in (*self.teachers, *self.fused):
            raise ValueError(f"specialists.{name}: a teacher has that name already")
        for field, teachers in (("auxiliaries", specialists.auxiliaries), ("student", [specialists.student])):
            if any(self.folds(teacher) != self.folds(specialists.fused) for teacher in teachers):
                raise ValueError(
                    f"specialists.{name}.{field}: all need as many folds as the fused teacher, so that no specialist "
                    "saw the clips it teaches"
                )

    def folds(self, teacher: str) -> int:
        """How many folds a teacher has; a fused one as many as its branches, specialists as their teachers."""
        if teacher in self.specialists:
            teacher = self.specialists[teacher].fused
        if teacher in self.fused:
            teacher = self.fused[teacher].teachers[0]
        return self.teachers[teacher].folds

    def heard_by(self, student: str) -> list[str]:
        """The teachers that a student learns from, of specialists those that they were made of."""
        entry = self.students[student]
        if isinstance(entry.method, MST):
            specialists = self.specialists[entry.learns_from.rpartition("/")[2]]
            return [specialists.fused, *specialists.auxiliaries]
        return entry.ensemble.teachers if entry.hears_teachers and entry.ensemble else []

    def seen_by(self, teacher: str) -> list[str]:
        """The modalities that a teacher sees."""
        branches = self.fused[teacher].teachers if teacher in self.fused else [teacher]
        return [self.teachers[branch].modality for branch in branches]

    def devices(self, stage: str, item: str | None) -> int:
        """How many processes a stage runs as: those of its training, 1 where it trains nothing."""
        sections: dict[str, Any] = {
            "train_teacher": self.teachers,
            "fuse": self.fused,
            "specialise": self.specialists,
            "distill": self.students,
        }
        entry = sections.get(stage, {}).get(item)
        return 1 if entry is None else int(entry.training.devices)

    @property
    def class_counts(self) -> dict[str, int]:
        """Head → number of its classes."""
        return {head: len(classes) for head, classes in self.data.heads.items()}


def _known(where: str, name: str, names: Any) -> None:
    if name not in names:
        raise ValueError(f"{where}: there is no {name!r}{suggestion(name, names)}")


def parse(text: str, file: Path) -> Params:
    """Params from the text of `file`.

    Raises:
        UserError: not YAML, an unknown key (with the nearest known one), a missing or impossible value;
            names file and row.
    """
    return validated(Params, read_yaml(text, file), text, file)


def load(file: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        UserError: see `parse`; also when the file is missing.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("not found", file=file, remedy="run this inside a clone of the project") from None
    return parse(text, file)
