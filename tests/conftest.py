"""Tiny real videos and raw folders, made with PyAV where a test asks for them."""

import csv
import os
import struct
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

# Before anything imports torch, in this process, xdist's and every one that a test starts: threads of several processes
# that share two cores wait for each other, and small sums take a hundred times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where there is a GPU, too: a GPU rounds differently. What needs one says so (marker gpu).
os.environ.setdefault("UNDERSTUDY_DEVICE", "cpu")

LEVEL_STEP = 8
"""Frame n of a made video is grey of this many levels times n."""
_TURNED = bytes.fromhex("00000000 00010000 00000000 ffff0000 00000000 00000000 00000000 00000000 40000000")
"""The display matrix of a film made with the phone upright: shown a quarter turn clockwise."""


class Films:
    """Makes and marks tiny videos."""

    @staticmethod
    def grey(count: int, size: tuple[int, int] = (64, 48)) -> list[np.ndarray]:
        """`count` frames of rising grey, so that a decoded frame tells its number."""
        return [np.full((size[1], size[0], 3), LEVEL_STEP * number, np.uint8) for number in range(count)]

    @staticmethod
    def number(frame: np.ndarray) -> int:
        """Which frame of `grey` this one is."""
        return round(float(frame.mean()) / LEVEL_STEP)

    @staticmethod
    def write(
        path: Path,
        frames: Iterable[np.ndarray],
        rate_hz: int = 10,
        codec: str = "libx264",
        sound: np.ndarray | None = None,
        sound_rate_hz: int = 16000,
        options: dict[str, str] | None = None,
    ) -> Path:
        """Encode uint8 RGB frames and float32 (channels, samples) sound into the suffix's container."""
        frames = list(frames)
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            video = container.add_stream(codec, rate=rate_hz, options=options or {})
            video.height, video.width = frames[0].shape[:2]
            video.pix_fmt = "yuv420p"
            audio = None
            if sound is not None:
                audio = container.add_stream(
                    "aac", rate=sound_rate_hz, layout="stereo" if len(sound) == 2 else "mono"
                )
            for number, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, rate_hz)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
            if audio is not None and sound is not None:
                block = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(sound, np.float32), format="fltp", layout=audio.layout.name
                )
                block.sample_rate, block.pts = sound_rate_hz, 0
                container.mux(audio.encode(block))
                container.mux(audio.encode(None))
        return path

    @staticmethod
    def turn_upright(path: Path) -> None:
        """Mark an MP4 to be shown a quarter turn clockwise, as phones do."""
        content = bytearray(path.read_bytes())
        matrix = content.index(b"tkhd") + 44
        content[matrix : matrix + 36] = _TURNED
        path.write_bytes(content)

    @staticmethod
    def tone(seconds: float, rate_hz: int = 16000, hertz: float = 440.0) -> np.ndarray:
        """A mono tone of half scale, float32 (1, samples)."""
        moments = np.arange(round(seconds * rate_hz)) / rate_hz
        return (0.5 * np.sin(2 * np.pi * hertz * moments)).astype(np.float32)[None]


COLUMNS = ("clip_id", "video", "start_s", "stop_s", "action", "group")


def write_annotations(raw: Path, rows: Iterable[Iterable[object]], columns: Iterable[str] = COLUMNS) -> Path:
    """Write annotations.csv below `raw`."""
    raw.mkdir(parents=True, exist_ok=True)
    with (raw / "annotations.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(rows)
    return raw / "annotations.csv"


@pytest.fixture(scope="session")
def films() -> type[Films]:
    """The maker of tiny videos."""
    return Films


@pytest.fixture(scope="session")
def one_second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of ten frames in one second, with a tone."""
    return Films.write(tmp_path_factory.mktemp("video") / "one.mp4", Films.grey(10), sound=Films.tone(1.0))


@pytest.fixture
def raw_folder(tmp_path: Path, one_second: Path) -> Callable[..., Path]:
    """Makes data/raw below the test's folder: `rows` of annotations over copies of `one_second`, no two alike."""

    def make(rows: list[list[object]] | None = None, columns: Iterable[str] = COLUMNS) -> Path:
        raw = tmp_path / "data" / "raw"
        (raw / "videos").mkdir(parents=True, exist_ok=True)
        if rows is None:
            rows = [
                [f"c{n}", f"v{n}.mp4", 0.0, 1.0, "cut" if n % 2 else "wash", f"g{n // 2}"] for n in range(12)
            ]
        write_annotations(raw, rows, columns)
        place = list(columns).index("video")
        for row in rows:
            name = str(row[place])
            if name.endswith(".mp4") and not name.startswith(("/", ".")):
                target = raw / "videos" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                # A box that players skip: videos of the same bytes would be the same footage.
                note = name.encode().ljust(64)
                box = struct.pack(">I4s", 8 + len(note), b"free") + note
                target.write_bytes(one_second.read_bytes() + box)
        return raw

    return make
