"""Method `kd`: distil from the teachers' mixed prediction, beside the labels.

Sources: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531, section 2;
Radevski et al., ICCV 2023, arXiv 2307.07483, section 3.2.
"""

from typing import Literal

from torch import nn

from models.distill.method import Labels, Lesson, Losses, Taught
from models.network import Output


class KD(Taught):
    """Learn the teachers' distribution, softened by a temperature, and the labels.

    L = mean_a λ_KD^a τ² D(softmax(log p̄^a / τ) ‖ softmax(z^a / τ)) + λ_GT^a ω_a CE(z^a, y^a)

    with D = KL in the papers (`divergence: forward_kl`).
    """

    kind: Literal["kd"]

    def loss(
        self, student: Output, lesson: Lesson | None, labels: Labels, companion: nn.Module, progress: float
    ) -> Losses:
        """Return the loss of a batch.

        Raises:
            ValueError: no lesson, heads or shapes disagree, or a value is still "auto".
        """
        return self.mixed_loss(student, lesson, labels, progress)
