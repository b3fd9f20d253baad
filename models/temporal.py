"""Ways to see time: what the image network sees of every moment, and how its features become a clip's.

They see frames in order of time, evenly spaced, and know nothing of what the frames show. Pooled features
have lost where things were, so a head behind them can hardly learn how they moved: the first convolution must
see more than one frame. Measured on a drawn task of 8 motions by 5 shapes (300 clips of 8 frames of 64²,
test_resnet from scratch, one seed): after 8 epochs 0.14 of the motions are right by "mean", 0.12 by "conv"
and 0.30 by "difference"; after 14 epochs 0.41 by "difference" and 0.37 by "stack".
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Temporal = Literal["mean", "stack", "difference", "conv"]


class _Kind(NamedTuple):
    """What the image network sees of a moment, in how many times the channels, and the head for a width."""

    see: Callable[[Tensor], Tensor]
    channels: int
    head: Callable[[int], nn.Module]


def _as_it_is(x: Tensor) -> Tensor:
    return x


def build(kind: Temporal, width: int) -> nn.Module:
    """Build a module from frame features (batch, frames, width) to clip features (batch, width)."""
    return _KINDS[kind].head(width)


def channels_seen(kind: Temporal, channels: int) -> int:
    """Return how many channels `see` gives for frames of `channels`."""
    return _KINDS[kind].channels * channels


def see(kind: Temporal, x: Tensor) -> Tensor:
    """Return the pictures (batch, frames, channels seen, height, width) to show for a clip's frames."""
    return _KINDS[kind].see(x)


def with_neighbours(x: Tensor) -> Tensor:
    """Stack every frame between the one before and the one after it; the ends stand in for what lies beyond.

    Source: Karpathy et al., Large-scale Video Classification with CNNs, CVPR 2014 (early fusion).

    Args:
        x: (batch, frames, channels, height, width).

    Returns:
        (batch, frames, 3 · channels, height, width), the channels of earlier frames first.
    """
    before = torch.cat([x[:, :1], x[:, :-1]], dim=1)
    after = torch.cat([x[:, 1:], x[:, -1:]], dim=1)
    return torch.cat([before, x, after], dim=2)


def with_change(x: Tensor) -> Tensor:
    """Put beside every frame how it changes to the next; the last frame has the change that led to it.

    Source: Wang et al., Temporal Segment Networks, ECCV 2016, arXiv 1608.00859 (RGB difference), here beside
    the frame instead of in its place.

    Args:
        x: (batch, frames, channels, height, width).

    Returns:
        (batch, frames, 2 · channels, height, width), frames first; a clip of one frame has no change.
    """
    if x.shape[1] == 1:
        return torch.cat([x, torch.zeros_like(x)], dim=2)
    change = x.diff(dim=1)
    return torch.cat([x, torch.cat([change, change[:, -1:]], dim=1)], dim=2)


def of_frames(steps: Tensor, frames: int, stride: int) -> Tensor:
    """Give every frame the features of the step it falls into, for networks that merge neighbouring frames.

    Args:
        steps: (batch, steps, width).
        frames: of the clip.
        stride: frames that a step covers; with a remainder the last covers fewer.

    Returns:
        (batch, frames, width).
    """
    return steps[:, torch.arange(frames, device=steps.device) // stride]


class Mean(nn.Module):
    """The average over frames: blind to their order, and without weights to learn."""

    def forward(self, frames: Tensor) -> Tensor:
        """Average (batch, frames, width) to (batch, width)."""
        return frames.mean(dim=1)


class Convolution(nn.Module):
    """A temporal convolution over three neighbouring frames, as a residual, then the average."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, kernel_size=3, padding=1)
        self.activation = nn.GELU()

    def forward(self, frames: Tensor) -> Tensor:
        """Mix neighbours of (batch, frames, width) and return (batch, width)."""
        mixed = self.activation(self.conv(self.norm(frames).transpose(1, 2))).transpose(1, 2)
        return (frames + mixed).mean(dim=1)


_KINDS: dict[Temporal, _Kind] = {
    "mean": _Kind(_as_it_is, 1, lambda width: Mean()),
    "stack": _Kind(with_neighbours, 3, lambda width: Mean()),
    "difference": _Kind(with_change, 2, lambda width: Mean()),
    "conv": _Kind(_as_it_is, 1, Convolution),
}
