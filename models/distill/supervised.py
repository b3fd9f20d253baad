"""Method `supervised`: labels alone, for teachers and for the baseline every student must beat.

Source of label smoothing: Szegedy et al., Rethinking the Inception Architecture, CVPR 2016, arXiv 1512.00567,
section 7. It is what is left of a lesson that knows nothing of the clip, so a student has to beat it too.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat
from torch import nn

from models.distill.method import Labels, Lesson, Losses, Method, ground_truth
from models.network import Output


class Supervised(Method):
    """Learn from the labels by cross-entropy.

    Attributes:
        head_weights: weight of each head's loss; None weighs all heads 1.
        label_smoothing: ε, the share of the target that all classes get alike; 0 is the plain label.
    """

    hears = "labels"

    kind: Literal["supervised"]
    head_weights: dict[str, NonNegativeFloat] | None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]

    def loss(
        self, student: Output, lesson: Lesson | None, labels: Labels, companion: nn.Module, progress: float
    ) -> Losses:
        """Return the mean over heads of weighted cross-entropy; a lesson is not listened to."""
        total = ground_truth(student.logits, labels, self.head_weights, self.label_smoothing)
        return Losses(total, {"ground_truth": total.detach()})
