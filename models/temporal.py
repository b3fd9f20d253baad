"""Ways to turn the features of a clip's frames into one vector for the clip.

They see features in order of time, evenly spaced, and know nothing of what made them.
"""

from typing import Literal

from torch import Tensor, nn

Temporal = Literal["mean", "gru", "conv"]


def build(kind: Temporal, width: int) -> nn.Module:
    """Build a module from frame features (batch, frames, width) to clip features (batch, width)."""
    return {"mean": lambda: Mean(), "gru": lambda: Recurrent(width), "conv": lambda: Convolution(width)}[
        kind
    ]()


class Mean(nn.Module):
    """The average over frames: blind to their order, and without weights to learn."""

    def forward(self, frames: Tensor) -> Tensor:
        """Average (batch, frames, width) to (batch, width)."""
        return frames.mean(dim=1)


class Recurrent(nn.Module):
    """A gated recurrent unit read in time, its states averaged and added to the mean of the frames.

    The residual path lets a short training fall back on the mean. Source: Cho et al. 2014, arXiv 1406.1078.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, frames: Tensor) -> Tensor:
        """Read (batch, frames, width) in order and return (batch, width)."""
        states, _ = self.gru(self.norm(frames))
        return (frames + states).mean(dim=1)


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
