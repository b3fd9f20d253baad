"""What every data set format gives: annotated clips that know their file and row; and the shared checks."""

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from tasks.clips import SPLITS
from tasks.errors import UserError
from tasks.names import named_file, normal, unsafe

_ROUNDING_S = 1e-3
"""Stretches that overlap by less are taken to adjoin."""


@dataclass(frozen=True)
class AnnotatedClip:
    """One clip as its annotation file states it, before anybody looked at the video.

    Attributes:
        clip_id: its name, distinct in the data set.
        video: the name of its video, as the format's `video_path` takes it; Unicode NFC.
        start_s, stop_s: seconds from the video's first frame; `stop_s` None: the end of the video.
        labels: head → class; empty where the annotation is missing.
        group: what must not be split (participant, object); empty: unknown.
        split: train, val, test, unlabelled (teachers shall label it), or empty where the file does not say.
        slices: further columns.
        file, row: where it is written.
    """

    clip_id: str
    video: str
    start_s: float
    stop_s: float | None
    labels: Mapping[str, str]
    group: str
    split: str
    slices: Mapping[str, str]
    file: Path
    row: int

    @property
    def labelled(self) -> bool:
        """Whether its labels are to be looked at."""
        return self.split != "unlabelled"


class Dataset(ABC):
    """One format of raw data: where its annotations, videos and detections lie below the raw folder."""

    every_class_trains: ClassVar[bool]
    """Whether a class without a training clip is a mistake; published class lists hold such classes."""

    @abstractmethod
    def recognises(self, raw: Path) -> bool:
        """Whether the folder `raw` looks like this format."""

    @abstractmethod
    def heads(self, raw: Path) -> dict[str, list[str]]:
        """Label heads and their classes as the annotations give them.

        Raises:
            UserError: the annotations cannot be read.
        """

    @abstractmethod
    def slices(self, raw: Path) -> list[str]:
        """Names of the further columns worth a table of their own."""

    @abstractmethod
    def clips(self, raw: Path, heads: Iterable[str]) -> list[AnnotatedClip]:
        """All annotated clips with their labels for `heads`.

        Raises:
            UserError: the annotations cannot be read; names file and row.
        """

    @abstractmethod
    def video_path(self, raw: Path, video: str) -> Path:
        """Where the file of `video` lies, or would lie."""

    def detections_path(self, raw: Path, video: str) -> Path:
        """Where the detections of `video` lie, or would lie."""
        return named_file(raw / "detections", f"{video}.jsonl")

    def has_detections(self, raw: Path, videos: Iterable[str]) -> bool:
        """Whether one of `videos` has detections, or will have them by `take_in`."""
        return any(self.detections_path(raw, video).is_file() for video in videos)

    def take_in(self, raw: Path, kept: Path) -> None:  # noqa: B027  most formats need nothing
        """Turn what `understudy import` has copied to `raw` into what `ingest` reads, where they differ.

        Args:
            raw: the folder.
            kept: where probes are kept, for `tasks.probing`.
        """


def suggestion(name: str, names: Iterable[str]) -> str:
    """A remedy that names the nearest of `names`, or all of them."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1)
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f"did you mean {near[0]!r}?" if near else f"known: {shown}"


def safe_name(name: str, what: str, file: Path, row: int) -> str:
    """`name` in NFC, after making sure that it can become a path without leaving its folder.

    Raises:
        UserError: empty, absolute, with `..`, a backslash or a control character, or too long.
    """
    reason = unsafe(name)
    if reason:
        raise UserError(
            f"{what} {name[:80]!r} {reason}",
            file=file,
            row=row,
            remedy="use a plain relative name such as a/b.mp4",
        )
    return normal(name)


def seconds(text: str, column: str, file: Path, row: int) -> float:
    """A finite number of seconds.

    Raises:
        UserError: not a number.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or "_" in text:
        raise UserError(
            f"{column} is {text!r}, not a number", file=file, row=row, remedy="write seconds, as 12.5"
        )
    return value


def grouped(clips: Sequence[AnnotatedClip]) -> list[AnnotatedClip]:
    """The clips; an empty group is that of the video's other clips where they are of one, so that no video is torn."""
    named: dict[str, set[str]] = {}
    for clip in clips:
        if clip.group:
            named.setdefault(clip.video, set()).add(clip.group)
    only = {video: min(groups) for video, groups in named.items() if len(groups) == 1}
    return [replace(clip, group=clip.group or only.get(clip.video, "")) for clip in clips]


def fault(clip: AnnotatedClip) -> str:
    """What makes its own row useless, whatever its video holds; empty where nothing does."""
    missing = [head for head, label in clip.labels.items() if clip.labelled and not label]
    if missing:
        return f"the label {missing[0]} is missing"
    if clip.start_s < 0:
        return f"starts at {clip.start_s:g} s, before the video"
    if clip.stop_s is not None and clip.stop_s <= clip.start_s:
        return f"stops at {clip.stop_s:g} s, not after its start at {clip.start_s:g} s"
    return ""


def groups(clips: Iterable[AnnotatedClip]) -> int:
    """How many groups the clips are of."""
    return len({clip.group or clip.video for clip in clips})


def told_joined(annotated: Sequence[AnnotatedClip], whole: Sequence[AnnotatedClip]) -> list[str]:
    """What `joined` did to the groups, as a sentence; nothing where it did nothing."""
    became = {
        (old.group or old.video, new.group or new.video) for old, new in zip(annotated, whole, strict=True)
    }
    moved = sorted(pair for pair in became if pair[0] != pair[1])
    if not moved:
        return []
    part, of = moved[0]
    return [
        f"{len(moved)} group(s) share moments of a video with another and count as part of it, as {part!r} of {of!r}"
    ]


def check(clips: Sequence[AnnotatedClip], heads: Mapping[str, Sequence[str]]) -> None:
    """Refuse annotations that contradict themselves or the params.

    Args:
        clips: of the whole data set.
        heads: head → its classes.

    Raises:
        UserError: a clip_id twice, an unknown split or label, a group or a moment of a video in two splits; names
            file and row.
    """
    seen: dict[str, AnnotatedClip] = {}
    known = (*SPLITS, "unlabelled")
    for clip in clips:
        first = seen.setdefault(clip.clip_id, clip)
        if first is not clip:
            raise UserError(
                f"clip_id {clip.clip_id!r} was used before, in row {first.row}",
                file=clip.file,
                row=clip.row,
                remedy="give every clip an id of its own",
            )
        if clip.split and clip.split not in known:
            raise UserError(
                f"unknown split {clip.split!r}",
                file=clip.file,
                row=clip.row,
                remedy=suggestion(clip.split, known),
            )
        for head, label in clip.labels.items():
            if label and clip.labelled and label not in heads[head]:
                raise UserError(
                    f"{head} {label!r} is not among data.heads.{head} of params.yaml",
                    file=clip.file,
                    row=clip.row,
                    remedy=suggestion(label, heads[head]) + " `understudy import` writes the classes anew.",
                )
    _refuse_torn_groups(clips, "put all clips of a group in one split, or leave the split empty")
    _refuse_shared_moments(clips)


def joined(clips: Sequence[AnnotatedClip], same: Mapping[str, str] | None = None) -> list[AnnotatedClip]:
    """The clips; groups whose clips share moments of a video become one, named as the first of them.

    So no footage is on two sides of a split, or of the folds of a teacher.

    Args:
        clips: of the whole data set, checked.
        same: video → what is the same for videos of the same bytes; default: no two are.

    Raises:
        UserError: the annotations give two of such groups to different splits.
    """
    first = {clip.group or clip.video: place for place, clip in reversed(list(enumerate(clips)))}
    within: dict[str, str] = {}

    def whole(group: str) -> str:
        while group in within:
            group = within[group]
        return group

    farthest: dict[str, AnnotatedClip] = {}  # of each footage the clip that reaches farthest
    for clip in sorted(clips, key=lambda clip: clip.start_s):
        if _stop_s(clip) <= clip.start_s:  # it will be left out
            continue
        footage = same[clip.video] if same else clip.video
        other = farthest.setdefault(footage, clip)
        if _stop_s(other) > clip.start_s + _ROUNDING_S:
            one, two = sorted(
                (whole(each.group or each.video) for each in (clip, other)), key=first.__getitem__
            )
            if one != two:
                within[two] = one
        if _stop_s(clip) > _stop_s(other):
            farthest[footage] = clip
    if not within:
        return list(clips)
    found = [replace(clip, group=whole(clip.group or clip.video)) for clip in clips]
    _refuse_torn_groups(found, "put groups whose clips share moments of a video in one split")
    return found


def tested_elsewhere(clips: Sequence[AnnotatedClip], same: Mapping[str, str]) -> dict[str, AnnotatedClip]:
    """clip_id of clips that show what another video's clip shows in a split that must share nothing → that other.

    Downloaded data sets hold one file under two names. Of two such clips the one that is nearer to training is among
    these, so that what is measured stays as it was published.

    Args:
        clips: of the whole data set, with their stops.
        same: video → what is the same for videos of the same bytes.
    """
    twins: dict[str, list[AnnotatedClip]] = {}
    for clip in clips:
        if clip.split:
            twins.setdefault(same[clip.video], []).append(clip)
    found: dict[str, AnnotatedClip] = {}
    for shown in twins.values():
        if len({clip.video for clip in shown}) == 1:
            continue
        for clip in shown:
            for other in shown:
                overlap = min(_stop_s(clip), _stop_s(other)) - max(clip.start_s, other.start_s)
                if _apart(clip, other) and overlap > _ROUNDING_S and _nearness(clip) < _nearness(other):
                    found[clip.clip_id] = other
    return found


def _nearness(clip: AnnotatedClip) -> int:
    """How near to the test its split is."""
    return SPLITS.index(clip.split) if clip.split in SPLITS else -1


def _refuse_torn_groups(clips: Iterable[AnnotatedClip], remedy: str) -> None:
    split_of: dict[str, AnnotatedClip] = {}
    for clip in clips:
        if not clip.split:
            continue
        group = clip.group or clip.video
        other = split_of.setdefault(group, clip)
        if _apart(clip, other):
            raise UserError(
                f"group {group!r} is in {clip.split} here and in {other.split} in row {other.row}",
                file=clip.file,
                row=clip.row,
                remedy=remedy,
            )


def _apart(clip: AnnotatedClip, other: AnnotatedClip) -> bool:
    """Whether two clips with a split are of two that must share nothing."""
    return clip.split != other.split and {clip.split, other.split} != {"train", "unlabelled"}


def _refuse_shared_moments(clips: Iterable[AnnotatedClip]) -> None:
    """Raise UserError where the same footage is given to two splits, by clips of two groups that overlap."""
    last: dict[tuple[str, str], AnnotatedClip] = {}  # of each video and split the clip that reaches farthest
    for clip in sorted((clip for clip in clips if clip.split), key=lambda clip: clip.start_s):
        if _stop_s(clip) <= clip.start_s:  # it will be left out
            continue
        for split in (*SPLITS, "unlabelled"):
            other = last.get((clip.video, split), clip)
            if _apart(clip, other) and _stop_s(other) > clip.start_s + _ROUNDING_S:
                first, second = sorted((clip, other), key=lambda either: either.row)
                raise UserError(
                    f"the clip is in {second.split} and shares moments of {clip.video!r} with row {first.row}, "
                    f"which is in {first.split}",
                    file=second.file,
                    row=second.row,
                    remedy="put clips that overlap in one split",
                )
        farthest = last.setdefault((clip.video, clip.split), clip)
        if _stop_s(clip) > _stop_s(farthest):
            last[clip.video, clip.split] = clip


def _stop_s(clip: AnnotatedClip) -> float:
    return math.inf if clip.stop_s is None else clip.stop_s
