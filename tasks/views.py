"""Views: which moments, which window and which colours of a clip are looked at.

A view is a value, a pure function of (clip, seed, number). Every modality renders the same view, so teachers
and student see the same thing, and what teachers say of a view can be stored (methods.md: function matching).
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from tasks.clips import Clip
from tasks.section import Section


class Jitter(Section):
    """Largest relative change of colour in a training view (factor drawn from 1 ± value; hue ± value)."""

    brightness: Annotated[float, Field(ge=0, lt=1)]
    contrast: Annotated[float, Field(ge=0, lt=1)]
    saturation: Annotated[float, Field(ge=0, lt=1)]
    hue: Annotated[float, Field(ge=0, le=0.5)]


class Views(Section):
    """What a view of a clip is. Every modality renders the same one."""

    frames: PositiveInt = Field(description="Frames sampled uniformly from the clip.")
    size: PositiveInt = Field(description="Side of the square picture a network sees, in pixels.")
    per_clip: PositiveInt = Field(
        description="Different training views of a clip; epochs cycle through them."
    )
    zoom: tuple[Annotated[float, Field(ge=1)], Annotated[float, Field(ge=1)]] = Field(
        description="The crop's side is the short side divided by U(low, high)."
    )
    test_zoom: Annotated[float, Field(ge=1)] = Field(description="The same for the views of val and test.")
    flip: bool = Field(
        description="Mirror half of the training views; never where classes say left and right."
    )
    jitter: Jitter

    @model_validator(mode="after")
    def _zoom_is_a_range(self) -> "Views":
        if self.zoom[0] > self.zoom[1]:
            raise ValueError("zoom: the first number must not exceed the second")
        return self


@dataclass(frozen=True)
class View:
    """One look at a clip.

    Attributes:
        times_s: moments of the frames, seconds from the start of the video, rising.
        zoom: the crop's side is the frame's short side divided by this.
        across, down: place of the crop in the room it has, 0 left or top, 1 right or bottom.
        along: place on the frame's long side, for crops that line up there whichever side that is; None: as
            `across` and `down` say.
        flip: mirrored left to right, after the crop.
        brightness, contrast, saturation: factors, 1 leaves the colours alone.
        hue: turn of the colours, -0.5..0.5 of a full circle.
        frame_step_s: time between two frames of the view.
    """

    times_s: tuple[float, ...]
    frame_step_s: float
    zoom: float
    across: float
    down: float
    flip: bool
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    along: float | None = None

    def window(self, aspect: float) -> tuple[float, float, float, float]:
        """The crop as (x0, y0, x1, y1) in 0..1 of a frame that is `aspect` times as wide as high."""
        short = 1.0 / self.zoom
        width, height = (short / aspect, short) if aspect >= 1 else (short, short * aspect)
        across, down = self.across, self.down
        if self.along is not None:
            across, down = (self.along, down) if aspect >= 1 else (across, self.along)
        x0, y0 = across * (1 - width), down * (1 - height)
        return x0, y0, x0 + width, y0 + height


def _generator(clip_id: str, seed: int, number: int) -> np.random.Generator:
    name = int.from_bytes(hashlib.sha256(clip_id.encode()).digest()[:8], "little")
    return np.random.default_rng([seed, number, name])


def training_view(clip: Clip, views: Views, seed: int, epoch: int) -> View:
    """The view of `clip` in `epoch` (0-based) of a training with `seed`.

    One frame at a random moment of each of `views.frames` equal segments, a square crop, a flip and colours,
    all drawn anew for each of the `views.per_clip` views that the epochs cycle through.
    """
    draw = _generator(clip.clip_id, seed, epoch % views.per_clip)
    step = clip.duration_s / views.frames
    moments = (np.arange(views.frames) + draw.random(views.frames)) * step
    jitter = views.jitter
    low, high = views.zoom
    return View(
        times_s=tuple(clip.start_s + moments),
        frame_step_s=step,
        zoom=float(draw.uniform(low, high)),
        across=float(draw.random()),
        down=float(draw.random()),
        flip=bool(draw.random() < 0.5) and views.flip,
        brightness=float(1 + jitter.brightness * draw.uniform(-1, 1)),
        contrast=float(1 + jitter.contrast * draw.uniform(-1, 1)),
        saturation=float(1 + jitter.saturation * draw.uniform(-1, 1)),
        hue=float(jitter.hue * draw.uniform(-1, 1)),
    )


def evaluation_views(clip: Clip, views: Views, clips: int = 1, crops: int = 1) -> list[View]:
    """The `clips` × `crops` views of `clip` that val and test average over, crops varying fastest.

    The clips interleave: each spans the whole of the action, its frames set off by a fraction of a segment, so
    that a single one looks like every training view (unlike contiguous chunks, methods.md defect 5). Three
    crops lie at the start, middle and end of the long side.
    """
    step = clip.duration_s / views.frames
    places = [0.5] if crops == 1 else list(np.linspace(0, 1, crops))
    return [
        View(
            times_s=tuple(clip.start_s + (np.arange(views.frames) + (number + 0.5) / clips) * step),
            frame_step_s=step,
            zoom=views.test_zoom,
            across=0.5,
            down=0.5,
            flip=False,
            along=float(place),
        )
        for number in range(clips)
        for place in places
    ]
