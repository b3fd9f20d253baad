"""The backbone families, chosen by `kind`. To add one: its file beside this one, its line in the union."""

from typing import Annotated

from pydantic import Field

from models.backbones.frames import Frames
from models.backbones.stlt import STLT

Backbone = Annotated[
    Frames  # any timm image network over frames, then a temporal head
    | STLT,  # spatial-temporal transformer over boxes
    Field(discriminator="kind"),
]
