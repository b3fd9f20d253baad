"""Method `dkd`: distil apart how sure the teachers are of the label's class, and what they make of the others.

Source: Zhao et al., Decoupled Knowledge Distillation, CVPR 2022, arXiv 2203.08679, equations 6 and 7. KL(q‖p) is
TCKD + (1 − q_y) NCKD, so a teacher that is sure of the label hardly tells what else the clip looks like. DKD puts a
weight of its own in place of 1 − q_y.
"""

from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional

from models.distill.method import Labels, Lesson, Losses, Taught
from models.network import Output


class DKD(Taught):
    """Learn the probability of the label's class, the distribution among the other classes, and the labels.

    L = mean_a λ_KD^a τ² (TCKD^a + β NCKD^a) + λ_GT^a ω_a CE(z^a, y^a)

    TCKD is the divergence of (q_y, 1 − q_y) from (p_y, 1 − p_y), NCKD that of the classes other than y, each side
    brought to sum 1; KL in the paper (`divergence: forward_kl`). The paper's α is λ_KD here, its β is λ_KD β.

    Attributes:
        non_target_weight: β; 8 on CIFAR-100 and 0.5 on ImageNet in the paper.
    """

    kind: Literal["dkd"]
    non_target_weight: NonNegativeFloat

    def loss(
        self, student: Output, lesson: Lesson | None, labels: Labels, companion: nn.Module, progress: float
    ) -> Losses:
        """Return the loss of a batch.

        Raises:
            ValueError: no lesson, heads or shapes disagree, or a value is still "auto".
        """
        return self.mixed_loss(student, lesson, labels, progress)

    def compare(self, teacher: Tensor, student: Tensor, labels: Tensor, progress: float) -> Tensor:
        """Return TCKD + β NCKD of each clip, (batch,); where nobody labelled it, of the teachers' likeliest class."""
        labels = torch.where(labels < 0, teacher.argmax(dim=1), labels)
        (target_q, others_q), (target_p, others_p) = _apart(teacher, labels), _apart(student, labels)
        tckd = super().compare(target_q, target_p, labels, progress)
        return tckd + self.non_target_weight * super().compare(others_q, others_p, labels, progress)


def _apart(log_probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithms of (y, not y), (batch, 2), and of the other classes among themselves, (batch, classes − 1)."""
    clips, classes = log_probs.shape
    is_label = functional.one_hot(labels, classes).bool()
    label, others = log_probs[is_label].view(clips, 1), log_probs[~is_label].view(clips, classes - 1)
    other = others.logsumexp(dim=1, keepdim=True)
    return torch.cat([label, other], dim=1), others - other
