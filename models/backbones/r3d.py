"""Backbone family `r3d`: a residual network whose convolutions span space and time.

One family for all modalities that come as pictures: rgb (3 channels), flow (2), audio (1, log-mel windows).
Source: Tran et al., A Closer Look at Spatiotemporal Convolutions, CVPR 2018, arXiv 1711.11248 (R3D), and
Hara et al., CVPR 2018, arXiv 1711.09577 (bottlenecks), of torchvision's parts.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models import pictures
from models.pictures import Normalise, VideoNetwork
from models.weights import Pretrained, Published, published_by_torchvision

if TYPE_CHECKING:
    from torchvision.models.video.resnet import VideoResNet


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


class ResidualNetwork(VideoNetwork):
    """The module of `R3D`: a step is eight frames.

    Args:
        video: torchvision's network; its classifier is taken off.
        normalisation: see `R3D`.
    """

    video: "VideoResNet"
    stride = 8
    # Of the frames that torchvision's weights of r3d_18 were trained on.
    mean = (0.43216, 0.394666, 0.37645)
    deviation = (0.22803, 0.22145, 0.216989)
    classifier = "fc"
    whose = "this depth of R3D"

    def __init__(self, video: "VideoResNet", normalisation: Normalise) -> None:
        super().__init__(video, video.fc.in_features, normalisation)
        video.fc = nn.Identity()

    def steps(self, x: Tensor) -> Tensor:
        """Embed clips (batch, 3, frames, height, width) as (batch, steps, self.width)."""
        x = self.video.stem(x)
        for layer in (self.video.layer1, self.video.layer2, self.video.layer3, self.video.layer4):
            x = layer(x)
        return x.mean(dim=(3, 4)).transpose(1, 2)
