"""What a student says of many videos, as one file: Parquet, CSV or JSON lines; killed, it goes on where it stopped.

Finished batches stand in a journal beside the file, OUT.partial, one line a batch. Started again with the same
model, videos and options, the batches are cut the same way, so that the file comes out the same.
"""

import csv
import fcntl
import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet

from tasks.atomic import digest, new_file
from tasks.errors import UserError
from tasks.modalities.modality import Span
from tasks.predict import Answering, Prediction, predictions, spelled
from tasks.progress import Progress

VIDEOS = {
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv",
    ".ts", ".webm", ".wmv",
}  # fmt: skip
"""What files end in that are taken from a folder; a file that is named may end in anything."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Written:
    """What came out.

    Attributes:
        videos: in the file.
        failed: of them, cannot be read.
        resumed: of them, were done before a run that was killed.
    """

    videos: int
    failed: int
    resumed: int


def find(asked: Iterable[str]) -> list[Path]:
    """The videos that arguments name: files, folders with all below them, patterns (** is any depth), each once.

    Raises:
        UserError: a folder without videos, or a pattern that nothing fits.
    """
    found: dict[Path, None] = {}
    for name in asked:
        path = Path(name)
        if path.is_dir():
            inside = sorted(
                file for file in path.rglob("*") if file.suffix.lower() in VIDEOS and file.is_file()
            )
            if not inside:
                raise UserError("holds no video", file=name, remedy="name the files themselves")
            found |= dict.fromkeys(inside)
        elif glob.has_magic(name) and not path.exists():
            fitting = sorted(file for file in map(Path, glob.glob(name, recursive=True)) if file.is_file())
            if not fitting:
                raise UserError("no file fits the pattern", file=name)
            found |= dict.fromkeys(fitting)
        else:
            found[path] = None
    return list(found)


def write(
    videos: Sequence[Path], student: Answering, out: Path, batch: int, top: int | None, span: Span | None
) -> Written:
    """Classify `videos` and write `out`, whole or not at all.

    A row a video: video, start_s, stop_s, error (empty where all went well), for each head its most probable
    class and the probabilities (class → probability, the most probable first), and the model's name, version
    and digest.

    Args:
        videos, batch, top, span: as for `tasks.predict.predictions`.
        student: who answers.
        out: ends in .parquet, .csv or .jsonl.

    Raises:
        UserError: another ending, the folder is not there, or another process writes the same file.
    """
    form = _FORMS.get(out.suffix.lower())
    if form is None:
        raise UserError("has an unknown ending", file=out, remedy=f"end it in {', '.join(_FORMS)}")
    if not out.parent.is_dir():
        raise UserError("its folder is not there", file=out, remedy=f"create {out.parent}")
    heads = list(student.committee.spec.heads)
    key = digest(student.digest, [_identity(video) for video in videos], batch, top, span)
    with _journal(out) as journal:
        done = _read(journal, key)
        resumed = sum(map(len, done))
        with Progress("predict", len(videos), "videos") as progress:
            progress.advance(resumed)
            for several in predictions(videos[resumed:], student.committee, batch, top, span):
                done.append([_record(found, student, heads) for found in several])
                _append(journal, done[-1])
                progress.advance(len(several))
        records = [record for several in done for record in several]
        with new_file(out) as temporary:
            form(records, heads, temporary)
        _beside(out).unlink(missing_ok=True)
    return Written(len(records), sum(record["error"] is not None for record in records), resumed)


def _identity(video: Path) -> tuple[str, int, int]:
    """Path, size and time of change: what tells one video from another without reading it."""
    try:
        about = video.stat()
    except (OSError, ValueError):
        return spelled(video), 0, 0
    return spelled(video), about.st_size, about.st_mtime_ns


def _record(found: Prediction, student: Answering, heads: Sequence[str]) -> Record:
    record: Record = {
        "video": found.video,
        "start_s": None if found.error else found.start_s,
        "stop_s": None if found.error else found.stop_s,
        "error": found.error,
    }
    for head in heads:
        ranked = found.heads.get(head, [])
        record[head] = ranked[0][0] if ranked else None
        record[f"{head}_probs"] = dict(ranked)
    return record | {"model": student.name, "version": student.version, "digest": student.digest}


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


@contextmanager
def _journal(out: Path) -> Iterator[IO[bytes]]:
    """The journal of `out`, open to read and append, held by this process alone."""
    with _beside(out).open("a+b") as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "is being written by another process", file=out, remedy="wait for it, or name another file"
            ) from None
        yield journal


def _read(journal: IO[bytes], key: str) -> list[list[Record]]:
    """The finished batches of a run with the same key; the journal is left ready for the next one."""
    journal.seek(0)
    first = journal.readline()
    batches: list[list[Record]] = []
    whole = len(first)
    if first == _line({"key": key}):
        for line in journal:
            if not line.endswith(b"\n"):
                break  # the run was killed while it wrote this one, maybe within a letter
            batches.append(json.loads(line))
            whole += len(line)
        os.truncate(journal.fileno(), whole)
    else:
        os.truncate(journal.fileno(), 0)
        _append(journal, {"key": key})
    return batches


def _append(journal: IO[bytes], value: Any) -> None:
    journal.write(_line(value))
    journal.flush()
    os.fsync(journal.fileno())


def _line(value: Any) -> bytes:
    return _json(value).encode() + b"\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write_json_lines(records: Sequence[Record], heads: Sequence[str], file: Path) -> None:
    file.write_bytes(b"".join(map(_line, records)))


def _write_csv(records: Sequence[Record], heads: Sequence[str], file: Path) -> None:
    """Probabilities are JSON."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(_schema(heads).names), lineterminator="\n")
        writer.writeheader()
        for record in records:
            probs = {f"{head}_probs": _json(record[f"{head}_probs"]) for head in heads}
            writer.writerow(record | probs)


def _write_parquet(records: Sequence[Record], heads: Sequence[str], file: Path) -> None:
    """Probabilities are maps."""
    pyarrow.parquet.write_table(pa.Table.from_pylist(list(records), _schema(heads)), file)


def _schema(heads: Sequence[str]) -> pa.Schema:
    of_heads = [
        field
        for head in heads
        for field in ((head, pa.string()), (f"{head}_probs", pa.map_(pa.string(), pa.float64())))
    ]
    return pa.schema(
        [
            ("video", pa.string()),
            ("start_s", pa.float64()),
            ("stop_s", pa.float64()),
            ("error", pa.string()),
            *of_heads,
            ("model", pa.string()),
            ("version", pa.string()),
            ("digest", pa.string()),
        ]
    )


_FORMS: Mapping[str, Callable[[Sequence[Record], Sequence[str], Path], None]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
}
