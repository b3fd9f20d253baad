"""What a raw folder holds, found without decoding it: classes, groups, splits, sound, what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tasks import params
from tasks.clips import SPLITS
from tasks.datasets import FORMATS
from tasks.datasets.annotations import AnnotatedClip, Dataset, check, fault, groups, joined, told_joined
from tasks.errors import UserError
from tasks.settings import settings
from tasks.splitting import members, split_groups
from tasks.stores.probe import Prober
from tasks.stores.video import VideoError

LISTENED_TO = 60
"""Videos, drawn at random, that are looked at to learn whether the data set has sound."""


@dataclass(frozen=True)
class Summary:
    """What was found in a source.

    Attributes:
        name, format: of the data set.
        heads: label head → classes.
        slices: columns that get a table of their own.
        clips, videos, groups: how many.
        splits: labelled clips of each split that the annotations give.
        unlabelled: clips without any label.
        training_groups: groups that would train a teacher.
        missing_videos: names of videos that are not there.
        sound, detections: whether some video has them.
        notes: what the params lost or gained, in sentences.
    """

    name: str
    format: str
    heads: dict[str, list[str]]
    slices: list[str]
    clips: int
    videos: int
    groups: int
    splits: dict[str, int]
    unlabelled: int
    training_groups: int
    missing_videos: list[str]
    sound: bool
    detections: bool
    notes: list[str] = field(default_factory=list)


def survey(folder: Path, source: str, shares: params.Data) -> Summary:
    """What a raw folder holds, after the checks that need no decoding.

    Args:
        folder: it.
        source: where it came from, which gives it its name.
        shares: params that say how much becomes val and test.

    Raises:
        UserError: see `import_data`.
    """
    if not folder.is_dir():
        raise UserError(
            "is not a folder", file=folder, remedy="name a folder with annotations.csv and videos/"
        )
    name, reader = _format(folder)
    heads = reader.heads(folder)
    for head, classes in heads.items():
        if len(classes) < 2:
            raise UserError(
                f"{head} has {len(classes)} class(es); there is nothing to recognise",
                file=folder,
                remedy=f"give the clips two classes of {head} or more",
            )
    annotated = reader.clips(folder, heads)
    check(annotated, heads)
    clips = joined(annotated)
    videos = sorted({clip.video for clip in clips})
    paths = {video: reader.video_path(folder, video) for video in videos}
    missing = [video for video in videos if not paths[video].is_file()]
    if len(missing) == len(videos):
        raise UserError(
            f"none of its {len(videos)} video(s) is there, the first being {missing[0]!r}"
            if videos
            else "has no clip",
            file=folder,
            remedy="put the videos below videos/, named as in the column video",
        )
    present = [paths[video] for video in videos if video not in set(missing)]
    return Summary(
        name=source.rstrip("/").rpartition("/")[2] or folder.resolve().name,
        format=name,
        heads=heads,
        slices=reader.slices(folder),
        clips=len(clips),
        videos=len(videos),
        groups=groups(clips),
        splits={
            split: count
            for split in SPLITS
            if (count := sum(clip.split == split and clip.labelled for clip in clips))
        },
        unlabelled=sum(not clip.labelled for clip in clips),
        training_groups=_training_groups(clips, next(iter(heads)), shares, folder),
        missing_videos=missing,
        sound=_any_sound(present),
        detections=reader.has_detections(folder, videos),
        notes=told_joined(annotated, clips) + _told_faults(annotated) + _told_strays(folder, reader, videos),
    )


def _format(folder: Path) -> tuple[str, Dataset]:
    for name, reader in FORMATS.items():
        if reader.recognises(folder):
            return name, reader
    raise UserError(
        f"holds no annotations of a known format ({', '.join(FORMATS)})",
        file=folder,
        remedy="put annotations.csv with the columns clip_id, video, start_s, stop_s, action beside videos/",
    )


def _told_faults(clips: Sequence[AnnotatedClip]) -> list[str]:
    """A sentence about rows of which no use can be made; what ails videos only decoding tells."""
    faults = [(clip, reason) for clip in clips if (reason := fault(clip))]
    if not faults:
        return []
    first, reason = faults[0]
    where = f"{first.file.name}, row {first.row}"
    return [
        f"{len(faults)} row(s) will be left out, the first being {where}, clip {first.clip_id!r}: {reason}"
    ]


def _told_strays(folder: Path, reader: Dataset, videos: Sequence[str]) -> list[str]:
    """A sentence about detections that belong to no video: most likely named otherwise than it."""
    meant = {reader.detections_path(folder, video).name for video in videos}
    strays = sorted(
        file.name for file in (folder / "detections").glob("**/*.jsonl") if file.name not in meant
    )
    if not strays:
        return []
    example = sorted(meant)[0]
    return [
        f"{len(strays)} file(s) of detections/ belong to no video of the clips, the first {strays[0]}: they are named "
        f"as the video is, as {example}"
    ]


def _training_groups(clips: Sequence[AnnotatedClip], head: str, shares: params.Data, folder: Path) -> int:
    split_of = split_groups(
        members(clips, [head]), shares.validation_share, shares.test_share, shares.split_seed
    )
    drawn = list(split_of.values())
    if empty := [split for split in SPLITS if split not in drawn]:
        raise UserError(
            f"its {len(split_of)} group(s) of labelled clips leave the split {empty[0]} empty",
            file=folder,
            remedy="groups stay whole: bring clips of three or more, told apart by the column group, each class in two",
        )
    return drawn.count("train")


def _any_sound(paths: Sequence[Path]) -> bool:
    # Not every n-th: of two cameras in turn, those might all be the one without a microphone.
    chosen = np.random.default_rng(0).permutation(len(paths))[:LISTENED_TO]
    with Prober(settings().decode_timeout_s) as prober:
        for place in chosen:
            try:
                if prober.probe(paths[place], []).audio_rate_hz:
                    return True
            except VideoError:  # ingest will say so, with the clip's row
                continue
    return False
