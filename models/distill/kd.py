"""Method `kd`: distil from the teachers' mixed prediction, beside the labels.

Sources: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531, section 2;
Radevski et al., ICCV 2023, arXiv 2307.07483, section 3.2.
"""

from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from models.distill.method import Labels, Lesson, Losses, Method, ground_truth, refuse_other_heads, widen
from models.network import Logits, Output


class KD(Method):
    """Learn the teachers' distribution, softened by a temperature, and the labels.

    L = λ_KD mean_a τ² KL(softmax(log p̄^a / τ) ‖ softmax(z^a / τ)) + λ_GT mean_a ω_a CE(z^a, y^a)

    Attributes:
        temperature: τ, softens teacher and student alike; "auto" is settled on validation before training.
        distillation_weight: λ_KD; "auto" likewise.
        ground_truth_weight: λ_GT.
        head_weights: ω of each head, on the labels' loss only; None weighs all heads 1.
    """

    kind: Literal["kd"]
    temperature: PositiveFloat | Literal["auto"]
    distillation_weight: NonNegativeFloat | Literal["auto"]
    ground_truth_weight: NonNegativeFloat
    head_weights: dict[str, NonNegativeFloat] | None

    def loss(self, student: Output, lesson: Lesson | None, labels: Labels) -> Losses:
        """Return the loss of a batch; clips without a teacher have only the labels' part in it.

        Raises:
            ValueError: no lesson, heads or shapes disagree, or a value is still "auto".
        """
        if self.temperature == "auto" or self.distillation_weight == "auto":
            raise ValueError("kd needs numbers for temperature and distillation_weight before it can train")
        if lesson is None:
            raise ValueError("kd needs a lesson: name the teachers whose teachings it is to use")
        distilled = distillation(student.logits, lesson, self.temperature)
        truth = ground_truth(student.logits, labels, self.head_weights)
        total = self.distillation_weight * distilled + self.ground_truth_weight * truth
        return Losses(total, {"distillation": distilled.detach(), "ground_truth": truth.detach()})


def distillation(logits: Logits, lesson: Lesson, temperature: float) -> Tensor:
    """Return mean_a τ² KL(softmax(log p̄^a / τ) ‖ softmax(z^a / τ)), averaged over the batch.

    Clips without a teacher count as zero and stay in the average: a clip weighs the same in every batch.

    Args:
        logits: (batch, classes) of each head of the student.
        lesson: of the same clips and heads.
        temperature: τ above 0.

    Raises:
        ValueError: heads or shapes disagree.
    """
    refuse_other_heads(logits, lesson.log_probs, "the lesson")
    losses = [
        _divergence(lesson.log_probs[head], values, lesson.present, temperature, head)
        for head, values in logits.items()
    ]
    return torch.stack(losses).mean()


def _divergence(teacher: Tensor, student: Tensor, present: Tensor, temperature: float, head: str) -> Tensor:
    if student.shape != teacher.shape or present.shape != student.shape[:1]:  # broadcasting would hide it
        raise ValueError(
            f"head {head}: student logits {tuple(student.shape)}, teacher {tuple(teacher.shape)} and "
            f"present {tuple(present.shape)} disagree"
        )
    # Rows without a teacher may hold anything, even NaN, which would survive a multiplication by zero.
    teacher = torch.where(present[:, None], widen(teacher), 0)
    log_p = (teacher / temperature).log_softmax(dim=-1)
    log_q = (widen(student) / temperature).log_softmax(dim=-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    return temperature**2 * torch.where(present, divergence, 0).mean()
