"""Method `hints`: learn what the teachers make of every moment, not only what they conclude of the clip.

A prediction over classes says little about a clip whose label is known. How a flow network sees a moment says how
things move in it, which a network of few RGB clips can hardly find by itself.

Sources: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, arXiv 1412.6550, equation 3; Crasto et al.,
MARS: Motion-Augmented RGB Stream for Action Recognition, CVPR 2019, section 3.1 (hints across modalities). Here the
hints are of moments in place of clips. Those of a cross-fitted teacher are out-of-fold: they come from its one network
that never saw the clip, each network with a translation of its own. A teacher of one network (`folds: 1`) hints at
clips that it learned from. With the RGB teacher alone and λ_KD = 0 it is FitNets, but for its order: hints and labels
are learnt together, from the last features in place of the middle ones.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from models.distill.method import Hint, HintShape, Labels, Lesson, Losses, Taught, refuse_no_hints, widen
from models.network import Output


class Hints(Taught):
    """Learn the teachers' features of every moment, beside their mixed prediction and the labels.

    L = λ_KD KD + λ_GT CE + λ_H mean_m mean_{i,t} ‖W_{m,k(i)} f_{S,i,t} + b_{m,k(i)} − f_{m,i,t}‖² / width_m

    with f the features of moment t of clip i and k(i) the network of teacher m that did not learn from the clip, or its
    only one.

    Attributes:
        hint_weight: λ_H.
    """

    needs_hints: ClassVar[bool] = True

    kind: Literal["hints"]
    hint_weight: PositiveFloat

    def companion(self, width: int, hints: Mapping[str, HintShape]) -> nn.Module:
        """Return a linear translation from the student's features to those of each network of each teacher.

        Raises:
            ValueError: no teacher gives hints.
        """
        refuse_no_hints(hints)
        return nn.ModuleDict(
            {
                _key(name): nn.ModuleList(nn.Linear(width, shape.width) for _ in range(shape.members))
                for name, shape in hints.items()
            }
        )

    def loss(
        self, student: Output, lesson: Lesson | None, labels: Labels, companion: nn.Module, progress: float
    ) -> Losses:
        """Return the loss of a batch; clips that a teacher did not see have no hints of it.

        Raises:
            ValueError: no lesson, heads or shapes disagree, or a value is still "auto".
        """
        mixed = self.mixed_loss(student, lesson, labels, progress)
        assert lesson is not None
        distances = [
            _distance(student.moments, hint, companion.get_submodule(_key(name)))
            for name, hint in lesson.hints.items()
        ]
        hinted = self.hint_weight * torch.stack(distances).mean()
        return Losses(mixed.total + hinted, mixed.parts | {"hints": hinted.detach()})


def _distance(moments: Tensor, hint: Hint, translations: nn.Module) -> Tensor:
    """Mean squared distance of the translated moments to the hint's, over all clips of the batch."""
    if moments.shape[:2] != hint.moments.shape[:2]:
        raise ValueError(
            f"hints are of {tuple(hint.moments.shape[:2])} clips and moments, the student saw "
            f"{tuple(moments.shape[:2])}"
        )
    total = widen(moments).new_zeros(())
    for member, translate in enumerate(translations.children()):
        rows = (hint.member == member) & hint.present
        said = translate(widen(moments[rows]))
        total = total + (said - widen(hint.moments[rows].detach())).square().mean(dim=-1).sum()
    return total / moments.shape[:2].numel()


def _key(teacher: str) -> str:
    # ModuleDict refuses dots and names that are its own attributes, which are fair names for a teacher.
    return f"{teacher}_hints"
