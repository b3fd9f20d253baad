"""EPIC-KITCHENS-100 as published (Damen et al., IJCV 2022): its annotation CSV files beside the videos.

The raw folder holds EPIC_100_train.csv, EPIC_100_validation.csv, EPIC_100_verb_classes.csv and
EPIC_100_noun_classes.csv, optionally the tail lists and the unseen participants, and the videos in the layout
of the official download (P01/videos/P01_01.MP4) or below videos/.

The official validation set becomes `test`, since the test labels are not public; `val` is carved from the
training participants. Most participants are in both official sets, so a group is a participant within a set.
With the validation file alone, its clips are split by participant.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from tasks.datasets.annotations import AnnotatedClip, Dataset, safe_name
from tasks.datasets.table import read_table
from tasks.errors import UserError

_TRAIN, _VALIDATION = "EPIC_100_train.csv", "EPIC_100_validation.csv"
_HEADS = ("verb", "noun")
_COLUMNS = (
    "narration_id",
    "participant_id",
    "video_id",
    "start_timestamp",
    "stop_timestamp",
    "verb_class",
    "noun_class",
)
_CLOCK = re.compile(r"(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)")
_UNSEEN, _TAIL = "unseen_participant", "tail_class"


class EpicKitchens(Dataset):
    """Heads verb (97 classes) and noun (300); slices: unseen participants, and tail verbs or nouns."""

    every_class_trains = False

    def recognises(self, raw: Path) -> bool:
        return any((raw / name).exists() for name in (_TRAIN, _VALIDATION))

    def heads(self, raw: Path) -> dict[str, list[str]]:
        return {head: self._classes(raw, head) for head in _HEADS}

    def slices(self, raw: Path) -> list[str]:
        files = {_UNSEEN: _unseen_file(raw), _TAIL: _tail_file(raw, "verb")}
        return [name for name, file in files.items() if file.exists()]

    def clips(self, raw: Path, heads: Iterable[str]) -> list[AnnotatedClip]:
        heads = list(heads)
        if heads != list(_HEADS):
            raise UserError(
                f"EPIC-KITCHENS has the heads verb and noun, params name {', '.join(heads)}",
                remedy="set data.heads in params.yaml, or let `understudy import` do it",
            )
        classes = self.heads(raw)
        unseen = _listed(_unseen_file(raw), "participant_id")
        tails = {head: _listed(_tail_file(raw, head), head) for head in _HEADS}
        files = [raw / name for name in (_TRAIN, _VALIDATION) if (raw / name).exists()]
        return [
            _clip(file, row, cells, classes, unseen, tails, official=len(files) == 2)
            for file in files
            for row, cells in read_table(file, _COLUMNS)
        ]

    def video_path(self, raw: Path, video: str) -> Path:
        participant = video.partition("_")[0]
        folders = (raw / participant / "videos", raw / "videos" / participant, raw / "videos")
        places = [folder / f"{video}{suffix}" for folder in folders for suffix in (".MP4", ".mp4")]
        return next((place for place in places if place.exists()), places[0])

    def _classes(self, raw: Path, head: str) -> list[str]:
        file = raw / f"EPIC_100_{head}_classes.csv"
        names: list[str] = []
        for row, cells in read_table(file, ("id", "key")):
            if cells["id"] != str(len(names)):
                raise UserError(f"id is {cells['id']!r}, expected {len(names)}", file=file, row=row)
            names.append(cells["key"])
        return names


def _clip(
    file: Path,
    row: int,
    cells: dict[str, str],
    classes: dict[str, list[str]],
    unseen: set[str],
    tails: dict[str, set[str]],
    official: bool,
) -> AnnotatedClip:
    ids = {head: cells[f"{head}_class"] for head in _HEADS}
    participant = cells["participant_id"]
    held_out = file.name == _VALIDATION
    return AnnotatedClip(
        clip_id=safe_name(cells["narration_id"], "narration_id", file, row),
        video=safe_name(cells["video_id"], "video_id", file, row),
        start_s=_clock(cells["start_timestamp"], "start_timestamp", file, row),
        stop_s=_clock(cells["stop_timestamp"], "stop_timestamp", file, row),
        labels={head: _label(ids[head], classes[head], head, file, row) for head in _HEADS},
        group=f"{participant} validation" if official and held_out else participant,
        split="" if not official else "test" if held_out else "train",
        slices={
            _UNSEEN: _yes(participant in unseen),
            _TAIL: _yes(any(ids[head] in tails[head] for head in _HEADS)),
        },
        file=file,
        row=row,
    )


def _clock(text: str, column: str, file: Path, row: int) -> float:
    """Seconds of a time of day such as 00:05:27.840."""
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise UserError(f"{column} is {text!r}, not hours:minutes:seconds", file=file, row=row)
    hours, minutes, seconds = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _label(number: str, classes: list[str], head: str, file: Path, row: int) -> str:
    if not number:
        return ""
    if not (number.isascii() and number.isdigit()) or int(number) >= len(classes):
        raise UserError(
            f"{head}_class is {number!r}, there are {len(classes)}",
            file=file,
            row=row,
            remedy="check the class file",
        )
    return classes[int(number)]


def _listed(file: Path, column: str) -> set[str]:
    return {cells[column] for _, cells in read_table(file, (column,))} if file.exists() else set()


def _unseen_file(raw: Path) -> Path:
    return raw / "EPIC_100_unseen_participant_ids_validation.csv"


def _tail_file(raw: Path, head: str) -> Path:
    return raw / f"EPIC_100_tail_{head}s.csv"


def _yes(there: bool) -> str:
    return "yes" if there else "no"
