"""The backbone families, chosen by `kind`. To add one: its file beside this one, its line in the union."""

from typing import Annotated

from pydantic import Field

from models.backbones.frames import Frames
from models.backbones.r3d import R3D
from models.backbones.stlt import STLT
from models.backbones.swin3d import Swin3D

Backbone = Annotated[
    Frames  # any timm image network over frames, then a temporal head
    | R3D  # 3D residual network over the whole clip
    | STLT  # spatial-temporal transformer over boxes
    | Swin3D,  # Video Swin transformer over the whole clip
    Field(discriminator="kind"),
]
