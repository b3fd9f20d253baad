"""Probing videos of unknown origin, in a process aside (`python -m tasks.stores.probe`)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.clips import Video
from tasks.errors import InfrastructureError
from tasks.stores.aside import Aside, DecodingStopped, serve
from tasks.stores.video import (
    SILENCE,
    PyAv,
    ReaderName,
    VideoError,
    audio_frames,
    nearest,
    open_container,
    open_video,
)

_MOST_MOMENTS = 64
"""Moments decoded of one video; of more, an even choice."""
_COMPARED = 3
"""Frames on which decord must agree with PyAV."""
_TOLERANCE = 1.0
"""Largest mean difference of two such frames, in levels of 255."""
LONGEST_SIDE = 8192
"""Of a frame, in pixels: 8K has 7680, and a small file can bring frames of any size."""


@dataclass(frozen=True)
class Probe:
    """What a video turned out to be.

    Attributes:
        codec: FFmpeg's name.
        width, height: as displayed, in pixels.
        rotation: degrees counterclockwise from stored to displayed.
        rate_hz: frames a second, on average.
        duration_s: from the first frame to the end of the last whole one.
        promised_s: length by the file's header; 0 where it does not say. Longer than duration_s: truncated.
        audio_rate_hz: of the sound track; 0 without one that can be decoded and is not silent.
        reader: the reader that works.
        broken_s: moments asked for whose frame cannot be decoded.
    """

    codec: str
    width: int
    height: int
    rotation: int
    rate_hz: float
    duration_s: float
    promised_s: float
    audio_rate_hz: int
    reader: ReaderName
    broken_s: tuple[float, ...]

    @property
    def frame_s(self) -> float:
        """How long a frame is shown, on average."""
        return 1 / self.rate_hz

    @property
    def truncated(self) -> bool:
        """Whether the file lacks more than two frames of what its header promises."""
        return self.promised_s > self.duration_s + 2 * self.frame_s

    def video(self, name: str, size_bytes: int, sha256: str, detections_sha256: str) -> Video:
        """The index's entry for the probed file.

        Args:
            name: of the video.
            size_bytes: of its file.
            sha256: of its file; empty where the entry goes into no index.
            detections_sha256: of its detections; empty where there are none.
        """
        return Video(
            video=name,
            sha256=sha256,
            size_bytes=size_bytes,
            codec=self.codec,
            width=self.width,
            height=self.height,
            rotation=self.rotation,
            rate_hz=self.rate_hz,
            duration_s=self.duration_s,
            reader=self.reader,
            audio_rate_hz=self.audio_rate_hz,
            detections=bool(detections_sha256),
            detections_sha256=detections_sha256,
        )


class Prober(Aside):
    """Probes videos one after the other in one process.

    Args:
        timeout_s: a probe that takes longer is killed.
    """

    def __init__(self, timeout_s: float):
        super().__init__("tasks.stores.probe", timeout_s)

    def probe(self, path: Path, moments_s: Sequence[float]) -> Probe:
        """What the video at `path` is, the frames nearest to `moments_s` decoded on the way.

        Raises:
            DecodingStopped: it took too long, or the decoder crashed.
            VideoError: it cannot be read; the message says why.
            InfrastructureError: the process cannot be started, or was killed twice.
        """
        request = {"path": str(path), "moments_s": list(moments_s)}
        try:
            answer = self.ask(request | {"try_decord": True})
        except (DecodingStopped, InfrastructureError):
            answer = self.ask(request | {"try_decord": False})
        return Probe(**answer | {"broken_s": tuple(answer["broken_s"])})


def probe(path: Path, moments_s: Sequence[float], timeout_s: float) -> Probe:
    """Probe one video in a subprocess of its own; see `Prober.probe`."""
    with Prober(timeout_s) as prober:
        return prober.probe(path, moments_s)


def examine(path: Path, moments_s: Sequence[float], try_decord: bool) -> Probe:
    """Probe a video in this process, which may not survive it.

    Raises:
        VideoError: it cannot be read, or its frames are too large.
    """
    _refuse_vast(path)
    with PyAv(path) as reader:
        times_s = reader.times_s
        last_s = float(times_s[-1])
        rate_hz = (len(times_s) - 1) / last_s if last_s > 0 else 25.0
        wanted = np.array(sorted({0.0, last_s, *moments_s}))
        chosen = wanted[np.unique(np.linspace(0, len(wanted) - 1, _MOST_MOMENTS).round().astype(int))]
        decoded, broken_s = _decode(reader, chosen)
        unfit = reader.rotation or reader.has_open_groups or not try_decord
        misread = unfit or not _decord_agrees(path, times_s, decoded)
        return Probe(
            codec=reader.codec,
            width=reader.width,
            height=reader.height,
            rotation=reader.rotation,
            rate_hz=rate_hz,
            duration_s=last_s + 1 / rate_hz,
            promised_s=reader.promised_s,
            audio_rate_hz=_audible_rate(path),
            reader="pyav" if misread else "decord",
            broken_s=broken_s,
        )


def _refuse_vast(path: Path) -> None:
    with open_container(path) as container:
        for stream in container.streams.video[:1]:
            if max(stream.width, stream.height) > LONGEST_SIDE:
                raise VideoError(
                    f"has frames of {stream.width} x {stream.height} pixels; sides of more than "
                    f"{LONGEST_SIDE} pixels are not taken"
                )


def _decode(reader: PyAv, moments_s: np.ndarray) -> tuple[dict[int, np.ndarray], tuple[float, ...]]:
    """Decode the frames at these moments: a few of them by number, and the moments that failed."""
    numbers = nearest(reader.times_s, moments_s)
    kept = set(numbers[np.linspace(0, len(numbers) - 1, _COMPARED).round().astype(int)].tolist())
    pictures, broken = {}, []
    for number, moment_s in zip(numbers.tolist(), moments_s.tolist(), strict=True):
        try:
            picture = next(reader.frames([number]))
        except VideoError:
            broken.append(moment_s)
            continue
        if number in kept:
            pictures[number] = picture
    if not pictures:
        raise VideoError("none of its frames can be decoded")
    return pictures, tuple(broken)


def _decord_agrees(path: Path, times_s: np.ndarray, pictures: dict[int, np.ndarray]) -> bool:
    """Whether decord gives the same frames at the same times."""
    try:
        with open_video(path, "decord") as reader:
            if len(reader.times_s) != len(times_s) or np.abs(reader.times_s - times_s).max() > 1e-3:
                return False
            numbers = sorted(pictures)
            pairs = zip(reader.frames(numbers), (pictures[number] for number in numbers), strict=True)
            return all(
                theirs.shape == ours.shape and np.abs(theirs.astype(np.int16) - ours).mean() <= _TOLERANCE
                for theirs, ours in pairs
            )
    except VideoError:
        return False


def _audible_rate(path: Path) -> int:
    """The sound track's rate in Hz; 0 without one that can be decoded and is not silent."""
    with open_container(path) as container:
        if not container.streams.audio:
            return 0
        for frame in audio_frames(container):
            samples = frame.to_ndarray()
            scale = 1.0 if samples.dtype.kind == "f" else float(2 ** (8 * samples.dtype.itemsize - 1))
            if np.abs(samples.astype(np.float64)).max(initial=0) > SILENCE * scale:
                return frame.sample_rate
    return 0


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    return asdict(examine(Path(request["path"]), request["moments_s"], request["try_decord"]))


if __name__ == "__main__":
    serve(_answer)
