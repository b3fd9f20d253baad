"""One network to be trained: what it sees, which clips it learns from, by which method."""

import copy
import csv
import functools
import hashlib
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import models.distill.divergences
import models.distill.method
import models.ensemble
import models.metrics
import models.weights
import tasks.clips
import tasks.gathering
import tasks.stores.weights
import tasks.training
from models.calibration import ece, fit_temperature
from models.distill.method import Hint, HintShape, Lesson, Losses, Method, NoHints
from models.metrics import score, score_action
from models.network import Network, Output, Word, count_parameters, gmacs
from tasks import ranks
from tasks.atomic import alone, code_digest, digest, file_digest, new_file
from tasks.batches import Batch, batches, present
from tasks.clips import Clip, label_indices
from tasks.errors import UserError
from tasks.inference import code_of_answers, view_logits
from tasks.layout import Workspace
from tasks.networks import Committee, Spec
from tasks.params import Params, Training
from tasks.senses import SharedShards
from tasks.settings import settings
from tasks.shards import Shards
from tasks.stores import tracking
from tasks.stores.copies import copies
from tasks.training import Course, Epoch, arithmetic, fit
from tasks.views import training_view

"""Packages whose other versions may train to other weights."""
CURVE_COLUMNS = ("seed", "member", "epoch", "learning_rate", "train_loss", "val_loss", "val_top1", "seconds")


def _moved(values: np.ndarray, there: torch.device) -> torch.Tensor:
    """The values on a device, which the caller does not wait for: what is asked of it later comes after."""
    return torch.from_numpy(values).to(there, non_blocking=True)


@dataclass(frozen=True)
class Hints:
    """What one teacher made of every moment of every training view.

    Attributes:
        moments: float16 (clips, views, frames, width), each network's brought to mean 0 and deviation 1.
        member: int64 (clips,), the network that spoke.
        present: bool (clips,), whether the teacher saw the clip.
    """

    moments: np.ndarray
    member: np.ndarray
    present: np.ndarray

    def take(self, rows: Sequence[int] | np.ndarray) -> "Hints":
        """Those of some clips."""
        return Hints(self.moments[rows], self.member[rows], self.present[rows])

    def of(self, rows: np.ndarray, numbers: np.ndarray, there: torch.device) -> Hint:
        """Those of views `numbers` of clips `rows`, on a device."""
        moments = self.moments[rows, numbers % self.moments.shape[1]]
        return Hint(
            _moved(moments, there).float(),
            _moved(self.member[rows], there),
            _moved(self.present[rows], there),
        )


@dataclass(frozen=True)
class Words:
    """What one teacher says of every training view.

    Attributes:
        log_probs: head → float32 (clips, views, classes), calibrated.
        present: bool (clips,), whether the teacher saw the clip.
    """

    log_probs: dict[str, np.ndarray]
    present: np.ndarray

    def take(self, rows: Sequence[int] | np.ndarray) -> "Words":
        """Those of some clips."""
        return Words({head: values[rows] for head, values in self.log_probs.items()}, self.present[rows])

    def of(self, rows: np.ndarray, numbers: np.ndarray, there: torch.device) -> Word:
        """Those of views `numbers` of clips `rows`, on a device."""
        return Word(
            {
                head: _moved(values[rows, numbers % values.shape[1]], there)
                for head, values in self.log_probs.items()
            },
            _moved(self.present[rows], there),
        )


@dataclass(frozen=True)
class Lessons:
    """What a student is told beside the labels, for every view of every training clip.

    Attributes:
        log_probs: head → float32 (clips, views, classes), mixed and calibrated.
        present: bool (clips,), whether any teacher saw the clip.
        hints: of each teacher that gives them.
        digest: names the content.
        features: float16 (clips, views, width), what a network of the same features made of the clip; for method umt.
        teachers: what each says by itself, for method mst.
    """

    log_probs: dict[str, np.ndarray]
    present: np.ndarray
    hints: dict[str, Hints]
    digest: str
    features: np.ndarray | None = None
    teachers: dict[str, Words] | None = None

    def take(self, rows: Sequence[int] | np.ndarray) -> "Lessons":
        """Those of some clips, in that order."""
        log_probs = {head: values[rows] for head, values in self.log_probs.items()}
        hints = {name: hint.take(rows) for name, hint in self.hints.items()}
        features = None if self.features is None else self.features[rows]
        teachers = None
        if self.teachers is not None:
            teachers = {name: words.take(rows) for name, words in self.teachers.items()}
        return Lessons(log_probs, self.present[rows], hints, self.digest, features, teachers)

    def hint_shapes(self) -> dict[str, HintShape]:
        """Sizes of each teacher's hints."""
        return {
            name: HintShape(int(hint.member.max()) + 1, hint.moments.shape[-1])
            for name, hint in self.hints.items()
        }

    def of(self, batch: Batch) -> Lesson:
        """The lesson of a batch, on its device."""
        rows, numbers, there = batch.rows.numpy(), batch.numbers.numpy(), batch.device
        return Lesson(
            {
                head: _moved(values[rows, numbers % values.shape[1]], there)
                for head, values in self.log_probs.items()
            },
            _moved(self.present[rows], there),
            {name: hint.of(rows, numbers, there) for name, hint in self.hints.items()},
            None
            if self.features is None
            else _moved(self.features[rows, numbers % self.features.shape[1]], there).float(),
            None
            if self.teachers is None
            else {name: words.of(rows, numbers, there) for name, words in self.teachers.items()},
        )


@dataclass(frozen=True)
class Learner:
    """Everything that the trainings of one stage share.

    Attributes:
        params: all of params.yaml.
        workspace: where to read shards and keep checkpoints.
        stage: train_teacher or distill.
        name: of the teacher or student.
        spec: what is built.
        training: the budget.
        method: the loss.
        shards: the rows of its modality.
        validation: the clips of val that have the modality.
    """

    params: Params
    workspace: Workspace
    stage: str
    name: str
    spec: Spec
    training: Training
    method: Method
    shards: Shards | SharedShards
    validation: list[Clip]

    def seen(self, clips: Sequence[Clip]) -> np.ndarray:
        """Whether each clip has the modality, bool (clips,)."""
        return present(self.spec.modality_params, self.shards, clips)

    def train(
        self,
        clips: list[Clip],
        lessons: Lessons | None,
        seed: int,
        member: int,
        training: Training | None = None,
        begin: Network | None = None,
        views_seed: int | None = None,
    ) -> tuple[Network, list[Epoch]]:
        """Train one network on `clips`, as one MLflow run; the network and its history.

        A training that was finished before (same data, params, seed) is taken from its checkpoint. Two stages may want
        the same at once, as the RGB teacher and the baseline of one network do: the second waits.

        Args:
            clips: that it learns from, all with the modality.
            lessons: of these clips, in their order.
            seed: of everything random.
            member: which network of its committee.
            training: another budget than the learner's own.
            begin: what it starts from, left as it is; None: weights drawn from (seed, member), or pretrained ones.
            views_seed: of the views, where lessons are of other ones than `seed` would draw.
        """
        training = training or self.training
        views_seed = seed if views_seed is None else views_seed
        labels = {
            head: torch.from_numpy(values)
            for head, values in label_indices(clips, self.params.data.heads).items()
        }
        title = f"{self.stage}@{self.name}" + (f" seed {seed}" if len(self.params.seeds) > 1 else "")
        checkpoint = (
            self.workspace.root
            / settings().work
            / "trainings"
            / f"{self._key(clips, lessons, (seed, views_seed), member, training, begin)}.pt"
        )

        def objective(output: Output, batch: Batch, progress: float) -> Losses:
            truth = {
                head: values[batch.rows].to(batch.device, non_blocking=True)
                for head, values in labels.items()
            }
            lesson = lessons.of(batch) if lessons else None
            if lesson is not None and not self.method.needs_hints:
                lesson = lesson._replace(hints=NoHints())
            return self.method.loss(output, lesson, truth, companion, progress)

        torch.manual_seed(int(np.random.SeedSequence([seed, member, 1]).generate_state(1)[0]))
        network = self.spec.new_network() if begin is None else copy.deepcopy(begin)
        companion = self._companion(network, lessons)
        tags = {"item": self.name, "seed": str(seed), "member": str(member), "method": self.method.kind}
        described = {
            "training": training.model_dump(),
            "method": self.method.model_dump(),
            "backbone": self.spec.backbone.model_dump(),
            "modality": self.spec.modality,
            "views": self.spec.views.model_dump(),
            "clips": len(clips),
        }
        data = digest(self.shards.digest, [clip.clip_id for clip in clips])
        run_name = f"{self.stage}@{self.name} seed {seed}" + (f" member {member}" if member else "")
        title = title if self.stage == "distill" else f"{title} network {member + 1}"
        with ExitStack() as opened:
            lock = checkpoint.with_suffix(".lock")
            opened.enter_context(
                alone(lock, f"{title}: another stage trains the same network, waiting for it")
            )
            shared = opened.enter_context(copies(checkpoint))
            ranks.wait_for_all()  # what others wrote there, or the first rank fetched, all take up
            run = opened.enter_context(
                tracking.run(
                    self.workspace,
                    run_name,
                    self.stage,
                    described,
                    tags | {"resumed": str(checkpoint.exists())},
                    data,
                    self.params.data.name,
                    checkpoint.stem,
                )
            )
            network, history = fit(
                network,
                Course(
                    title=title,
                    training=training,
                    seed=seed,
                    clips=len(clips),
                    shown=sum(clip.labelled for clip in clips),
                    batches=functools.partial(self._batches, clips, views_seed),
                    objective=objective,
                    moments=self.method.needs_hints,
                    companion=companion,
                    validate=self.validate,
                    checkpoint=checkpoint,
                    saved=shared.offer if shared else lambda _: None,
                    log=lambda figures: run.log(
                        {k: v for k, v in figures.items() if k != "epoch"}, int(figures["epoch"])
                    ),
                ),
            )
            return network, history

    def _companion(self, network: Network, lessons: Lessons | None) -> nn.Module:
        try:
            return self.method.companion(
                network.backbone.width,  # type: ignore[arg-type]
                lessons.hint_shapes() if lessons else {},
            )
        except ValueError as error:
            raise UserError(f"{self.name}: {error}", file=self.workspace.params) from None

    def _key(
        self,
        clips: list[Clip],
        lessons: Lessons | None,
        seeds: tuple[int, int],
        member: int,
        training: Training,
        begin: Network | None,
    ) -> str:
        """Names everything that a training depends on."""
        return digest(
            code_of_answers(self.spec),
            code_digest(
                models.distill.divergences,
                models.distill.method,
                models.ensemble,
                models.metrics,
                models.weights,
                sys.modules[type(self.method).__module__],
                sys.modules[type(self).__module__],
                sys.modules[__name__],
                tasks.clips,
                tasks.gathering,
                tasks.stores.weights,
                tasks.training,
            ),
            self.spec.model_dump(),
            training.model_dump(
                exclude={"devices"}
            ),  # another number of devices takes up where one was killed
            self.method.model_dump(),
            self.params.threads,
            self.shards.digest,
            [_key_of(clip) for clip in clips],
            [_key_of(clip) for clip in self.validation],
            [file_digest(Path(file)) for file in self.spec.pretrained if Path(file).exists()],
            _begun_from(begin) if begin is not None else None,
            lessons.digest if lessons else None,
            seeds,
            member,
        )

    def _batches(
        self, clips: list[Clip], seed: int, places: Sequence[Sequence[tuple[int, int]]]
    ) -> Iterable[Batch]:
        views = self.spec.views
        return batches(
            self.spec.modality_params,
            self.shards,
            clips,
            views.size,
            places,
            lambda clip, number: training_view(clip, views, seed, number),
            seed,
        )

    def validate(self, network: Network) -> dict[str, float]:
        """Loss (mean over heads of the NLL) and action top-1 of one network on the validation clips.

        For the curves alone, so in the precision of the training, which takes half the time.
        """
        if not self.validation:
            return {}
        committee = Committee(self.spec, [network], {})
        with arithmetic(self.training, tasks.inference.device()):
            logits, labels = self.predictions(committee)
        losses = [score(values, labels[head]).nll.mean() for head, values in logits.items()]
        return {
            "val_loss": float(torch.stack(losses).mean()),
            "val_top1": float(score_action(logits, labels).top1.double().mean()),
        }

    def predictions(self, committee: Committee) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The committee's raw logits on the validation clips, one view each, and their labels."""
        views, _ = view_logits(committee, self.shards, self.validation, 1, 1)
        labels = label_indices(self.validation, self.params.data.heads)
        return (
            {head: torch.from_numpy(values[:, 0]) for head, values in views.items()},
            {head: torch.from_numpy(values) for head, values in labels.items()},
        )

    def check(self) -> None:
        """Find what would fail only after hours of training.

        Raises:
            UserError: nothing to calibrate on, or a backbone that cannot take what the modality renders.
        """
        if not self.validation:
            raise UserError(
                f"no validation clip has the modality {self.spec.modality}, so {self.name} cannot be calibrated",
                remedy=f"remove {self.name} from params.yaml or choose another split",
            )
        network = self.spec.empty_network().eval()
        try:
            with torch.inference_mode():
                network(self.spec.example())
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"{self.name}: backbone {self.spec.backbone.kind} cannot take {self.spec.modality}: {error}",
                file=self.workspace.params,
            ) from None

    def finish(self, members: list[Network]) -> tuple[Committee, dict[str, dict[str, float]]]:
        """The committee of these members with its temperature fitted on validation, and its figures there."""
        committee = Committee(self.spec, members, dict.fromkeys(self.spec.heads, 1.0))
        logits, labels = self.predictions(committee)
        committee.temperature = {
            head: fit_temperature(values, labels[head]) for head, values in logits.items()
        }
        return committee, figures(committee.calibrated(logits), labels, self.params.evaluate.bins)

    def cost(self) -> dict[str, float]:
        """Parameters and 10⁹ multiply-adds of one view through one network."""
        network = self.spec.empty_network().eval()
        return {"params_count": count_parameters(network), "gmacs": gmacs(network, self.spec.example())}


def _key_of(clip: Clip) -> tuple[Any, ...]:
    """What a training knows of a clip."""
    return clip.clip_id, clip.video, clip.start_s, clip.stop_s, dict(clip.labels)


def _begun_from(network: nn.Module) -> str:
    """Names a network that a training begins from: its layers and their numbers, their code, its weights.

    Weights alone do not tell how many heads an attention has, or how much a layer drops.
    """
    learns = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    content = hashlib.sha256()
    for name, layer in network.named_modules():
        numbers = {
            key: value for key, value in vars(layer).items() if key not in _TORCHS_OWN and _is_plain(value)
        }
        content.update(f"{name} {type(layer).__qualname__} {sorted(numbers.items())}".encode())
    for name, value in network.state_dict().items():
        content.update(f"{name} {name in learns} {tuple(value.shape)}".encode())
        content.update(value.detach().cpu().contiguous().numpy().tobytes())
    code = {type(layer).__module__ for layer in network.modules()}
    ours = sorted(name for name in code if name.partition(".")[0] in ("models", "tasks"))
    return digest(content.hexdigest(), code_digest(*(sys.modules[name] for name in ours)))


_TORCHS_OWN = frozenset(vars(nn.Module()))
"""Attributes of every layer, such as whether it is in training."""


def _is_plain(value: object) -> bool:
    """Whether the value is the same text in every process."""
    if isinstance(value, tuple):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, int | float | str)


def figures(
    logits: dict[str, torch.Tensor], labels: dict[str, torch.Tensor], bins: int
) -> dict[str, dict[str, float]]:
    """top1, nll and ece of calibrated logits for every head, and top1 and nll of the action (all heads right)."""
    found = {
        head: {
            "top1": float(score(values, labels[head]).top1.double().mean()),
            "nll": float(score(values, labels[head]).nll.mean()),
            "ece": ece(values.softmax(-1), labels[head], bins),
        }
        for head, values in logits.items()
    }
    action = score_action(logits, labels)
    return {"action": {"top1": float(action.top1.double().mean()), "nll": float(action.nll.mean())}} | found


def write_curves(file: Path, histories: dict[tuple[int, int], list[Epoch]]) -> None:
    """Write curves.csv from the histories of (seed, member)."""
    with new_file(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, CURVE_COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for (seed, member), history in histories.items():
            rows: list[dict[str, Any]] = [{"seed": seed, "member": member, **epoch} for epoch in history]
            writer.writerows(rows)
