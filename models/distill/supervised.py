"""Method `supervised`: labels alone, for teachers and for the baseline every student must beat."""

from typing import Literal

from pydantic import NonNegativeFloat
from torch import nn

from models.distill.method import Labels, Lesson, Losses, Method, ground_truth
from models.network import Output


class Supervised(Method):
    """Learn from the labels by cross-entropy.

    Attributes:
        head_weights: weight of each head's loss; None weighs all heads 1.
    """

    kind: Literal["supervised"]
    head_weights: dict[str, NonNegativeFloat] | None

    def loss(self, student: Output, lesson: Lesson | None, labels: Labels, companion: nn.Module) -> Losses:
        """Return the mean over heads of weighted cross-entropy; a lesson is not listened to."""
        total = ground_truth(student.logits, labels, self.head_weights)
        return Losses(total, {"ground_truth": total.detach()})
