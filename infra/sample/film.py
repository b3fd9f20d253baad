"""Writes a video file, H.264 with or without AAC, whose bytes depend on content and libraries only."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_CRF = 26  # x264's constant rate factor; the whole sample must stay small
_AUDIO_BITS = {1: 24_000, 2: 40_000}  # a second, by channels
_BLOCK = 1024  # samples an AAC frame takes


def write_film(
    path: Path, frames: Iterable[np.ndarray], fps: int, sound: np.ndarray | None, audio_hz: int
) -> None:
    """Encode RGB `frames` (height, width, 3; uint8) and `sound` (channels, samples; float32) to an mp4.

    One encoder thread and no time stamps or version marks in the container, so that equal input gives equal
    bytes; and x264 without assembly, which reads memory past the edge of pictures whose sides no 16 divides:
    measured, the same 160x120 frames gave four different files in four runs.
    """
    with av.open(
        str(path), "w", format="mp4", options={"fflags": "+bitexact", "movflags": "+faststart"}
    ) as film:
        picture = film.add_stream("libx264", rate=fps)
        picture.pix_fmt = "yuv420p"
        picture.options = {"crf": str(_CRF), "preset": "slow", "flags": "+bitexact", "x264-params": "asm=0"}
        picture.codec_context.thread_count = 1
        voice = None
        if sound is not None:
            voice = film.add_stream("aac", rate=audio_hz, layout="mono" if len(sound) == 1 else "stereo")
            voice.bit_rate = _AUDIO_BITS[len(sound)]
            voice.options = {"flags": "+bitexact"}
            voice.codec_context.thread_count = 1
        for number, pixels in enumerate(frames):
            if number == 0:
                picture.height, picture.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            film.mux(picture.encode(frame))
        film.mux(picture.encode())
        if voice is not None and sound is not None:
            for block in _blocks(sound, audio_hz):
                film.mux(voice.encode(block))
            film.mux(voice.encode())


def _blocks(sound: np.ndarray, audio_hz: int) -> Iterable[av.AudioFrame]:
    for start in range(0, sound.shape[1], _BLOCK):
        block = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(sound[:, start : start + _BLOCK]),
            format="fltp",
            layout="mono" if len(sound) == 1 else "stereo",
        )
        block.sample_rate, block.pts, block.time_base = audio_hz, start, Fraction(1, audio_hz)
        yield block
