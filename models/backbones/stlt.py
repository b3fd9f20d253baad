"""Backbone family `stlt`: a transformer over the boxes of each frame, then one over the frames.

Source: Radevski et al., Revisiting spatio-temporal layouts for compositional action recognition, BMVC 2021,
arXiv 2111.01936; with hand side and contact state as in Radevski et al., ICCV 2023, arXiv 2307.07483.
Layers normalise first, unlike the paper's, so that they train from scratch without a long warm-up.
"""

from contextlib import nullcontext
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor, nn

BOX_FIELDS = 8
"""Values of one box: x1, y1, x2, y2 (fractions of the frame), score, category, side, state."""
CATEGORIES = 3  # padding, hand, object
SIDES = 3  # none, left, right
STATES = 3  # unknown, no contact, contact


class STLT(BaseModel):
    """Spatial-temporal layout transformer.

    The paper's network (85.2 M weights): width 768, 6 and 6 layers, 8 attention heads, 256 frames at most.

    Attributes:
        width: channels of a token.
        spatial_layers: transformer layers over the boxes of one frame.
        temporal_layers: transformer layers over the frames of the clip.
        attention_heads: of every layer; divides the width.
        max_frames: learned positions, the most frames a clip may have.
        dropout: probability in every layer, in the embeddings and before the heads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["stlt"]
    width: PositiveInt
    spatial_layers: PositiveInt
    temporal_layers: PositiveInt
    attention_heads: PositiveInt
    max_frames: PositiveInt
    dropout: Annotated[float, Field(ge=0, lt=1)]

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "STLT":
        if self.width % self.attention_heads:
            raise ValueError(f"attention_heads {self.attention_heads} must divide width {self.width}")
        return self

    def build(self, channels: int) -> "LayoutNetwork":
        """Build the module for boxes of `channels` values.

        Raises:
            ValueError: `channels` is not that of detections.
        """
        if channels != BOX_FIELDS:
            raise ValueError(f"stlt reads boxes of {BOX_FIELDS} values, not inputs of {channels} channels")
        return LayoutNetwork(self)


class LayoutNetwork(nn.Module):
    """The module of `STLT`.

    Attributes:
        width: channels of the clip features.
    """

    def __init__(self, sizes: STLT) -> None:
        super().__init__()
        self.width = sizes.width
        self.boxes = BoxEmbedding(sizes.width, sizes.dropout)
        self.frame_token = _parameter(1, 1, sizes.width)
        self.spatial = _transformer(sizes, sizes.spatial_layers)
        self.positions = _parameter(sizes.max_frames, sizes.width)
        self.clip_token = _parameter(1, 1, sizes.width)
        self.dropout = nn.Dropout(sizes.dropout)
        self.temporal = _transformer(sizes, sizes.temporal_layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embed clips of boxes.

        Args:
            x: (batch, frames, boxes, 8); boxes of category 0 are padding and change nothing. Frames may
                have no box at all, and the boxes of a frame no order.

        Returns:
            features of the clips (batch, self.width) and of their moments (batch, frames, self.width).

        Raises:
            ValueError: the clip has more frames than `max_frames`.
        """
        frames = x.shape[1]
        if frames > len(self.positions):
            raise ValueError(f"a clip of {frames} frames, but stlt has max_frames {len(self.positions)}")
        moments = self._read_frames(x)
        return self.gather(moments), moments

    def gather(self, moments: Tensor) -> Tensor:
        """Put the features of moments (batch, frames, self.width) together to the clips' (batch, self.width)."""
        return self._read_clip(moments + self.positions[: moments.shape[1]])

    def _read_frames(self, x: Tensor) -> Tensor:
        """Embed the boxes of every frame, (batch, frames, boxes, 8) to (batch, frames, width)."""
        batch, frames = x.shape[:2]
        boxes = x.flatten(0, 1)
        token = self.frame_token.expand(len(boxes), 1, -1)
        # The token is never masked, so that attention in a frame without boxes has something to look at.
        padding = torch.nn.functional.pad(boxes[..., 5] == 0, (1, 0), value=False)
        read = self.spatial(torch.cat([token, self.boxes(boxes)], dim=1), src_key_padding_mask=padding)
        return read[:, 0].unflatten(0, (batch, frames))

    def _read_clip(self, frames: Tensor) -> Tensor:
        """Embed the clip, (batch, frames, width) to (batch, width); frames see the past, the token all."""
        token = self.clip_token.expand(len(frames), 1, -1)
        sequence = self.dropout(torch.cat([frames, token], dim=1))
        length = sequence.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=frames.device).triu(1)
        # Said, or torch compares the whole mask to find out, and waits for the GPU.
        return self.temporal(sequence, mask=future, is_causal=True)[:, -1]


class BoxEmbedding(nn.Module):
    """The sum of what is known of a box: category, place, score, hand side and contact state."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.category = nn.Embedding(CATEGORIES, width, padding_idx=0)
        self.place = nn.Linear(4, width)
        self.score = nn.Linear(1, width)
        self.side = nn.Embedding(SIDES, width)
        self.state = nn.Embedding(STATES, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, boxes: Tensor) -> Tensor:
        """Embed (…, 8) as (…, width)."""
        category, side, state = boxes[..., 5:].long().unbind(-1)
        # Not in bfloat16, whose steps near the far edge are 1/256 of the frame: slow hands would stand still.
        there = boxes.device.type
        can = torch.amp.is_autocast_available(there)  # what counts weights on "meta" cannot
        with torch.autocast(there, enabled=False) if can else nullcontext():
            embedded = self.category(category) + self.place(boxes[..., :4]) + self.score(boxes[..., 4:5])
        return self.dropout(self.norm(embedded + self.side(side) + self.state(state)))


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=0.02))


def _transformer(sizes: STLT, layers: int) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        sizes.width,
        sizes.attention_heads,
        dim_feedforward=4 * sizes.width,
        dropout=sizes.dropout,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )
    return nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(sizes.width), enable_nested_tensor=False)
