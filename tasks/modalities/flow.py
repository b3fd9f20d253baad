"""Optical flow: how far every point of the picture moves, measured between stored moments (DIS, Kroeger 2016)."""

from collections.abc import Iterator, Sequence
from typing import Literal

import cv2
import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from tasks.modalities.frames import crop, decode, grid_indices, pictures, shrink
from tasks.modalities.modality import Modality, RawVideo, Span
from tasks.shards import Row, Rows
from tasks.stores.video import open_video
from tasks.views import View

_LEVELS = 127


class Flow(Modality):
    """Dense flow at a fixed rate. Rendered: (frames, 2, size, size), right and down, ±1 at `bound_per_s`."""

    kind: Literal["flow"]
    short_side: PositiveInt = Field(description="At which flow is measured and stored, in pixels.")
    rate_hz: PositiveFloat = Field(description="Moments a second between which flow is measured.")
    bound_per_s: PositiveFloat = Field(
        description="Speed that is cut off, in short sides of the frame a second."
    )
    quality: int = Field(
        ge=1, le=100, description="Of the JPEG that holds the speeds in 8 bits; 95 costs 0.07 levels."
    )

    @property
    def channels(self) -> int:
        """Right and down."""
        return 2

    @property
    def step_s(self) -> float:
        """Of the grid."""
        return 1 / self.rate_hz

    def extract(self, raw: RawVideo, spans: Sequence[Span]) -> Iterator[Row]:
        """One row a pair of neighbouring moments: a JPEG of the speeds in 8 bits, `right` above `down`."""
        measure = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        with open_video(raw.path, raw.video.reader) as reader:
            indices = grid_indices(reader.times_s, spans, self.rate_hz)
            steps_s = np.diff(reader.times_s)
            # Neighbours on the grid, or in a video slower than it; anything further apart is another span.
            longest_s = max(2.5 / self.rate_hz, 1.5 * float(np.median(steps_s)) if len(steps_s) else 0.0)
            previous: tuple[float, np.ndarray] | None = None
            for index, frame in pictures(raw, reader, indices):
                time_s = float(reader.times_s[index])
                grey = cv2.cvtColor(shrink(frame, self.short_side), cv2.COLOR_RGB2GRAY)
                if previous is not None and time_s - previous[0] < longest_s:
                    moved = measure.calc(previous[1], grey, None)  # type: ignore[call-overload]  # None makes a new one
                    speed = moved / min(grey.shape) / (time_s - previous[0])
                    yield Row(previous[0], raw.aspect, self._encode(speed))
                previous = time_s, grey

    def _encode(self, speed: np.ndarray) -> bytes:
        levels = np.clip(np.rint(speed / self.bound_per_s * _LEVELS), -_LEVELS, _LEVELS) + 128
        stacked = np.concatenate([levels[..., 0], levels[..., 1]]).astype(np.uint8)
        # Not PNG: where decord's old zlib is loaded, OpenCV's libpng decodes nothing in that process.
        _, jpeg = cv2.imencode(".jpg", stacked, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
        return bytes(jpeg.tobytes())

    def render(self, rows: Rows, view: View, size: int) -> np.ndarray:
        """The view's flow with its crop and flip: zooming in makes motion larger, mirroring turns `right`."""
        window = view.window(rows.aspect)
        frames = np.empty((len(view.times_s), 2, size, size), np.float32)
        for place, time_s in enumerate(view.times_s):
            right, down = np.split(decode(rows.payload(rows.nearest(time_s)), colour=False), 2)
            frames[place, 0] = crop(right, window, size)
            frames[place, 1] = crop(down, window, size)
        frames = (frames - 128) / np.float32(_LEVELS) * np.float32(view.zoom)
        if view.flip:
            frames = frames[..., ::-1]
            frames[:, 0] *= -1
        return np.ascontiguousarray(frames, dtype=np.float32)
