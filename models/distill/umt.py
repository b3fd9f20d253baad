"""Method `umt`: train a network of several modalities on labels, its branches held to their uni-modal teachers.

Trained together on labels alone, branches learn less of their own modality than each would by itself: the joint
prediction is soon right, and no branch is asked for more. So each branch's features are pulled to those of a network
that learned from its modality alone.

Source: Du et al., On Uni-Modal Feature Learning in Supervised Multi-Modal Learning, ICML 2023, arXiv 2305.01233
(uni-modal teacher). Here the squared distance is divided by the branch's width, so that λ means the same for branches
of any width, and a modality that a clip lacks has none.
"""

from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from models.distill.method import Labels, Lesson, Losses, Method, ground_truth, widen
from models.network import Output


class UMT(Method):
    """Labels, and the features of uni-modal teachers.

    L = mean_a CE(z^a, y^a) + λ Σ_m mean_i ‖φ_m(x_{i,m}) − φ_m^teacher(x_{i,m})‖² / width_m

    Attributes:
        feature_weight: λ; 0 trains the fused network on labels alone.
        widths: modality → channels of its branch's features, in the order of the features.
    """

    kind: Literal["umt"]
    feature_weight: NonNegativeFloat
    widths: dict[str, int]

    def loss(
        self, student: Output, lesson: Lesson | None, labels: Labels, companion: nn.Module, progress: float
    ) -> Losses:
        """Return the loss of a batch; the lesson's features are those of the frozen teachers, laid out alike.

        Raises:
            ValueError: no features in the lesson, heads or shapes disagree.
        """
        if lesson is None or lesson.features is None:
            raise ValueError("the features of the uni-modal teachers are needed")
        truth = ground_truth(student.logits, labels, None)
        pulled = self.feature_weight * distances(student.features, lesson.features, self.widths).sum()
        return Losses(truth + pulled, {"ground_truth": truth.detach(), "features": pulled.detach()})


def distances(own: Tensor, teachers: Tensor, widths: dict[str, int]) -> Tensor:
    """Return for each modality the mean over the batch of the squared distance of features, divided by their width.

    Args:
        own: (batch, sum of widths + modalities), as `models.fusion.FusedNetwork` lays them out: zeros for a
            modality that a clip lacks, for whichever of the two.
        teachers: the same of the frozen teachers.
        widths: modality → channels, in their order.

    Raises:
        ValueError: shapes disagree.
    """
    expected = (len(own), sum(widths.values()) + len(widths))
    if own.shape != expected or teachers.shape != expected:
        raise ValueError(
            f"features {tuple(own.shape)} and the teachers' {tuple(teachers.shape)}, expected {expected}"
        )
    parts = (widen(own) - widen(teachers)).square().split([*widths.values(), len(widths)], dim=1)
    return torch.stack([part.mean() for part in parts[:-1]])
