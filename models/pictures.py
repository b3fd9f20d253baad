"""What picture networks have in common: what is done to the input before the first layer; a base for video networks.

They see frames as the modality renders them, whatever these show.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from models import temporal
from models.weights import take_over

Normalise = Literal["none", "weights", "clip", "frame"]
"""What is done to the input: "weights", the mean and deviation that the network's published weights were trained
with (rgb alone); "clip", every channel of a clip brought to mean 0 and deviation 1, which takes out its light;
"frame", every channel of every frame brought to mean 0, which for flow takes out the camera's motion; "none"."""

_STILL = 0.01  # the deviation of a clip in which nothing is to be seen, so that its noise is not blown up


def refuse_channels(how: Normalise, channels: int) -> None:
    """Refuse a normalisation that inputs of `channels` channels cannot have.

    Raises:
        ValueError: the weights' own mean and deviation, for other inputs than rgb.
    """
    if how == "weights" and channels != 3:
        raise ValueError(f"normalise: weights is for rgb, not for inputs of {channels} channel(s)")


def refuse_beyond_rgb(channels: int) -> None:
    """Refuse inputs that a network whose filters are for rgb cannot take.

    Raises:
        ValueError: more than three channels.
    """
    if channels > 3:
        raise ValueError(
            f"its filters are for 3 channels, not for {channels} (rgb has 6 with change_s, 3 with change_s: null)"
        )


def normalise(x: Tensor, how: Normalise, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    """Return clips (batch, frames, channels, height, width), normalised.

    Args:
        x: the clips.
        how: see `Normalise`.
        mean, deviation: for each channel, those that the published weights were trained with.
    """
    if how == "none":
        return x
    if how == "weights":
        centre, scale = (
            torch.tensor(numbers, dtype=x.dtype).to(x.device, non_blocking=True)[:, None, None]
            for numbers in (mean, deviation)
        )
        return (x - centre) / scale
    return standardise(x, by_frame=how == "frame")


def standardise(x: Tensor, by_frame: bool) -> Tensor:
    """Take out light and contrast: every channel of a clip to mean 0 and deviation 1.

    Args:
        x: (batch, frames, channels, height, width).
        by_frame: take the mean of each frame instead of the clip's, and one deviation for all channels, so that
            the components of a motion stay in proportion.
    """
    centred = x - x.mean(dim=(3, 4) if by_frame else (1, 3, 4), keepdim=True)
    deviation = centred.square().mean(dim=(1, 2, 3, 4) if by_frame else (1, 3, 4), keepdim=True).sqrt()
    return centred / (deviation + _STILL)


def in_three_channels(x: Tensor) -> Tensor:
    """Show what has fewer channels to a network whose filters are for rgb.

    Source: Radevski et al., ICCV 2023, arXiv 2307.07483: flow is shown as its two components and a channel of
    zeros. A spectrogram is a grey picture here, the same in all channels.

    Args:
        x: (batch, frames, channels, height, width) of 1 (audio), 2 (flow) or 3 channels (rgb).

    Returns:
        (batch, frames, 3, height, width).
    """
    channels = x.shape[2]
    if channels == 1:
        return x.expand(-1, -1, 3, -1, -1)
    nothing = torch.zeros_like(x[:, :, :1]).expand(-1, -1, 3 - channels, -1, -1)
    return torch.cat([x, nothing], dim=2)


class VideoNetwork(nn.Module):
    """A network of torchvision that sees space and time at once, its classifier taken off.

    Subclasses say what it makes of a clip (`steps`), and name what follows.

    Args:
        video: torchvision's network.
        width: channels of its features.
        normalisation: see `Normalise`.

    Attributes:
        width: channels of the clip features.
        stride: frames that a step covers.
        mean, deviation: of each channel of the frames that the published weights were trained on.
        classifier: the beginning of the names of the classifier's tensors.
        whose: what a file of weights has to be for, in words.
    """

    stride: int
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    classifier: str
    whose: str

    def __init__(self, video: nn.Module, width: int, normalisation: Normalise) -> None:
        super().__init__()
        self.width = width
        self.video = video
        self.normalisation = normalisation

    @abstractmethod
    def steps(self, x: Tensor) -> Tensor:
        """Embed clips (batch, 3, frames, height, width) as (batch, steps, self.width), a step being several frames."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embed clips (batch, frames, channels, height, width) of at most three channels.

        Returns:
            features of the clips (batch, self.width) and of their moments (batch, frames, self.width); the frames of
            one step have the same.
        """
        pictures = in_three_channels(normalise(x, self.normalisation, self.mean, self.deviation))
        steps = self.steps(pictures.transpose(1, 2))
        return steps.mean(dim=1), temporal.of_frames(steps, x.shape[1], self.stride)

    def gather(self, moments: Tensor) -> Tensor:
        """Put the features of moments (batch, frames, self.width) together to the clips' (batch, self.width).

        A moment counts as long as it lasts; `forward` counts one that the clip's end cuts short like the others.
        """
        return moments.mean(dim=1)

    def load_pretrained(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of a torchvision checkpoint.

        Args:
            state: tensors by name, as torchvision names them. The classifier is left out.

        Raises:
            ValueError: a tensor is missing, unknown or of another shape: the file is for another network.
        """
        take_over(self.video, state, self.classifier, self.whose)
