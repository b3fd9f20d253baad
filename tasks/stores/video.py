"""Reading video files: frames by number, their times, the sound track. Knows nothing of clips or data sets.

decord is the default reader (about three times PyAV on sparse frames, bit-equal); PyAV reads what decord cannot (AV1,
rotation) or counts wrongly (open groups of pictures) and all sound. `tasks.stores.probe` says which of the two a file
needs.
"""

import contextlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal, Self

import av
import decord
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

ReaderName = Literal["decord", "pyav"]

SILENCE = 1e-4
"""A sound track whose samples never exceed this (full scale is 1) counts as absent."""

_PLAYLISTS = {"hls", "concat", "dash", "imf", "sdp", "rtsp", "tty"}
"""Formats that name other files or draw text instead of holding pictures."""
_UNSTAMPED = {"avi", "h264", "hevc", "m4v", "mpegvideo"}
"""Formats that store no presentation stamps; those FFmpeg makes up for them are wrong behind B-frames."""
_SOUGHT_BY_DECODING = {"mpeg", "mpegts"}
"""Formats that are sought by the stamp of decoding, which precedes that of showing where a frame waits for others."""
_GAP_S = 0.05
"""Further than this the sound is never out of step with the picture; longer pauses are filled with silence."""
_BESIDE_S = 60.0
"""Sound that lies further before or behind the pictures is none of theirs."""


class VideoError(Exception):
    """A video that cannot be read; the message says why in plain words."""


class Reader(ABC):
    """One open video.

    Attributes:
        width, height: of a frame as displayed (rotation applied), in pixels.
        times_s: float64 (frames,), rising; when each frame is shown, in seconds from the first frame.
    """

    width: int
    height: int
    times_s: np.ndarray

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """The frames of these numbers, never falling, each uint8 (height, width, 3) RGB.

        Raises:
            VideoError: a frame cannot be decoded.
        """
        last, picture = -1, None
        for index in indices:
            if picture is None or index != last:
                picture, last = self._frame(index), index
            yield picture

    def whole_frames(self, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Those of `frames` that can be decoded, each with its number; the numbers rise.

        What follows a damaged frame is left out up to the next that stands alone: it is told by what changed since.

        Raises:
            VideoError: none of them can be decoded.
        """
        resume, given, failed = 0, False, None
        for index in indices:
            if index < resume:
                continue
            try:
                picture = self._frame(index)
            except VideoError as error:
                resume, failed = self._resume(index), error
                continue
            given = True
            yield index, picture
        if failed and not given:
            raise failed

    @abstractmethod
    def _frame(self, index: int) -> np.ndarray: ...

    def _resume(self, index: int) -> int:
        """The first frame behind this damaged one that can be decoded without it."""
        return index + 1

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def nearest(times_s: np.ndarray, moments_s: Sequence[float] | np.ndarray) -> np.ndarray:
    """The number of the frame whose time lies nearest to each moment, int64 (moments,)."""
    moments = np.asarray(moments_s, dtype=np.float64)
    after = np.clip(np.searchsorted(times_s, moments), 1, max(1, len(times_s) - 1))
    if len(times_s) == 1:
        return np.zeros(len(moments), dtype=np.int64)
    return after - (moments - times_s[after - 1] <= times_s[after] - moments)


def open_video(path: Path, reader: ReaderName = "decord") -> Reader:
    """Open `path` with the reader that its probe found to work.

    Raises:
        VideoError: the file is no video, or this reader cannot open it.
    """
    return _Decord(path) if reader == "decord" else PyAv(path)


class _Decord(Reader):
    def __init__(self, path: Path):
        try:
            self._video = decord.VideoReader(str(path), num_threads=1)
            starts = self._video.get_frame_timestamp(range(len(self._video)))[:, 0]
            self.height, self.width, _ = self._video[0].shape
        except Exception as error:  # decord raises several unrelated types
            raise VideoError(f"decord cannot open it ({_first_line(error)})") from None
        self.times_s = (starts - starts[0]).astype(np.float64)

    def _frame(self, index: int) -> np.ndarray:
        try:
            return self._video[int(index)].asnumpy()
        except Exception as error:
            raise VideoError(f"frame {index} cannot be decoded ({_first_line(error)})") from None

    def close(self) -> None:
        del self._video


class PyAv(Reader):
    """A video read through PyAV, with what FFmpeg knows of the file.

    Attributes:
        codec: FFmpeg's name of it.
        rotation: degrees counterclockwise from the stored to the displayed frame: 0, 90, 180 or 270.
        promised_s: how long the file's header says the video is; 0 where it does not say.
        has_open_groups: whether frames are shown before the keyframe that they follow in the file. After a seek to it
            they cannot be decoded, and decord, which leaves them out, counts wrongly from there on.
    """

    def __init__(self, path: Path):
        self._container = open_container(path)
        try:
            if not self._container.streams.video:
                raise VideoError("holds no video track")
            self._stream = self._container.streams.video[0]
            self._stream.codec_context.thread_count = 1
            self._pts, self._keyframes, self._seek_stamps = self._index()
            first = self._decode_from_start()
        except FFmpegError as error:
            self.close()
            raise VideoError(f"cannot be decoded ({error.strerror})") from None
        except VideoError:
            self.close()
            raise
        self.codec = self._stream.codec_context.codec.name
        self.rotation = round(first.rotation / 90) * 90 % 360
        turned = self.rotation in (90, 270)
        self.width, self.height = (first.height, first.width) if turned else (first.width, first.height)
        self.times_s = (self._pts - self._pts[0]) * float(self._time_base)
        self.promised_s = float((self._stream.duration or 0) * self._time_base)

    @property
    def _time_base(self) -> Fraction:
        return self._stream.time_base or Fraction(1, 1)

    def _index(self) -> tuple[np.ndarray, list[int], dict[int, int]]:
        """Presentation stamps of all whole frames, those one can seek to, and what seeking takes for these."""
        packets = [
            p for p in self._container.demux(self._stream) if p.size and not p.is_corrupt and not p.is_discard
        ]
        if not packets:
            raise VideoError("holds no whole frame")
        self._stamped = self._container.format.name not in _UNSTAMPED and all(
            p.pts is not None for p in packets
        )
        self.has_open_groups = self._stamped and _has_open_groups(packets)
        if not self._stamped:
            return self._counted(len(packets)), [], {}
        stamps = sorted({packet.pts for packet in packets if packet.pts is not None})
        keyframes = {p.pts: p.dts for p in packets if p.is_keyframe and p.pts is not None}
        if self._container.format.name in _SOUGHT_BY_DECODING:
            first = min((p.dts for p in packets if p.dts is not None), default=None)
            seek_stamps = {
                pts: dts for pts, dts in ({stamps[0]: first} | keyframes).items() if dts is not None
            }
        else:
            seek_stamps = {}
        return np.array(stamps, dtype=np.int64), sorted(keyframes), seek_stamps

    def _counted(self, count: int) -> np.ndarray:
        rate = self._stream.average_rate or Fraction(25)
        return np.round(np.arange(count) / float(rate * self._time_base)).astype(np.int64)

    def _decode_from_start(self) -> av.VideoFrame:
        self._seek(int(self._pts[0]))
        frame = next(self._decoder, None)
        if frame is None:
            raise VideoError("holds no frame that can be decoded")
        self._seek(int(self._pts[0]))
        return frame

    def _seek(self, stamp: int) -> None:
        to = self._seek_stamps.get(stamp, stamp) if self._stamped else 0
        self._container.seek(to, stream=self._stream, backward=True)
        self._decoder = self._container.decode(self._stream)
        self._position = -1
        """The frame decoded last; -1 before the first."""

    def _frame(self, index: int) -> np.ndarray:
        try:
            frame = self._find(int(index))
        except FFmpegError as error:
            self._position = len(self._pts)  # the decoder has ended: whatever comes next is sought
            raise VideoError(f"frame {index} cannot be decoded ({error.strerror})") from None
        if frame is None:
            raise VideoError(f"frame {index} at {self.times_s[index]:.3f} s cannot be decoded")
        return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), self.rotation // 90))

    def _find(self, index: int) -> av.VideoFrame | None:
        if not self._stamped:
            return self._count_to(index)
        stamp = int(self._pts[index])
        keyframe = (
            self._keyframes[max(0, bisect_right(self._keyframes, stamp) - 1)] if self._keyframes else None
        )
        passed = index <= self._position
        if passed or (keyframe is not None and keyframe > self._pts[max(self._position, 0)]):
            self._seek(int(self._pts[0]) if keyframe is None else keyframe)
        frame = self._decode_to(stamp, index)
        if frame is None:  # a container whose seeking overshoots
            self._seek(int(self._pts[0]))
            frame = self._decode_to(stamp, index)
        return frame

    def _resume(self, index: int) -> int:
        place = bisect_right(self._keyframes, int(self._pts[index]))
        if place == len(self._keyframes):
            return len(self._pts)
        return int(np.searchsorted(self._pts, self._keyframes[place]))

    def _decode_to(self, stamp: int, index: int) -> av.VideoFrame | None:
        for frame in self._decoder:
            if frame.pts is not None and frame.pts >= stamp:
                self._position = index
                return frame if frame.pts == stamp else None
        return None

    def _count_to(self, index: int) -> av.VideoFrame | None:
        if index <= self._position:
            self._seek(0)
        for frame in self._decoder:
            self._position += 1
            if self._position == index:
                return frame
        return None

    def close(self) -> None:
        self._container.close()


def open_container(path: Path) -> InputContainer:
    """Open `path` with FFmpeg, which may read this one local file and nothing else.

    Raises:
        VideoError: not a media file.
    """
    if path.stat().st_size == 0:
        raise VideoError("is empty (0 bytes)")
    try:
        container = av.open(str(path), options={"protocol_whitelist": "file"}, metadata_errors="ignore")
    except (FFmpegError, ValueError) as error:
        raise VideoError(f"is not a video that FFmpeg can open ({_first_line(error)})") from None
    if _PLAYLISTS & set(container.format.name.split(",")):
        container.close()
        raise VideoError(f"is not a video but a list or text ({container.format.name})")
    return container


def _first_line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.strip().splitlines()[0][:200]


def read_audio(path: Path, rate_hz: int, duration_s: float) -> tuple[np.ndarray, float] | None:
    """The sound of a video as mono samples.

    Args:
        path: the video file.
        rate_hz: rate to resample to.
        duration_s: of the pictures; sound that lies apart from them by its stamps is left out.

    Returns:
        Samples, float32 (samples,) in -1..1, the mean of the channels, pauses of the track filled with
        silence; and the time of the first one, in seconds from the first video frame. None without a track,
        with one that cannot be decoded, or with a silent one (see `SILENCE`).
    """
    try:
        with open_container(path) as container:
            if not container.streams.audio:
                return None
            origin_s = _first_frame_s(container)
            pieces = [
                (begin_s - origin_s, samples)
                for begin_s, samples in _pieces(container, rate_hz)
                # A false stamp would be days of silence.
                if begin_s - origin_s + len(samples) / rate_hz > -_BESIDE_S
                and begin_s - origin_s < duration_s + _BESIDE_S
            ]
    except (FFmpegError, VideoError):
        return None
    if not pieces or max(np.abs(samples).max(initial=0) for _, samples in pieces) <= SILENCE:
        return None
    start_s = min(begin_s for begin_s, _ in pieces)
    places = [round((begin_s - start_s) * rate_hz) for begin_s, _ in pieces]
    track = np.zeros(max(p + len(s) for p, (_, s) in zip(places, pieces, strict=True)), dtype=np.float32)
    for place, (_, samples) in zip(places, pieces, strict=True):
        track[place : place + len(samples)] = samples
    return track, start_s


def _first_frame_s(container: InputContainer) -> float:
    """When the first video frame is shown on the container's clock, in seconds; 0 without video."""
    if not container.streams.video:
        return 0.0
    stream = container.streams.video[0]
    stamps = []
    for packet in container.demux(stream):
        if packet.pts is not None and not packet.is_discard:
            stamps.append(packet.pts)
        if len(stamps) == 32:  # the first frame shown may be stored after some that follow it
            break
    container.seek(0)
    return float(min(stamps, default=0) * (stream.time_base or 0))


def audio_frames(container: InputContainer) -> Iterator[av.AudioFrame]:
    """The sound track's decodable frames; damaged packets are left out."""
    for packet in container.demux(container.streams.audio[0]):
        with contextlib.suppress(FFmpegError):
            yield from packet.decode()


def _pieces(container: InputContainer, rate_hz: int) -> Iterator[tuple[float, np.ndarray]]:
    """Unbroken stretches of sound: (time of the first sample on the container's clock, samples).

    A stretch ends where the stamps have left the count of its samples, by one pause or by many small ones.
    """
    run: _Run | None = None
    for frame in audio_frames(container):
        due_s = run.due_s if run else 0.0
        time_s = due_s if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)
        if run and (abs(time_s - due_s) > _GAP_S or run.kind != _kind(frame)):
            yield run.start_s, run.samples()
            run = None
        if not run:
            run = _Run(time_s, frame, rate_hz)
        run.take(frame)
    if run:
        yield run.start_s, run.samples()


def _kind(frame: av.AudioFrame) -> tuple[int, str, str]:
    return frame.sample_rate, frame.layout.name, frame.format.name


class _Run:
    """A stretch of sound while it grows, resampled frame by frame: as decoded it would be many times as large."""

    def __init__(self, start_s: float, first: av.AudioFrame, rate_hz: int):
        self.start_s, self.kind = start_s, _kind(first)
        self._count = 0
        self._resampler = av.AudioResampler(format="fltp", layout=first.layout, rate=rate_hz)
        self._blocks: list[np.ndarray] = []

    @property
    def due_s(self) -> float:
        """When the next sample is heard if nothing is missing."""
        return self.start_s + self._count / self.kind[0]

    def take(self, frame: av.AudioFrame | None) -> None:
        """Add a frame; None is the end."""
        self._count += frame.samples if frame else 0
        self._blocks += [out.to_ndarray().mean(axis=0) for out in self._resampler.resample(frame)]

    def samples(self) -> np.ndarray:
        """All of them, float32 (samples,)."""
        self.take(None)
        return (
            np.concatenate(self._blocks).astype(np.float32) if self._blocks else np.zeros(0, dtype=np.float32)
        )


def _has_open_groups(packets: Sequence[av.Packet]) -> bool:
    keyframe = None
    for packet in packets:
        if packet.is_keyframe:
            keyframe = packet.pts
        elif keyframe is not None and packet.pts is not None and packet.pts < keyframe:
            return True
    return False
