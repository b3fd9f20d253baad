"""Extracted modalities on disk: a few Arrow files, mapped into memory, random access by video and time.

A folder holds `shard-<n>.arrow` (rows: video, time_s, aspect, payload) and `manifest.json` (the modality's
params and the digest of every shard). A video's shard follows from a stable hash of its name, so new videos
touch only their shard.
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.atomic import digest, new_file

SCHEMA = pa.schema(
    [
        ("video", pa.dictionary(pa.int32(), pa.string())),
        ("time_s", pa.float64()),
        ("aspect", pa.float32()),
        ("payload", pa.large_binary()),
    ]
)
_ROWS_A_BATCH = 4096


@dataclass(frozen=True)
class Row:
    """One moment of one video as a modality stores it."""

    time_s: float
    aspect: float
    """Width over height of the frame."""
    payload: bytes


def shard_of(video: str, count: int) -> int:
    """Which of `count` shards holds `video`; depends on nothing but the name."""
    return int.from_bytes(hashlib.sha256(video.encode()).digest()[:8], "little") % count


def write_shard(file: Path, rows: Iterable[tuple[str, Row]]) -> None:
    """Write rows of (video, row), grouped by video and rising in time, to one Arrow file, whole or not at all."""
    with new_file(file) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
        with pa.ipc.new_file(sink, SCHEMA, options=options) as writer:
            for batch in _batches(rows):
                writer.write_batch(batch)


def _batches(rows: Iterable[tuple[str, Row]]) -> Iterator[pa.RecordBatch]:
    names: list[str] = []
    pending: list[tuple[int, Row]] = []

    def flush() -> pa.RecordBatch:
        columns = [
            pa.DictionaryArray.from_arrays(
                pa.array([i for i, _ in pending], pa.int32()), pa.array(names, pa.string())
            ),
            pa.array([row.time_s for _, row in pending], pa.float64()),
            pa.array([row.aspect for _, row in pending], pa.float32()),
            pa.array([row.payload for _, row in pending], pa.large_binary()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)

    for video, row in rows:
        if not names or names[-1] != video:
            names.append(video)
        pending.append((len(names) - 1, row))
        if len(pending) == _ROWS_A_BATCH:
            yield flush()
            pending.clear()
    if pending:
        yield flush()


class Rows:
    """The rows of one video: `times_s` (rows,) rising, `aspect`, and each payload without a copy.

    Args:
        payloads: those of all rows, in order, one array or several.
    """

    def __init__(self, times_s: np.ndarray, aspect: float, payloads: list[pa.Array]):
        self.times_s = times_s
        self.aspect = aspect
        self._payloads = payloads

    def payload(self, number: int) -> memoryview:
        """The payload of row `number`."""
        for array in self._payloads:  # of a video, one or two
            if number < len(array):
                return memoryview(array[number].as_buffer())
            number -= len(array)
        raise IndexError("there is no such row")

    def nearest(self, time_s: float) -> int:
        """The row whose time lies nearest to `time_s`."""
        after = bisect_left(self.times_s, time_s)
        if after == 0:
            return 0
        if after == len(self.times_s):
            return after - 1
        return after if self.times_s[after] - time_s < time_s - self.times_s[after - 1] else after - 1


class Shards:
    """Read access to data/modalities/<name>."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self._rows: dict[str, Rows] = {}
        for shard in self.manifest["shards"]:
            self._open(folder / shard["file"])

    @property
    def digest(self) -> str:
        """Names the content: the same videos, spans and params give the same digest."""
        return digest(self.manifest)

    def _open(self, file: Path) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        runs: dict[str, list[tuple[np.ndarray, float, pa.Array]]] = {}
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            videos, payloads = batch.column("video"), batch.column("payload")
            times_s, aspects = (batch.column(name).to_numpy() for name in ("time_s", "aspect"))
            # By runs of rows and not row by row: a large data set has ten millions.
            numbers = videos.indices.to_numpy()
            ends = [*(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
            for first, end in zip([0, *ends], ends, strict=False):
                run = times_s[first:end], float(aspects[first]), payloads.slice(first, end - first)
                runs.setdefault(videos[first].as_py(), []).append(run)
        for video, found in runs.items():
            times, (aspect, *_), arrays = zip(*found, strict=True)
            self._rows[video] = Rows(
                np.concatenate(times) if len(times) > 1 else times[0], aspect, list(arrays)
            )

    def rows(self, video: str) -> Rows | None:
        """The rows of `video`; None where the modality is missing from it."""
        return self._rows.get(video)
