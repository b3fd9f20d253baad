"""What a network that sees RGB sees of a video of unknown origin, which is decoded in a process aside.

Run as `python -m tasks.looking` it is that process.
"""

import base64
import resource
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import av
import cv2
import numpy as np
import pyarrow as pa

from tasks.clips import Clip
from tasks.errors import InfrastructureError
from tasks.modalities.frames import grid_indices, shrink
from tasks.modalities.modality import RawVideo, Span
from tasks.modalities.rgb import Rgb
from tasks.settings import settings
from tasks.shards import Row, Rows
from tasks.stores.aside import Aside, DecodingStopped, NotStarted, serve
from tasks.stores.probe import Probe, examine
from tasks.stores.video import VideoError, open_container
from tasks.views import View, Views, evaluation_views

_SPARE_BYTES = 4 << 30
"""Memory for a stranger's video: frames of 8192 x 8192 pixels take 1 GB, what takes more was made to."""


@dataclass(frozen=True)
class Look:
    """The test view of one stretch of a video.

    Attributes:
        start_s, stop_s: the stretch, seconds from the first frame.
        shown: float32 (frames, channels, size, size), as `Rgb.render` gives it.
    """

    start_s: float
    stop_s: float
    shown: np.ndarray


class Looker(Aside):
    """Looks at videos one after the other.

    Args:
        rgb: how frames are stored and shown.
        views: which moments and which window are looked at.
        timeout_s: a video that takes longer is given up.
        longest_s: longer videos are refused; None takes any.
        strangers: whether anybody may send videos. Then decord, whose FFmpeg is of 2020, opens none, and decoding
            has so much memory and no more.
    """

    def __init__(
        self, rgb: Rgb, views: Views, timeout_s: float, longest_s: float | None, strangers: bool = False
    ):
        super().__init__("tasks.looking", timeout_s)
        self._rgb, self._views, self._longest_s = rgb, views, longest_s
        self._strangers = strangers

    def look(self, path: Path, span: Span | None) -> Look:
        """The test view of `span` (start and stop in seconds), or of the whole video.

        Raises:
            VideoError: the file is missing or too large, cannot be decoded, is too long, ends before the span
                does, or is truncated and no span says that the rest will do.
            DecodingStopped: it took too long, or the decoder crashed.
            NotStarted: the process cannot be started.
            InfrastructureError: it was killed twice.
        """
        if path.is_dir():
            raise VideoError("is a folder, not a video")
        if not path.is_file():
            raise VideoError("there is no such file")
        request = {
            "path": str(path.absolute()),  # a relative one such as http:/a.mp4 would be an address to FFmpeg
            "span": span,
            "longest_s": self._longest_s,
            "rgb": self._rgb.model_dump(),
            "views": self._views.model_dump(),
            "strangers": self._strangers,
        }
        try:
            answer = self.ask(request | {"try_decord": not self._strangers})
        except NotStarted:
            raise
        except (DecodingStopped, InfrastructureError) as error:
            # Of strangers the same again would take as long: PyAV was asked already.
            if self._strangers and isinstance(error, DecodingStopped):
                raise
            answer = self.ask(request | {"try_decord": False})
        rows = [Row(time_s, answer["aspect"], base64.b64decode(jpeg)) for time_s, jpeg in answer["rows"]]
        return _rendered(self._rgb, self._views, (answer["start_s"], answer["stop_s"]), rows)


class Lookers:
    """Several of them, side by side, each in a process of its own.

    Args:
        rgb, views, timeout_s, longest_s, strangers: as for `Looker`.
        count: how many.
    """

    def __init__(
        self,
        rgb: Rgb,
        views: Views,
        timeout_s: float,
        longest_s: float | None,
        count: int,
        strangers: bool = False,
    ):
        self._all = [Looker(rgb, views, timeout_s, longest_s, strangers) for _ in range(count)]
        self._idle: SimpleQueue[Looker] = SimpleQueue()
        for looker in self._all:
            looker.start()
            self._idle.put(looker)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="look")

    def look(self, path: Path, span: Span | None) -> "Future[Look | str]":
        """The test view of a video, or why there is none, when it is there.

        Its result raises NotStarted where the process cannot be started: that is no fault of a video.
        """
        return self._threads.submit(self._look, path, span)

    def _look(self, path: Path, span: Span | None) -> Look | str:
        looker = self._idle.get()
        try:
            return looker.look(path, span)
        except NotStarted:
            raise
        except (VideoError, InfrastructureError, OSError) as error:
            return str(error)
        except ValueError as error:  # a name that can be no path
            return f"cannot be read ({error})"
        finally:
            self._idle.put(looker)

    def close(self) -> None:
        """End the processes; what is not looked at yet never is."""
        self._threads.shutdown(cancel_futures=True)
        for looker in self._all:
            looker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def look_at_frames(rgb: Rgb, views: Views, frames: np.ndarray, rate_hz: float) -> Look:
    """The test view of a clip that is decoded already.

    Args:
        rgb, views: as for `Looker`.
        frames: uint8 (frames, height, width, 3).
        rate_hz: frames a second.
    """
    times_s = np.arange(len(frames)) / rate_hz
    span = (0.0, len(frames) / rate_hz)
    reach_s = rgb.change_s or 0.0
    moments_s = [(moment_s, moment_s + reach_s) for moment_s in _view(views, span).times_s]
    aspect = frames.shape[2] / frames.shape[1]
    kept = grid_indices(times_s, moments_s, rgb.rate_hz)
    rows = [Row(float(times_s[place]), aspect, _stored(rgb, frames[place])) for place in kept]
    return _rendered(rgb, views, span, rows)


def _stored(rgb: Rgb, frame: np.ndarray) -> bytes:
    """A frame as `Rgb.extract` stores it; said again here, because there it belongs to an open video."""
    picture = cv2.cvtColor(shrink(frame, rgb.short_side), cv2.COLOR_RGB2BGR)
    _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, rgb.quality])
    return jpeg.tobytes()


def extracted(rgb: Rgb, raw: RawVideo, moments_s: Sequence[float]) -> list[Row]:
    """The rows that a view of these moments looks up, as a shard would hold them.

    The row nearest to a moment is one of its two neighbours on the extraction's grid. Those alone are
    decoded, so an hour of video costs no more than a second.
    """
    return list(rgb.extract(raw, [(moment_s, moment_s) for moment_s in moments_s]))


def in_memory(rows: Sequence[Row]) -> Rows:
    """Rows as if read from a shard."""
    payloads = pa.array([row.payload for row in rows], pa.large_binary())
    aspect = float(np.float32(rows[0].aspect))  # a shard stores float32, and the crop follows from it
    return Rows(np.array([row.time_s for row in rows]), aspect, [payloads])


def _view(views: Views, span: Span) -> View:
    start_s, stop_s = span
    clip = Clip("", "", start_s, stop_s, group="", split="test", labels={}, slices={})
    (view,) = evaluation_views(clip, views)
    return view


def _rendered(rgb: Rgb, views: Views, span: Span, rows: Sequence[Row]) -> Look:
    return Look(*span, rgb.render(in_memory(rows), _view(views, span), views.size))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    if request["strangers"]:
        _limit_memory()
    rgb, views = Rgb.model_validate(request["rgb"]), Views.model_validate(request["views"])
    path = Path(request["path"])
    size_bytes = path.stat().st_size
    if size_bytes > settings().max_video_bytes:
        raise VideoError(f"is larger than {settings().max_video_bytes} bytes (UNDERSTUDY_MAX_VIDEO_BYTES)")
    with open_container(path) as container:
        _refuse_longer((container.duration or 0) / av.time_base, request["longest_s"])
    found = examine(path, (), request["try_decord"])
    _refuse_longer(max(found.promised_s, found.duration_s), request["longest_s"])
    span = _span(found, request["span"])
    video = found.video(path.name, size_bytes, sha256="", detections_sha256="")
    rows = extracted(rgb, RawVideo(path, path, video), _view(views, span).times_s)
    return {
        "start_s": span[0],
        "stop_s": span[1],
        "aspect": rows[0].aspect,
        "rows": [(row.time_s, base64.b64encode(row.payload).decode()) for row in rows],
    }


def _limit_memory() -> None:
    """Have decoding fail where it would take the machine's memory; the libraries keep what they have."""
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return
    with suppress(OSError):  # a system without /proc
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + _SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _refuse_longer(length_s: float, longest_s: float | None) -> None:
    if longest_s is not None and length_s > longest_s:
        raise VideoError(f"is {length_s:.0f} s long; at most {longest_s:g} s are taken")


def _span(found: Probe, asked: Span | None) -> Span:
    """The stretch to look at.

    Raises:
        VideoError: the video ends before the stretch does, or is truncated.
    """
    if asked is None and found.truncated:
        raise VideoError(
            f"is truncated: it promises {found.promised_s:.3f} s and holds {found.duration_s:.3f} s; "
            "give a start and a stop to look at what there is"
        )
    start_s, stop_s = asked or (0.0, found.duration_s)
    if stop_s > found.duration_s + found.frame_s:
        raise VideoError(f"ends at {found.duration_s:.2f} s, before the span {start_s:g}..{stop_s:g} s does")
    return start_s, stop_s


if __name__ == "__main__":
    serve(_answer)
