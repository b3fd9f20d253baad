"""RGB frames: the one modality that is there at inference."""

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

_LUMA = np.array([0.299, 0.587, 0.114])


class Rgb(Modality):
    """JPEG frames at a fixed rate, short side resized. Rendered: (frames, 3 or 6, size, size).

    The first three channels are the frame, 0..1. With `change_s` three more say how it changes until so many
    seconds later, -1..1: the moments of a view lie too far apart to tell how things move between them. Source:
    Wang et al., Temporal Segment Networks, ECCV 2016, arXiv 1608.00859, section 3.2 (RGB difference).
    """

    kind: Literal["rgb"]
    short_side: PositiveInt = Field(
        description="Of the stored frames, in pixels; smaller ones stay as they are."
    )
    rate_hz: PositiveFloat = Field(description="Stored frames a second; no more than the video has.")
    quality: int = Field(ge=1, le=100, description="Of the JPEG.")
    change_s: PositiveFloat | None = Field(
        description="Time over which change is shown; null shows frames alone."
    )

    @property
    def channels(self) -> int:
        """3, or 6 with change."""
        return 3 if self.change_s is None else 6

    @property
    def step_s(self) -> float:
        """Of the grid."""
        return 1 / self.rate_hz

    def extract(self, raw: RawVideo, spans: Sequence[Span]) -> Iterator[Row]:
        """One row a stored frame, its payload the JPEG."""
        with open_video(raw.path, raw.video.reader) as reader:
            shown = [(start_s, stop_s + (self.change_s or 0)) for start_s, stop_s in spans]
            indices = grid_indices(reader.times_s, shown, self.rate_hz)
            for index, frame in pictures(raw, reader, indices):
                picture = cv2.cvtColor(shrink(frame, self.short_side), cv2.COLOR_RGB2BGR)
                _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
                yield Row(float(reader.times_s[index]), raw.aspect, jpeg.tobytes())

    def render(self, rows: Rows, view: View, size: int) -> np.ndarray:
        """The view's frames with its crop, flip and colours, float32 (frames, channels, size, size)."""
        frames = self._at(rows, view, view.times_s, size)
        if self.change_s is not None:
            later = self._at(rows, view, [time_s + self.change_s for time_s in view.times_s], size)
            frames = np.concatenate([frames, later - frames], axis=3)
        if view.flip:
            frames = frames[:, :, ::-1]
        return np.ascontiguousarray(frames.transpose(0, 3, 1, 2), dtype=np.float32)

    @staticmethod
    def _at(rows: Rows, view: View, times_s: Sequence[float], size: int) -> np.ndarray:
        """The frames nearest to `times_s` with the view's crop and colours, (frames, size, size, 3), 0..1."""
        window = view.window(rows.aspect)
        frames = np.empty((len(times_s), size, size, 3), np.float32)
        for place, time_s in enumerate(times_s):
            picture = cv2.cvtColor(decode(rows.payload(rows.nearest(time_s)), colour=True), cv2.COLOR_BGR2RGB)
            frames[place] = crop(picture, window, size)
        frames /= 255.0
        matrix, offset = colours(view)
        if not np.array_equal(matrix, np.eye(3)) or offset.any():
            frames = np.clip(frames @ matrix.T.astype(np.float32) + offset.astype(np.float32), 0, 1)
        return frames


def colours(view: View) -> tuple[np.ndarray, np.ndarray]:
    """The view's colour change as (matrix (3, 3), offset (3,)) on RGB in 0..1.

    In order: brightness scales, contrast pulls towards or away from mid grey, saturation towards or away from
    the luma, hue turns the chroma plane of YIQ. One affine map for the whole view, so frames stay consistent.
    """
    grey = np.outer(np.ones(3), _LUMA)
    saturate = view.saturation * np.eye(3) + (1 - view.saturation) * grey
    to_yiq = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    angle = 2 * np.pi * view.hue
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    hue = np.linalg.inv(to_yiq) @ turn @ to_yiq if view.hue else np.eye(3)
    linear = hue @ saturate
    return view.brightness * view.contrast * linear, linear @ np.full(3, 0.5 * (1 - view.contrast))
