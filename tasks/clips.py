"""The index: which clips there are, when they start and stop, what they show. Plain CSV, read and written here."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tasks.atomic import new_file

NO_LABEL = -1
"""Stands for the class where nobody labelled the clip."""

Split = Literal["train", "val", "test", "unlabelled"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
"""The splits of labelled clips; the labels of unlabelled ones are not looked at."""


@dataclass(frozen=True)
class Clip:
    """One stretch of a video. Times in seconds from the video's first frame; unlabelled ones have empty labels."""

    clip_id: str
    video: str
    start_s: float
    stop_s: float
    group: str
    split: Split
    labels: Mapping[str, str]
    slices: Mapping[str, str]

    @property
    def labelled(self) -> bool:
        """Whether it has labels."""
        return self.split != "unlabelled"

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.stop_s - self.start_s


@dataclass(frozen=True)
class Video:
    """What probing found of one video file."""

    video: str
    sha256: str
    size_bytes: int
    codec: str
    width: int
    height: int
    rotation: int
    rate_hz: float
    duration_s: float
    reader: Literal["decord", "pyav"]
    audio_rate_hz: int
    """0 where there is no sound track that can be decoded, or nothing but silence on it."""
    detections: bool
    """Whether raw/detections holds a file for it."""
    detections_sha256: str
    """Of that file; empty where there is none."""


_CLIP_COLUMNS = ("clip_id", "video", "start_s", "stop_s", "group", "split")
_LABEL, _SLICE = "label:", "slice:"


def write_clips(file: Path, clips: Iterable[Clip], heads: Iterable[str], slices: Iterable[str]) -> None:
    """Write clips.csv, one row a clip, labels and slices as columns `label:<head>` and `slice:<name>`."""
    heads, slices = list(heads), list(slices)
    with new_file(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*_CLIP_COLUMNS, *(_LABEL + h for h in heads), *(_SLICE + s for s in slices)])
        for clip in clips:
            writer.writerow(
                [clip.clip_id, clip.video, repr(clip.start_s), repr(clip.stop_s), clip.group, clip.split]
                + [clip.labels[head] for head in heads]
                + [clip.slices.get(name, "") for name in slices]
            )


def read_clips(index: Path, split: Split | None = None) -> list[Clip]:
    """The clips of data/index, in the order of the file, of one split or all."""
    with (index / "clips.csv").open(newline="", encoding="utf-8") as stream:
        clips = [
            Clip(
                clip_id=row["clip_id"],
                video=row["video"],
                start_s=float(row["start_s"]),
                stop_s=float(row["stop_s"]),
                group=row["group"],
                split=row["split"],  # type: ignore[arg-type]  # ingest wrote it
                labels={k.removeprefix(_LABEL): v for k, v in row.items() if k.startswith(_LABEL)},
                slices={k.removeprefix(_SLICE): v for k, v in row.items() if k.startswith(_SLICE)},
            )
            for row in csv.DictReader(stream)
        ]
    return [clip for clip in clips if split is None or clip.split == split]


def write_videos(file: Path, videos: Iterable[Video]) -> None:
    """Write videos.csv, one row a video."""
    with new_file(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(Video.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(vars(video) for video in videos)


def read_videos(index: Path) -> dict[str, Video]:
    """The probed videos of data/index by name."""
    with (index / "videos.csv").open(newline="", encoding="utf-8") as stream:
        videos = [
            Video(
                video=row["video"],
                sha256=row["sha256"],
                size_bytes=int(row["size_bytes"]),
                codec=row["codec"],
                width=int(row["width"]),
                height=int(row["height"]),
                rotation=int(row["rotation"]),
                rate_hz=float(row["rate_hz"]),
                duration_s=float(row["duration_s"]),
                reader=row["reader"],  # type: ignore[arg-type]  # ingest wrote it
                audio_rate_hz=int(row["audio_rate_hz"]),
                detections=row["detections"] == "True",
                detections_sha256=row["detections_sha256"],
            )
            for row in csv.DictReader(stream)
        ]
    return {video.video: video for video in videos}


def taught_clips(index: Path) -> list[Clip]:
    """The clips that teachers teach: the training clips, then those that nobody labelled."""
    return read_clips(index, "train") + read_clips(index, "unlabelled")


def label_indices(clips: list[Clip], heads: Mapping[str, list[str]]) -> dict[str, np.ndarray]:
    """Head → class index of every clip, int64 (clips,); NO_LABEL for a clip of the split unlabelled."""
    return {
        head: np.array(
            [classes.index(clip.labels[head]) if clip.labelled else NO_LABEL for clip in clips],
            dtype=np.int64,
        )
        for head, classes in heads.items()
    }


def group_numbers(clips: list[Clip]) -> np.ndarray:
    """A number for every clip, the same within a group, int64 (clips,)."""
    return np.unique([clip.group for clip in clips], return_inverse=True)[1]


def folds(clips: list[Clip], count: int) -> dict[str, int]:
    """Group → its fold in 0..count-1: groups stay whole, folds are as even in clips as that allows.

    Groups go, largest first, to the fold that holds the fewest clips; ties by name, so that the same clips
    always give the same folds.

    Raises:
        ValueError: fewer groups than folds.
    """
    sizes: dict[str, int] = {}
    for clip in clips:
        sizes[clip.group] = sizes.get(clip.group, 0) + 1
    if len(sizes) < count:
        raise ValueError(f"{len(sizes)} group(s) cannot make {count} folds")
    filled = [0] * count
    fold_of: dict[str, int] = {}
    for group in sorted(sizes, key=lambda name: (-sizes[name], name)):
        fold_of[group] = filled.index(min(filled))
        filled[fold_of[group]] += sizes[group]
    return fold_of
