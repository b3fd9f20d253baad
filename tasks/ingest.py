"""Stage `ingest`: data/raw in; the index of usable clips, the quarantine and a data report out."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tasks.atomic import file_digest, new_file, new_folder, write_json
from tasks.clips import SPLITS, Clip, Split, Video, write_clips, write_videos
from tasks.data_report import write_report
from tasks.datasets import dataset
from tasks.datasets.annotations import (
    AnnotatedClip,
    Dataset,
    check,
    fault,
    joined,
    tested_elsewhere,
    told_joined,
)
from tasks.datasets.detections_file import read_detections
from tasks.errors import UserError
from tasks.layout import Workspace
from tasks.params import Data, Params
from tasks.probing import probe_all
from tasks.settings import settings
from tasks.splitting import members, split_groups
from tasks.stores.probe import Probe

_DVC_OBJECT = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")
"""Where links of data/raw lead when DVC is set to link its cache instead of copying from it."""


@dataclass(frozen=True)
class Rejected:
    """One line of quarantine.csv: a clip left out, or (clip_id empty) detections left out of a video."""

    clip_id: str
    video: str
    file: str
    row: int
    reason: str


@dataclass(frozen=True)
class Index:
    """What `ingest` found."""

    clips: list[Clip]
    videos: dict[str, Video]
    rejected: list[Rejected]

    def summary(self, heads: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Counts for people and for reports, JSON-able."""
        return {
            "clips": len(self.clips),
            "videos": len(self.videos),
            "seconds": round(sum(clip.duration_s for clip in self.clips), 3),
            "quarantined": sum(bool(line.clip_id) for line in self.rejected),
            "detections_left_out": sum(not line.clip_id for line in self.rejected),
            "videos_with_sound": sum(video.audio_rate_hz > 0 for video in self.videos.values()),
            "videos_with_detections": sum(video.detections for video in self.videos.values()),
            "splits": {
                split: {
                    "clips": sum(clip.split == split for clip in self.clips),
                    "groups": len({clip.group for clip in self.clips if clip.split == split}),
                }
                for split in self.splits
            },
            "classes": {head: self._class_counts(head, classes) for head, classes in heads.items()},
        }

    @property
    def splits(self) -> list[Split]:
        """The splits of labelled clips, and unlabelled where there are such."""
        more: list[Split] = ["unlabelled"] if any(not clip.labelled for clip in self.clips) else []
        return [*SPLITS, *more]

    def _class_counts(self, head: str, classes: Sequence[str]) -> dict[str, dict[str, int]]:
        counts = Counter((clip.labels[head], clip.split) for clip in self.clips)
        return {label: {split: counts[label, split] for split in SPLITS} for label in classes}


def run(params: Params, workspace: Workspace, item: str | None) -> None:
    """Read, probe, split and index data/raw."""
    build_index(params.data, workspace)


def build_index(data: Data, workspace: Workspace) -> None:
    """Write data/index and the data report, and print a summary.

    Raises:
        UserError, InfrastructureError: see `ingest`.
    """
    index = ingest(data, workspace.raw, workspace.root / settings().work)
    summary = index.summary(data.heads)
    with new_folder(workspace.index) as folder:
        write_clips(folder / "clips.csv", index.clips, data.heads, data.slices)
        write_videos(folder / "videos.csv", index.videos.values())
        write_quarantine(folder / "quarantine.csv", index.rejected)
        write_json(folder / "summary.json", summary)
    paths = {name: dataset(data.format).video_path(workspace.raw, name) for name in index.videos}
    with new_folder(workspace.data_report) as folder:
        rejected = [asdict(line) for line in index.rejected]
        write_report(folder / "index.html", data.name, summary, index.clips, index.videos, paths, rejected)
    _print_summary(summary, workspace)


def ingest(data: Data, raw: Path, work: Path) -> Index:
    """The usable clips and videos of a raw folder, each clip with its split.

    Args:
        data: params of the data set.
        raw: its folder.
        work: scratch that keeps probes between runs.

    Raises:
        UserError: annotations that contradict themselves or the params, or too little left to train on.
        InfrastructureError: videos cannot be probed on this machine as it is.
    """
    reader = dataset(data.format)
    annotated = reader.clips(raw, data.heads)
    check(annotated, data.heads)
    rejected: list[Rejected] = []
    clips = _consistent(annotated, rejected, raw)
    files = _video_files(clips, reader, raw, rejected)
    clips = [clip for clip in clips if clip.video in files]
    videos, clips = _probed(clips, files, reader, raw, work / "probes", rejected)
    clips = _without_twins(clips, {name: video.sha256 for name, video in videos.items()}, rejected, raw)
    try:
        _refuse_emptied_splits(clips, annotated)
        split = _split(clips, data, rejected, raw)
        _refuse_too_little(split, annotated, data, reader)
    except UserError:
        write_quarantine(work / "quarantine.csv", rejected)
        if rejected:
            print(f"{len(rejected)} clip(s) were left out; {work / 'quarantine.csv'} says why. The first:")
            print(f"  {rejected[0].file}, row {rejected[0].row}: {rejected[0].reason}")
        raise
    used = {clip.video for clip in split}
    return Index(split, {name: video for name, video in videos.items() if name in used}, rejected)


def _without_twins(
    clips: Sequence[AnnotatedClip], sha256: Mapping[str, str], rejected: list[Rejected], raw: Path
) -> list[AnnotatedClip]:
    """The clips, no footage of which is in two groups, nor learned from and tested under another name."""
    twins = tested_elsewhere(clips, sha256)
    left = []
    for clip in clips:
        if other := twins.get(clip.clip_id):
            reason = (
                f"is in {clip.split} and shows what clip {other.clip_id!r} shows in {other.split}: "
                f"the videos {clip.video!r} and {other.video!r} are the same file"
            )
            rejected.append(_reject(clip, reason, raw))
        else:
            left.append(clip)
    whole = joined(left, sha256)
    for note in told_joined(left, whole):
        print(note)
    return whole


def _reject(clip: AnnotatedClip, reason: str, raw: Path) -> Rejected:
    return Rejected(clip.clip_id, clip.video, clip.file.relative_to(raw).as_posix(), clip.row, reason)


def _consistent(clips: Iterable[AnnotatedClip], rejected: list[Rejected], raw: Path) -> list[AnnotatedClip]:
    """The clips whose own row makes sense."""
    faults = [(clip, fault(clip)) for clip in clips]
    rejected += [_reject(clip, reason, raw) for clip, reason in faults if reason]
    return [clip for clip, reason in faults if not reason]


def _video_files(
    clips: Sequence[AnnotatedClip], reader: Dataset, raw: Path, rejected: list[Rejected]
) -> dict[str, Path]:
    """Video → its file, for those that may be opened; the clips of the others are rejected."""
    files: dict[str, Path] = {}
    reasons: dict[str, str] = {}
    for video in sorted({clip.video for clip in clips}):
        path = reader.video_path(raw, video)
        reasons[video] = _why_not_open(path, raw)
        files[video] = path
    rejected += [_reject(clip, reasons[clip.video], raw) for clip in clips if reasons[clip.video]]
    return {video: path for video, path in files.items() if not reasons[video]}


def _why_not_open(path: Path, raw: Path) -> str:
    if not path.exists():
        return f"the video {path.relative_to(raw).as_posix()} is missing"
    if _leads_out(path, raw):
        return "the video is a link that leads out of data/raw"
    if not path.is_file():
        return "the video is not a file"
    size, most = path.stat().st_size, settings().max_video_bytes
    if size > most:
        return f"the video has {size} bytes, more than UNDERSTUDY_MAX_VIDEO_BYTES ({most})"
    return ""


def _leads_out(path: Path, raw: Path) -> bool:
    """Whether `path` is, or lies behind, a link out of `raw` other than DVC's own into its cache."""
    target = path.resolve()
    return not target.is_relative_to(raw.resolve()) and not _DVC_OBJECT.search(target.as_posix())


def _probed(
    clips: Sequence[AnnotatedClip],
    files: Mapping[str, Path],
    reader: Dataset,
    raw: Path,
    kept: Path,
    rejected: list[Rejected],
) -> tuple[dict[str, Video], list[AnnotatedClip]]:
    """The videos that can be read, by name, and the clips that lie within them."""
    by_video: dict[str, list[AnnotatedClip]] = {video: [] for video in files}
    for clip in clips:
        by_video[clip.video].append(clip)
    jobs = [(files[video], _moments(members)) for video, members in by_video.items()]
    videos: dict[str, Video] = {}
    usable: list[AnnotatedClip] = []
    for video, (sha256, found) in zip(by_video, probe_all(jobs, kept), strict=True):
        if isinstance(found, str):
            rejected += [_reject(clip, f"the video {found}", raw) for clip in by_video[video]]
            continue
        for clip in by_video[video]:
            fitted = _fit(clip, found)
            if isinstance(fitted, str):
                rejected.append(_reject(clip, fitted, raw))
            else:
                usable.append(fitted)
        detections = _detections_digest(video, reader, raw, rejected)
        videos[video] = found.video(video, files[video].stat().st_size, sha256, detections)
    order = {clip.clip_id: place for place, clip in enumerate(clips)}
    return videos, sorted(usable, key=lambda clip: order[clip.clip_id])


def _moments(clips: Iterable[AnnotatedClip]) -> list[float]:
    return sorted({moment for clip in clips for moment in (clip.start_s, clip.stop_s) if moment is not None})


def _fit(clip: AnnotatedClip, probe: Probe) -> AnnotatedClip | str:
    """`clip` with its stop within the video, or why it does not fit."""
    stop_s = probe.duration_s if clip.stop_s is None else clip.stop_s
    if stop_s > probe.duration_s + probe.frame_s or clip.start_s >= probe.duration_s:
        lacking = f" (truncated: it promises {probe.promised_s:.3f} s)" if probe.truncated else ""
        return f"stops at {stop_s:g} s, but the video holds {probe.duration_s:.3f} s{lacking}"
    broken = [moment for moment in probe.broken_s if clip.start_s <= moment <= stop_s]
    if broken:
        return f"the video cannot be decoded at {broken[0]:g} s"
    return replace(clip, stop_s=min(stop_s, probe.duration_s))


def _detections_digest(video: str, reader: Dataset, raw: Path, rejected: list[Rejected]) -> str:
    """SHA-256 of the video's detections; empty without usable ones, and then a note if there was a file."""
    path = reader.detections_path(raw, video)
    if not path.exists():
        return ""
    name = path.relative_to(raw).as_posix()
    if _leads_out(path, raw):
        rejected.append(Rejected("", video, name, 1, "the detections are a link that leads out of data/raw"))
        return ""
    try:
        read_detections(path)
    except UserError as error:
        reason = f"the detections are left out: {error.message}"
        rejected.append(Rejected("", video, name, error.row or 1, reason))
        return ""
    return file_digest(path)


def _split(clips: Sequence[AnnotatedClip], data: Data, rejected: list[Rejected], raw: Path) -> list[Clip]:
    """The clips with their splits; labelled ones by group, the others unlabelled.

    A person who is tested must not be learned from, not even without labels: such clips are rejected.
    """
    split_of = split_groups(
        members(clips, data.heads), data.validation_share, data.test_share, data.split_seed
    )
    placed = []
    for clip in clips:
        group = clip.group or clip.video
        split = split_of.get(group, "unlabelled")
        if not clip.labelled and split in ("val", "test"):
            reason = f"is to be learned from, but its group {group!r} was drawn for the split {split}"
            rejected.append(_reject(clip, reason, raw))
            continue
        placed.append(
            Clip(
                clip_id=clip.clip_id,
                video=clip.video,
                start_s=clip.start_s,
                stop_s=clip.stop_s,  # type: ignore[arg-type]  # _fit has set it
                group=group,
                split=split if clip.labelled else "unlabelled",
                labels={head: clip.labels[head] if clip.labelled else "" for head in data.heads},
                slices={name: clip.slices.get(name, "") for name in data.slices},
            )
        )
    return placed


def _refuse_emptied_splits(clips: Sequence[AnnotatedClip], annotated: Sequence[AnnotatedClip]) -> None:
    """Raise UserError where the annotations give a split of which nothing can be used.

    Drawing another in its place would move groups out of the split that the annotations give them.
    """
    left = {clip.split for clip in clips if clip.labelled}
    for split in SPLITS:
        given = [clip for clip in annotated if clip.split == split and clip.labelled]
        if clips and given and split not in left:
            raise UserError(
                f"none of the {len(given)} clip(s) of the split {split} can be used",
                file=given[0].file,
                row=given[0].row,
                remedy="mend their videos or rows, or give the split to other groups",
            )


def _refuse_too_little(
    clips: Sequence[Clip], annotated: Sequence[AnnotatedClip], data: Data, reader: Dataset
) -> None:
    """Raise UserError where nothing can be learned or measured from what is left."""
    file = annotated[0].file if annotated else None
    if not clips:
        raise UserError(
            f"none of its {len(annotated)} clip(s) can be used",
            file=file,
            remedy="mend the videos or rows named above",
        )
    groups = len({clip.group for clip in clips})
    for split in SPLITS:
        if not any(clip.split == split for clip in clips):
            raise UserError(
                f"the split {split} has no clip ({len(clips)} clip(s) in {groups} group(s))",
                file=file,
                remedy="bring clips of more groups"
                + (", or raise data.validation_share or data.test_share" if groups >= len(SPLITS) else ""),
            )
    for head, classes in data.heads.items():
        trained = {clip.labels[head] for clip in clips if clip.split == "train"}
        if len(trained) < 2:
            raise UserError(
                f"{head}: the training clips show only {min(trained)!r}; there is nothing to tell apart",
                file=file,
                remedy="bring clips of another class",
            )
        missing = [label for label in classes if label not in trained]
        if missing and reader.every_class_trains:
            raise UserError(
                f"{head}: the class {missing[0]!r} has no training clip",
                file=file,
                remedy=f"bring clips of it in another group, or take it out of data.heads.{head}",
            )


def write_quarantine(file: Path, rejected: Iterable[Rejected]) -> None:
    """Write quarantine.csv, one line a clip that was left out."""
    with new_file(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(Rejected.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(line) for line in rejected)


def _print_summary(summary: Mapping[str, Any], workspace: Workspace) -> None:
    splits = ", ".join(
        f"{name} {part['clips']} clips of {part['groups']} groups" for name, part in summary["splits"].items()
    )
    print(f"{summary['clips']} clips in {summary['videos']} videos: {splits}")
    print(
        f"videos with sound: {summary['videos_with_sound']}, detections: {summary['videos_with_detections']}"
    )
    if summary["quarantined"]:
        print(f"{summary['quarantined']} clips in quarantine: {workspace.index / 'quarantine.csv'}")
    if deaf := summary["detections_left_out"]:
        print(
            f"detections of {deaf} video(s) cannot be read and are left out: {workspace.index / 'quarantine.csv'}"
        )
    print(f"data report: {workspace.data_report / 'index.html'}")
