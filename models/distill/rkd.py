"""Method `rkd`: learn how clips lie to each other in the teachers' features, beside their mixed prediction and labels.

Distances and angles need no translation between two networks' features, unlike the features themselves.

Source: Park et al., Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068, section 3.2. Here the teachers
are cross-fitted: a clip's features are of the one network that never saw it, and each network has a language of its
own. So clips are related only to clips of which the same network spoke.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional

from models.distill.method import Hint, HintShape, Labels, Lesson, Losses, Taught, refuse_no_hints, widen
from models.network import Output


class RKD(Taught):
    """Learn the teachers' distances and angles between clips, beside their mixed prediction and the labels.

    L = λ_KD KD + λ_GT CE + λ_D mean_m L_D^m + λ_A mean_m L_A^m

    L_D = mean_i mean_j h(‖t_i − t_j‖ / μ_t, ‖s_i − s_j‖ / μ_s), with μ the mean distance among the clips that are
    related and h Huber's loss (δ = 1); L_A = mean_j mean_{i,k} h(cos ∠ t_i t_j t_k, cos ∠ s_i s_j s_k). t and s are
    the mean over a clip's moments, i, j, k distinct clips of one network of teacher m. A clip alone with its network in
    the batch counts as zero, so that a clip weighs the same in every batch. λ_KD = 0 is the paper's own loss.

    Attributes:
        distance_weight: λ_D; 25 in the paper's classification.
        angle_weight: λ_A; 50 there.
    """

    needs_hints: ClassVar[bool] = True

    kind: Literal["rkd"]
    distance_weight: NonNegativeFloat
    angle_weight: NonNegativeFloat

    def companion(self, width: int, hints: Mapping[str, HintShape]) -> nn.Module:
        """Return no layers: relations need no translation.

        Raises:
            ValueError: no teacher gives hints.
        """
        refuse_no_hints(hints)
        return nn.Module()

    def loss(
        self, student: Output, lesson: Lesson | None, labels: Labels, companion: nn.Module, progress: float
    ) -> Losses:
        """Return the loss of a batch; clips that a teacher did not see have no relations by it.

        Raises:
            ValueError: no lesson, heads or shapes disagree, or a value is still "auto".
        """
        mixed = self.mixed_loss(student, lesson, labels, progress)
        assert lesson is not None
        related = [_relations(widen(student.moments).mean(dim=1), hint) for hint in lesson.hints.values()]
        distance, angle = torch.stack(related).mean(dim=0).unbind()
        parts = {"distances": self.distance_weight * distance, "angles": self.angle_weight * angle}
        total = mixed.total + torch.stack(list(parts.values())).sum()
        return Losses(total, mixed.parts | {name: part.detach() for name, part in parts.items()})


def _relations(student: Tensor, hint: Hint) -> Tensor:
    """L_D and L_A of one teacher, (2,), for the student's clip embeddings (batch, width)."""
    if len(student) != len(hint.moments):
        raise ValueError(f"hints are of {len(hint.moments)} clips, the student saw {len(student)}")
    teacher = widen(hint.moments.detach()).mean(dim=1)
    distance = angle = student.new_zeros(())
    for member in hint.member[hint.present].unique():
        rows = (hint.member == member) & hint.present
        count = int(rows.sum())
        ours, theirs = student[rows], teacher[rows]
        if count > 1:
            distance = distance + count * functional.smooth_l1_loss(_distances(ours), _distances(theirs))
        if count > 2:
            angle = angle + count * functional.smooth_l1_loss(_angles(ours), _angles(theirs))
    return torch.stack([distance, angle]) / len(student)


def _distances(clips: Tensor) -> Tensor:
    """The distances of all pairs of clips (clips, width), (pairs,), their mean brought to 1."""
    found = functional.pdist(clips)
    return found / found.mean().clamp(min=torch.finfo(found.dtype).tiny)


def _angles(clips: Tensor) -> Tensor:
    """The cosine of the angle at the second of any three distinct clips (clips, width), (triples,).

    Clips alike, as two black ones, make no angle: the cosine is 0, without a gradient, which would be next to infinite.
    """
    between = clips[None] - clips[:, None]  # [j, i]: from j to i
    alike = ~between.any(dim=-1, keepdim=True)
    away = functional.normalize(torch.where(alike, 1, between), dim=-1) * ~alike
    cosines = away @ away.transpose(1, 2)  # [j, i, k]
    apart = ~torch.eye(len(clips), dtype=torch.bool, device=clips.device)
    return cosines[apart[:, :, None] & apart[:, None, :] & apart[None]]
