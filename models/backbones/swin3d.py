"""Backbone family `swin3d`: Video Swin, a transformer over windows of space and time.

One family for all modalities that come as pictures: rgb (3 channels), flow (2), audio (1, log-mel windows).
Source: Liu et al., Video Swin Transformer, CVPR 2022, arXiv 2106.13230, in torchvision's implementation.
Video Swin-T is the network of Radevski et al., ICCV 2023, arXiv 2307.07483.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models import pictures
from models.pictures import Normalise, VideoNetwork
from models.weights import Pretrained, Published, published_by_torchvision

if TYPE_CHECKING:
    from torchvision.models.video import SwinTransformer3d

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Swin3D(BaseModel):
    """Video Swin transformer: patches of 2 frames × 4 × 4 pixels, attention in windows of 8 × 7 × 7 patches.

    The paper's network (27.85 M weights without heads): swin3d_t, drop_path 0.2, weights of Kinetics-400.

    Attributes:
        name: its size: swin3d_t (widths 96 to 768, depths 2-2-6-2), swin3d_s (depths 2-2-18-2) or swin3d_b
            (widths 128 to 1024).
        pretrained: False for weights drawn at random, KINETICS400_V1 for those that torchvision publishes, or the
            path of a file of weights; the caller gets the tensors and gives them to
            `SwinNetwork.load_pretrained`.
        normalise: what is done to the input, see `models.pictures.Normalise`.
        dropout: probability of dropping a feature before the heads.
        drop_path: stochastic depth of the last block; it rises linearly from 0 at the first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["swin3d"]
    name: Literal["swin3d_t", "swin3d_s", "swin3d_b"]
    pretrained: Pretrained
    normalise: Normalise
    dropout: Fraction
    drop_path: Fraction

    def build(self, channels: int) -> "SwinNetwork":
        """Build the module for frames of `channels` channels.

        Raises:
            ValueError: more than three channels, or a normalisation that is not for them.
        """
        from torchvision.models import (
            get_model,
        )  # takes seconds, and whoever reads params.yaml imports this module

        pictures.refuse_beyond_rgb(channels)
        pictures.refuse_channels(self.normalise, channels)
        return SwinNetwork(get_model(self.name), self.drop_path, self.normalise)

    @property
    def published(self) -> Published | None:
        """The weights of torchvision, where `pretrained` names them."""
        return published_by_torchvision(self.name, self.pretrained)


class SwinNetwork(VideoNetwork):
    """The module of `Swin3D`: a step is a pair of frames.

    Args:
        video: torchvision's network; its classifier is taken off.
        drop_path, normalisation: see `Swin3D`.
    """

    video: "SwinTransformer3d"
    stride = 2
    # Of the frames that the published weights were trained on.
    mean = (0.485, 0.456, 0.406)
    deviation = (0.229, 0.224, 0.225)
    classifier = "head"
    whose = "this size of Video Swin"

    def __init__(self, video: "SwinTransformer3d", drop_path: float, normalisation: Normalise) -> None:
        super().__init__(video, video.num_features, normalisation)
        video.head = nn.Identity()
        blocks = [
            module.stochastic_depth for module in video.modules() if hasattr(module, "stochastic_depth")
        ]
        for number, depth in enumerate(blocks):
            depth.p = drop_path * number / (len(blocks) - 1)

    def steps(self, x: Tensor) -> Tensor:
        """Embed clips (batch, 3, frames, height, width) as (batch, steps, self.width)."""
        patches = self.video.pos_drop(self.video.patch_embed(x))
        return self.video.norm(self.video.features(patches)).mean(dim=(2, 3))
