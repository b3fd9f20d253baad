"""Backbone family `r3d`: a residual network whose convolutions span space and time.

One family for all modalities that come as pictures: rgb (3 channels), flow (2), audio (1, log-mel windows).
Source: Tran et al., A Closer Look at Spatiotemporal Convolutions, CVPR 2018, arXiv 1711.11248 (R3D), and
Hara et al., CVPR 2018, arXiv 1711.09577 (bottlenecks), of torchvision's parts.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models import pictures, temporal
from models.pictures import Normalise
from models.weights import Pretrained, Published, published_by_torchvision, take_over

if TYPE_CHECKING:
    from torchvision.models.video.resnet import VideoResNet

# Of the frames that torchvision's weights of r3d_18 were trained on.
_MEAN = (0.43216, 0.394666, 0.37645)
_DEVIATION = (0.22803, 0.22145, 0.216989)


class R3D(BaseModel):
    """3D residual network: convolutions of 3 × 3 × 3, time and space halved at each of the last three stages.

    Attributes:
        name: its depth: r3d_18 (33.17 M weights without heads) or r3d_50 (46.16 M, of bottlenecks).
        pretrained: False for weights drawn at random, KINETICS400_V1 for those that torchvision publishes of
            r3d_18 (of r3d_50 it has none), or the path of a file of weights; the caller gets the tensors and gives
            them to `ResidualNetwork.load_pretrained`.
        normalise: what is done to the input, see `models.pictures.Normalise`.
        dropout: probability of dropping a feature before the heads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["r3d"]
    name: Literal["r3d_18", "r3d_50"]
    pretrained: Pretrained
    normalise: Normalise
    dropout: Annotated[float, Field(ge=0, lt=1)]

    def build(self, channels: int) -> "ResidualNetwork":
        """Build the module for frames of `channels` channels.

        Raises:
            ValueError: more than three channels, or a normalisation that is not for them.
        """
        # Takes seconds, and whoever reads params.yaml imports this module.
        from torchvision.models.video.resnet import (
            BasicBlock,
            BasicStem,
            Bottleneck,
            Conv3DSimple,
            VideoResNet,
        )

        pictures.refuse_beyond_rgb(channels)
        pictures.refuse_channels(self.normalise, channels)
        block, layers = {"r3d_18": (BasicBlock, [2, 2, 2, 2]), "r3d_50": (Bottleneck, [3, 4, 6, 3])}[
            self.name
        ]
        return ResidualNetwork(VideoResNet(block, [Conv3DSimple] * 4, layers, BasicStem), self.normalise)

    @property
    def published(self) -> Published | None:
        """The weights of torchvision, where `pretrained` names them."""
        return published_by_torchvision(self.name, self.pretrained)


class ResidualNetwork(nn.Module):
    """The module of `R3D`.

    Args:
        video: torchvision's network; its classifier is taken off.
        normalisation: see `R3D`.

    Attributes:
        width: channels of the clip features.
    """

    def __init__(self, video: "VideoResNet", normalisation: Normalise) -> None:
        super().__init__()
        self.width: int = video.fc.in_features
        video.fc = nn.Identity()
        self.video = video
        self.normalisation = normalisation

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embed clips (batch, frames, channels, height, width).

        Returns:
            features of the clips (batch, self.width) and of their moments (batch, frames, self.width), a moment
            being eight frames, so that these have the same.
        """
        frames = x.shape[1]
        x = pictures.in_three_channels(pictures.normalise(x, self.normalisation, _MEAN, _DEVIATION))
        x = self.video.stem(x.transpose(1, 2))
        for layer in (self.video.layer1, self.video.layer2, self.video.layer3, self.video.layer4):
            x = layer(x)
        steps = x.mean(dim=(3, 4)).transpose(1, 2)
        return steps.mean(dim=1), temporal.of_frames(steps, frames)

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
        take_over(self.video, state, "fc", "this depth of R3D")
