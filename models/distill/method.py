"""What a training method is: how a network's output, the teachers' lesson and the labels become a loss.

It knows nothing of networks, optimisers or where teachings come from.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, NamedTuple, NoReturn

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional

from models.distill.divergences import Curriculum, divergence, due
from models.network import Logits, Output, Word

Labels = dict[str, Tensor]
"""Class of each label head, (batch,), int64; negative where nobody labelled the clip."""


class Hint(NamedTuple):
    """What one teacher made of every moment of a batch's views, before it put them together to a clip.

    Attributes:
        moments: (batch, frames, width), features brought to mean 0 and deviation 1.
        member: (batch,), int64: which of the teacher's networks spoke; each has a language of its own.
        present: (batch,), bool: the teacher saw this clip.
    """

    moments: Tensor
    member: Tensor
    present: Tensor


class Lesson(NamedTuple):
    """What the teachers say of a batch's clips in this view.

    Attributes:
        log_probs: (batch, classes) for each head, mixed and calibrated, at temperature 1.
        present: (batch,), bool: at least one teacher saw this clip. Other rows of `log_probs` mean nothing.
        hints: of each teacher that gives them.
        features: (batch, width), what a frozen network of the same features makes of the clips; for method umt.
        teachers: what each teacher says by itself, log-probabilities, calibrated; for methods that want them apart.
    """

    log_probs: Logits
    present: Tensor
    hints: dict[str, Hint]
    features: Tensor | None = None
    teachers: dict[str, Word] | None = None


class NoHints(dict[str, Hint]):
    """Stands for the hints of a lesson for a method that did not ask for any: looked at, they refuse.

    Empty, they would be no term of the loss, and nobody would notice that the method's idea is missing.
    """

    def _refuse(self, *_: object) -> NoReturn:
        raise ValueError(
            "this method reads lesson.hints but did not ask for them: "
            "put `needs_hints: ClassVar[bool] = True` into its class"
        )

    __getitem__ = __iter__ = __len__ = __contains__ = items = keys = values = get = _refuse


class HintShape(NamedTuple):
    """Sizes of one teacher's hints: its networks, and the width of their features."""

    members: int
    width: int


class Losses(NamedTuple):
    """A loss and what it is made of.

    Attributes:
        total: scalar to minimise.
        parts: scalars without gradient, for curves; their sum is the total.
        figures: further scalars for curves, of no loss.
    """

    total: Tensor
    parts: dict[str, Tensor]
    figures: dict[str, Tensor] | None = None


Weight = NonNegativeFloat | dict[str, NonNegativeFloat]
"""Weight of a loss, the same for all heads or one for each."""


class Method(BaseModel):
    """A way of training, with its numbers.

    Attributes:
        kind: its name, that of its file.
        hears: what it learns from beside the labels: nothing, the mix of the teachers' predictions, each of several
            specialists, or other modalities (`senses`) themselves.
        needs_hints: whether it learns from the features of moments, so that a teacher must give them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    hears: ClassVar[Literal["labels", "mix", "specialists", "senses"]] = "mix"
    needs_hints: ClassVar[bool] = False

    def companion(self, width: int, hints: Mapping[str, HintShape]) -> nn.Module:
        """Return layers that are trained beside the student and thrown away after; most methods have none.

        Args:
            width: of the student's features.
            hints: of each teacher that gives them.
        """
        return nn.Module()

    @abstractmethod
    def loss(
        self, student: Output, lesson: Lesson | None, labels: Labels, companion: nn.Module, progress: float
    ) -> Losses:
        """Return the loss of a batch, in float32 or wider whatever precision the network runs in.

        Args:
            student: output of the network in training.
            lesson: the teachers' word on the same views, for methods that listen to teachers.
            labels: the truth.
            companion: what `companion` gave for this training.
            progress: share of the training's steps that are done, 0 up to but not 1.

        Raises:
            ValueError: heads or shapes disagree, or the lesson is missing.
        """


Comparison = Callable[[Tensor, Tensor, str], Tensor]
"""From teacher and student log-probabilities (batch, classes) and their head to a loss of each clip, (batch,)."""


class Taught(Method):
    """What all methods share that learn from the teachers' mixed prediction and from labels.

    Each head has its own weights, because teachers may know one label better than the student ever could from
    RGB, and another worse.

    Attributes:
        temperature: τ, softens teacher and student alike; "auto" is settled on validation before training.
        divergence: D, how far the student is from the teachers; "auto" is settled on validation after τ and λ.
        distillation_weight: λ_KD of all heads or of each; "auto" is settled like τ, for each.
        ground_truth_weight: λ_GT of all heads or of each.
        unlabelled_weight: λ_U, of the teachers' word on clips that nobody labelled; 0 leaves those clips out, "auto"
            is settled like τ.
        head_weights: ω of each head, on the labels' loss only; None weighs all heads 1.
    """

    temperature: PositiveFloat | Literal["auto"]
    divergence: Curriculum | Literal["auto"]
    distillation_weight: Weight | Literal["auto"]
    ground_truth_weight: Weight
    unlabelled_weight: NonNegativeFloat | Literal["auto"]
    head_weights: dict[str, NonNegativeFloat] | None

    def mixed_loss(self, student: Output, lesson: Lesson | None, labels: Labels, progress: float) -> Losses:
        """Return mean_a λ^a τ² D(p̄^a‖p_S^a) + λ_GT^a ω_a CE^a.

        λ is λ_KD where the clip is labelled, and λ_U where it is not, which has no CE. A labelled clip without a
        teacher has the CE alone, by (λ_KD + λ_GT) ω: with λ_KD = 1 and λ_GT = 0 it would teach nothing.

        Raises:
            ValueError: no lesson, heads or shapes disagree, or a value is still "auto".
        """
        if (
            self.temperature == "auto"
            or self.divergence == "auto"
            or self.distillation_weight == "auto"
            or self.unlabelled_weight == "auto"
        ):
            raise ValueError("what is auto must be settled before a training")
        if lesson is None:
            raise ValueError("a lesson is needed: name the teachers whose teachings are to be used")
        heads = student.logits
        refuse_other_heads(heads, labels, "labels")
        taught = _of_each_head(self.distillation_weight, heads, "distillation_weight")
        told = _of_each_head(self.ground_truth_weight, heads, "ground_truth_weight")
        of_heads = dict.fromkeys(heads, 1.0) if self.head_weights is None else self.head_weights
        refuse_other_heads(heads, of_heads, "head_weights")
        alone = ~lesson.present
        truth = ground_truth(
            heads, labels, {head: (told[head] + taught[head] * alone) * of_heads[head] for head in heads}
        )

        def compare(teacher: Tensor, student: Tensor, head: str) -> Tensor:
            return self.compare(teacher, student, labels[head], progress)

        share = {
            head: torch.where(labels[head] < 0, self.unlabelled_weight, weight)
            for head, weight in taught.items()
        }
        distilled = distillation(heads, lesson, self.temperature, share, compare)
        parts = {"distillation": distilled.detach(), "ground_truth": truth.detach()}
        return Losses(distilled + truth, parts)

    def compare(self, teacher: Tensor, student: Tensor, labels: Tensor, progress: float) -> Tensor:
        """Return how far the student is from the teachers in one head, (batch,), both softened by τ.

        Args:
            teacher: log-probabilities (batch, classes); rows without a teacher are uniform.
            student: likewise.
            labels: (batch,), for methods that tell the label's class from the others.
            progress: share of the training's steps that are done.
        """
        assert self.divergence != "auto"
        return divergence(due(self.divergence, progress), teacher, student)


def _of_each_head(weight: Weight, heads: Logits, what: str) -> dict[str, float]:
    if not isinstance(weight, dict):
        return dict.fromkeys(heads, weight)
    refuse_other_heads(heads, weight, what)
    return weight


def ground_truth(
    logits: Logits, labels: Labels, head_weights: Mapping[str, float | Tensor] | None, smoothing: float = 0.0
) -> Tensor:
    """Return the mean over heads of weighted cross-entropy, mean_a ω_a CE(z^a, y^a).

    Clips without a label count as zero and stay in the average: a clip weighs the same in every batch.

    Args:
        logits: (batch, classes) of each head.
        labels: (batch,) of the same heads.
        head_weights: ω of each head, or of each head for every clip, (batch,); None weighs all 1.
        smoothing: share of the target that is spread evenly over all classes, 0 up to but not 1.

    Raises:
        ValueError: the heads differ.
    """
    refuse_other_heads(logits, labels, "labels")
    if head_weights is not None:
        refuse_other_heads(logits, head_weights, "head_weights")
    losses = [
        (
            (head_weights[head] if head_weights else 1.0)
            * _cross_entropy(widen(values), labels[head], smoothing)
        ).mean()
        for head, values in logits.items()
    ]
    return torch.stack(losses).mean()


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """CE of every clip, (batch,); 0 where the label is negative."""
    losses = functional.cross_entropy(
        logits, labels.clamp(min=0), label_smoothing=smoothing, reduction="none"
    )
    return torch.where(labels >= 0, losses, 0)


def forward_kl(teacher: Tensor, student: Tensor, head: str) -> Tensor:
    """Return KL(teacher‖student) of each clip, (batch,): the classic comparison."""
    return divergence("forward_kl", teacher, student)


def distillation(
    logits: Logits,
    lesson: Lesson,
    temperature: float,
    weights: Mapping[str, Tensor] | None = None,
    compare: Comparison = forward_kl,
) -> Tensor:
    """Return mean_a λ_a τ² D(softmax(log p̄^a / τ) ‖ softmax(z^a / τ)), averaged over the batch.

    Clips without a teacher count as zero and stay in the average: a clip weighs the same in every batch. No
    gradient reaches the lesson.

    Args:
        logits: (batch, classes) of each head of the student.
        lesson: of the same clips and heads.
        temperature: τ above 0.
        weights: λ of each head for every clip, (batch,); None weighs all 1.
        compare: D.

    Raises:
        ValueError: heads or shapes disagree.
    """
    refuse_other_heads(logits, lesson.log_probs, "the lesson")
    distances = {
        head: _distance(lesson.log_probs[head], values, lesson.present, temperature, head, compare)
        for head, values in logits.items()
    }
    losses = [(each if weights is None else each * weights[head]).mean() for head, each in distances.items()]
    return torch.stack(losses).mean()


def _distance(
    teacher: Tensor, student: Tensor, present: Tensor, temperature: float, head: str, compare: Comparison
) -> Tensor:
    if student.shape != teacher.shape or present.shape != student.shape[:1]:  # broadcasting would hide it
        raise ValueError(
            f"head {head}: student logits {tuple(student.shape)}, teacher {tuple(teacher.shape)} and "
            f"present {tuple(present.shape)} disagree"
        )
    # Rows without a teacher may hold anything, even NaN, which would survive a multiplication by zero.
    teacher = torch.where(present[:, None], widen(teacher.detach()), 0)
    log_q = (teacher / temperature).log_softmax(dim=-1)
    log_p = (widen(student) / temperature).log_softmax(dim=-1)
    found = compare(log_q, log_p, head)
    if found.shape != present.shape:  # broadcasting would hide this, too
        raise ValueError(
            f"head {head}: compare gave {tuple(found.shape)}; one value a clip is meant, {tuple(present.shape)}"
        )
    return temperature**2 * torch.where(present, found, 0)


def refuse_no_hints(hints: Mapping[str, object]) -> None:
    """Raise ValueError unless a teacher gives hints."""
    if not hints:
        raise ValueError("no teacher gives hints: set `hints: true` for one of ensemble.teachers")


def refuse_other_heads(logits: Logits, other: Mapping[str, object], what: str) -> None:
    """Raise ValueError unless `other` (named `what` in the message) has exactly the network's heads."""
    if logits.keys() != other.keys():
        raise ValueError(f"the network has heads {sorted(logits)}, but {what} {sorted(other)}")


def widen(values: Tensor) -> Tensor:
    """Return the values in float32 or wider: half precision cannot hold a small KL."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
