"""The project's own raw format: `annotations.csv`, `videos/` and, where there are some, `detections/`."""

from collections.abc import Iterable
from pathlib import Path

from tasks.datasets.annotations import AnnotatedClip, Dataset, grouped, safe_name, seconds
from tasks.datasets.table import header_of, read_table
from tasks.errors import UserError
from tasks.names import named_file

_COLUMNS = ("clip_id", "video", "start_s", "stop_s")
_OPTIONAL = ("group", "split")
_HEADS = (("action",), ("verb", "noun"))
_MOST_SLICE_VALUES = 20


class Folder(Dataset):
    """`annotations.csv`: clip_id, video, start_s, stop_s, a column a head; maybe group, split and slices."""

    every_class_trains = True

    def recognises(self, raw: Path) -> bool:
        return (raw / "annotations.csv").exists()

    def heads(self, raw: Path) -> dict[str, list[str]]:
        """`action`, or `verb` and `noun`; classes in sorted order, numbers by value."""
        file = raw / "annotations.csv"
        header = header_of(file)
        if len(header) == 1:
            raise UserError("one column found", file=file, row=1, remedy="separate columns with commas")
        names = next((names for names in _HEADS if set(names) <= set(header)), None)
        if names is None:
            raise UserError(
                "has no label column",
                file=file,
                row=1,
                remedy="name a column action, or two columns verb and noun",
            )
        rows = [cells for _, cells in read_table(file, _COLUMNS) if cells.get("split") != "unlabelled"]
        return {name: sorted({cells[name] for cells in rows} - {""}, key=_natural) for name in names}

    def slices(self, raw: Path) -> list[str]:
        """The columns left over that take 2 to 20 values."""
        file = raw / "annotations.csv"
        rows = [cells for _, cells in read_table(file, _COLUMNS)]
        spoken_for = {*_COLUMNS, *_OPTIONAL, *(name for names in _HEADS for name in names)}
        return [
            column
            for column in header_of(file)
            if column not in spoken_for
            and 2 <= len({cells[column] for cells in rows} - {""}) <= _MOST_SLICE_VALUES
        ]

    def clips(self, raw: Path, heads: Iterable[str]) -> list[AnnotatedClip]:
        file, heads = raw / "annotations.csv", list(heads)
        spoken_for = {*_COLUMNS, *_OPTIONAL, *heads}
        clips = [
            AnnotatedClip(
                clip_id=safe_name(cells["clip_id"], "clip_id", file, row),
                video=safe_name(cells["video"], "video", file, row),
                start_s=seconds(cells["start_s"], "start_s", file, row),
                stop_s=seconds(cells["stop_s"], "stop_s", file, row),
                labels={head: cells[head] for head in heads},
                group=cells.get("group", ""),
                split=cells.get("split", ""),
                slices={name: value for name, value in cells.items() if name not in spoken_for},
                file=file,
                row=row,
            )
            for row, cells in read_table(file, (*_COLUMNS, *heads))
        ]
        return grouped(clips)

    def video_path(self, raw: Path, video: str) -> Path:
        return named_file(raw / "videos", video)


def _natural(label: str) -> tuple[bool, int, str]:
    number = label.isascii() and label.isdigit()
    return not number, int(label) if number else 0, label
