"""Ways to see time: how many frames the image network sees at once, and how their features become a clip's.

They see frames in order of time, evenly spaced, and know nothing of what the frames show.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Temporal = Literal["mean", "stack", "conv"]


class _Kind(NamedTuple):
    """`window` frames are seen at once, an odd number; `head` is built for a feature width."""

    window: int
    head: Callable[[int], nn.Module]


_KINDS: dict[Temporal, _Kind] = {
    "mean": _Kind(1, lambda width: Mean()),
    "stack": _Kind(3, lambda width: Mean()),
    "conv": _Kind(1, lambda width: Convolution(width)),
}


def window(kind: Temporal) -> int:
    """Return how many neighbouring frames the image network sees as one picture."""
    return _KINDS[kind].window


def build(kind: Temporal, width: int) -> nn.Module:
    """Build a module from frame features (batch, frames, width) to clip features (batch, width)."""
    return _KINDS[kind].head(width)


def neighbourhoods(x: Tensor, size: int) -> Tensor:
    """Stack every frame with its neighbours in time, those beyond the ends being the end frames.

    Pooled features have lost where things were, so a head behind them can hardly learn how they moved; the
    first convolution over stacked frames sees it. Source: Karpathy et al. 2014, early fusion.

    Args:
        x: (batch, frames, channels, height, width).
        size: frames in a stack, odd; 1 changes nothing.

    Returns:
        (batch, frames, size · channels, height, width), the channels of earlier frames first.
    """
    frames = x.shape[1]
    places = torch.arange(frames, device=x.device)
    steps = range(-(size // 2), size // 2 + 1)
    return torch.cat([x[:, (places + step).clamp(0, frames - 1)] for step in steps], dim=2)


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
