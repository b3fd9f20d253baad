"""Late fusion: a backbone for each modality, their features side by side, then the heads of any network.

A clip may lack modalities: their features are zeros, and one flag a modality says which are there, so that the heads
know an absent sense from a silent one. Two ways to conclude: one linear layer over all features ("joint"), or the mean
of what the branches say each by itself ("mean").

Source: Du et al., On Uni-Modal Feature Learning in Supervised Multi-Modal Learning, ICML 2023, arXiv 2305.01233
(late fusion; UME is "mean"). Beyond it: clips that lack a modality.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from models.backbones import Backbone
from models.ensemble import mix, normalise
from models.heads import Heads

Fraction = Annotated[float, Field(ge=0, lt=1)]
MomentsChange = Callable[[str, Tensor], Tensor]
"""From a modality and the features of its moments (batch, moments, width) to others of that shape."""


class Sights(NamedTuple):
    """What several modalities show of the same views.

    Attributes:
        inputs: modality → (batch, frames, …) as it renders them; rows of clips that lack it may hold anything.
        present: modality → (batch,), bool: the clip has it.
    """

    inputs: dict[str, Tensor]
    present: dict[str, Tensor]


class Looked(NamedTuple):
    """What the branches of a fused network make of a batch, before anything is concluded from it.

    Attributes:
        branches: modality → the rows of the batch that have it, their features (rows, width), and those of their
            moments (rows, moments, width).
        present: modality → (batch,), bool: shown to its branch.
    """

    branches: dict[str, tuple[Tensor, Tensor, Tensor]]
    present: dict[str, Tensor]


class LateFusion(BaseModel):
    """Several modalities, each with a backbone of its own.

    Attributes:
        branches: modality → backbone.
        head: "joint", one linear classifier a head over all features; "mean", the mean of the probabilities that
            each branch's own heads give, divided by its temperature before.
        dropout: probability of dropping a feature before the heads.
        modality_dropout: probability, in training, that a clip's modality is hidden; where all would be, none is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["fused"]
    branches: dict[str, Backbone] = Field(min_length=1)
    head: Literal["joint", "mean"]
    dropout: Fraction
    modality_dropout: Fraction

    def build(self, channels: Mapping[str, int]) -> "FusedNetwork":
        """Build the module for modalities of so many channels each.

        Raises:
            ValueError: a branch cannot take the channels of its modality.
        """
        branches = {name: backbone.build(channels[name]) for name, backbone in self.branches.items()}
        return FusedNetwork(branches, self.modality_dropout)

    def build_heads(self, module: "FusedNetwork", classes: Mapping[str, int]) -> nn.Module:
        """Build what concludes from the features of `module`, for the classes of each label head."""
        if self.head == "joint":
            return Heads(module.width, classes, self.dropout)
        return MeanHeads(module.widths, classes, self.dropout)


class Partial(nn.Module):
    """A network with parts that look at some clips of a batch alone, of which there may be none.

    Attributes:
        runs: whether a part, a module, is run on these rows of the batch: if there are any. Whoever shares a batch
            with others (a GPU each) sets it while training: where a part normalises over the batch, all run it or none.
    """

    runs: Callable[[nn.Module, Tensor], bool] = staticmethod(lambda part, rows: len(rows) > 0)


class FusedNetwork(Partial):
    """The module of `LateFusion`.

    Attributes:
        widths: modality → channels of its branch's features, in the order of the features.
        width: channels of the clip features: those of all branches, then a flag for each.
    """

    def __init__(self, branches: Mapping[str, nn.Module], modality_dropout: float) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({branch_key(name): module for name, module in branches.items()})
        self.widths: dict[str, int] = {name: int(module.width) for name, module in branches.items()}  # type: ignore[arg-type]
        self.width = sum(self.widths.values()) + len(self.widths)
        self.modality_dropout = modality_dropout
        self.frozen = False

    def forward(self, sights: Sights) -> tuple[Tensor, Tensor]:
        """Embed clips; a branch looks at those alone that have its modality.

        Returns:
            features of the clips (batch, self.width); features of their moments (batch, moments, sum of widths),
            with as many moments as the branch that has the fewest, those of others averaged to as many.
        """
        return self.conclude(self.look(sights))

    def look(self, sights: Sights) -> Looked:
        """What each branch makes of those clips that have its modality."""
        present = self._shown(sights.present)
        found = {}
        for name, width in self.widths.items():
            rows = present[name].nonzero()[:, 0]
            if self.runs(self.branch(name), rows):
                found[name] = (rows, *self.branch(name)(sights.inputs[name][rows]))
            else:
                nothing = sights.inputs[name].new_zeros(0, width)
                found[name] = (rows, nothing, nothing[:, None])
        return Looked(found, present)

    def conclude(self, looked: Looked, change: MomentsChange | None = None) -> tuple[Tensor, Tensor]:
        """Embed clips by what `look` gave.

        Args:
            change: what is done to the features of a branch's moments before they become those of clips.

        Returns:
            as of `forward`.
        """
        features, moments = [], []
        for name, (rows, of_clips, of_moments) in looked.branches.items():
            if change is not None and len(rows):
                of_moments = change(name, of_moments)
                of_clips = self.branch(name).gather(of_moments)  # type: ignore[operator]
            features.append(spread(of_clips, rows, len(looked.present[name])))
            moments.append(spread(of_moments, rows, len(looked.present[name])))
        return self.join(dict(zip(self.widths, features, strict=True)), looked.present), _together(moments)

    def branch(self, name: str) -> nn.Module:
        """The backbone of a modality."""
        return self.branches[branch_key(name)]

    def join(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Put the branches' features (batch, width) side by side, then the flags of those that are there."""
        flags = torch.stack([present[name] for name in self.widths], dim=1)
        return torch.cat(
            [*(features[name] for name in self.widths), flags.to(features[next(iter(features))])], dim=1
        )

    def freeze(self) -> None:
        """Keep the branches as they are through a training: no gradient, no dropout, no new statistics."""
        self.frozen = True
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FusedNetwork":
        """Switch between training and evaluation; frozen branches stay in evaluation."""
        return super().train(mode and not self.frozen)

    def _shown(self, present: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The modalities that are there and not hidden by modality dropout."""
        if not self.training or not self.modality_dropout:
            return {name: present[name] for name in self.widths}
        there = torch.stack([present[name] for name in self.widths], dim=1)
        kept = there & (torch.rand(there.shape, device=there.device) >= self.modality_dropout)
        kept = torch.where(kept.any(dim=1, keepdim=True), kept, there)
        return dict(zip(self.widths, kept.unbind(dim=1), strict=True))


class MeanHeads(nn.Module):
    """The heads of each branch, and the mean of what those say that are there.

    Args:
        widths: modality → channels of its features, in their order.
        classes: number of classes of each head.
        dropout: probability of dropping a feature in training.

    Attributes:
        temperature: (modalities, heads), by which a branch's logits are divided; 1 until it is set.
    """

    temperature: Tensor

    def __init__(self, widths: Mapping[str, int], classes: Mapping[str, int], dropout: float) -> None:
        super().__init__()
        self.widths = dict(widths)
        self.classes = tuple(classes)
        self.branches = nn.ModuleDict(
            {branch_key(name): Heads(width, classes, dropout) for name, width in widths.items()}
        )
        self.register_buffer("temperature", torch.ones(len(self.widths), len(self.classes)))

    def branch(self, name: str) -> nn.Module:
        """The heads of a modality."""
        return self.branches[branch_key(name)]

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return the log of the mean probabilities (batch, classes) of each head; uniform where all is absent."""
        *parts, flags = features.split([*self.widths.values(), len(self.widths)], dim=1)
        said = [self.branch(name)(part) for name, part in zip(self.widths, parts, strict=True)]
        present = flags > 0
        shares = normalise(present.to(torch.float32), present)
        return {
            head: mix(
                torch.stack([logits[head] for logits in said], dim=1) / self.temperature[:, number, None],
                shares,
                "probs",
            )
            for number, head in enumerate(self.classes)
        }


def branch_key(modality: str) -> str:
    """The name of a modality's branch among modules."""
    return f"{modality}_branch"  # ModuleDict refuses dots and its own attributes, which are fair names


def spread(values: Tensor, rows: Tensor, batch: int) -> Tensor:
    """Values of some rows in their places among (batch, …), zeros elsewhere."""
    return values.new_zeros(batch, *values.shape[1:]).index_copy(0, rows, values)


def _together(moments: list[Tensor]) -> Tensor:
    """Features of moments side by side; branches without any clip in the batch have one moment, of zeros."""
    fewest = min(max(1, part.shape[1]) for part in moments)
    pooled = [functional.adaptive_avg_pool1d(part.transpose(1, 2), fewest) for part in moments]
    return torch.cat(pooled, dim=1).transpose(1, 2)
