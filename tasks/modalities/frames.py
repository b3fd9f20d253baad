"""What the picture-like modalities share: which frames to take, how to shrink and to crop them."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from tasks.modalities.modality import RawVideo, Span
from tasks.stores.video import Reader


def grid_indices(times_s: np.ndarray, spans: Sequence[Span], rate_hz: float) -> list[int]:
    """The frames nearest to the moments k / `rate_hz` that cover `spans`; each once, rising.

    The grid is anchored at the start of the video, not of the span, so that overlapping clips share frames and
    a new clip does not move those of an old one. The last moment lies at or after the span's end.
    """
    if not len(times_s):
        return []
    chosen: set[int] = set()
    for start_s, stop_s in spans:
        moments = np.arange(np.floor(start_s * rate_hz), np.ceil(stop_s * rate_hz) + 1) / rate_hz
        after = np.searchsorted(times_s, moments).clip(1, max(1, len(times_s) - 1))
        before = after - 1
        after = after.clip(max=len(times_s) - 1)
        nearer = np.where(times_s[after] - moments < moments - times_s[before], after, before)
        chosen.update(int(index) for index in nearer)
    return sorted(chosen)


def pictures(raw: RawVideo, reader: Reader, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """The frames of these numbers of an open video, each with its number; of a damaged one those there are.

    Raises:
        VideoError: one of them cannot be decoded; of a damaged video none.
    """
    if raw.damaged:
        return reader.whole_frames(indices)
    return zip(indices, reader.frames(indices), strict=True)


def shrink(frame: np.ndarray, short_side: int) -> np.ndarray:
    """`frame` (height, width[, channels]) with its short side brought down to `short_side`; never enlarged."""
    height, width = frame.shape[:2]
    scale = short_side / min(height, width)
    if scale >= 1:
        return frame
    return cv2.resize(frame, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)


def decode(jpeg: memoryview, colour: bool) -> np.ndarray:
    """A stored JPEG as uint8 (height, width, 3) in BGR, or (height, width)."""
    picture = cv2.imdecode(
        np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR if colour else cv2.IMREAD_GRAYSCALE
    )
    assert picture is not None, "a shard holds what is not a JPEG"
    return picture


def crop(frame: np.ndarray, window: tuple[float, float, float, float], size: int) -> np.ndarray:
    """The part `window` (x0, y0, x1, y1 in 0..1) of `frame`, resized to `size` × `size`."""
    height, width = frame.shape[:2]
    x0, y0, x1, y1 = window
    left, top = round(x0 * width), round(y0 * height)
    right, bottom = max(left + 1, round(x1 * width)), max(top + 1, round(y1 * height))
    part = frame[top:bottom, left:right]
    shrinks = min(part.shape[:2]) > size
    return cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
