"""`understudy import`: takes a folder or an S3 prefix in as data/raw, tracked by DVC; writes its params."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from tasks import params
from tasks.atomic import digest, new_file, new_folder, write_text
from tasks.clips import SPLITS
from tasks.datasets import FORMATS
from tasks.datasets.annotations import AnnotatedClip, Dataset, check, suggestion
from tasks.errors import InfrastructureError, UserError
from tasks.layout import Workspace
from tasks.progress import Progress
from tasks.settings import settings
from tasks.splitting import members, split_groups
from tasks.stores import s3
from tasks.stores.probe import Prober
from tasks.stores.video import VideoError

_LISTENED_TO = 60
"""Videos that are looked at to learn whether the data set has sound: an even choice."""
_FOLDS = 3
_UNMEASURED = {"distillation_weight": "auto", "ground_truth_weight": 0.5, "unlabelled_weight": "auto"}
"""What validation is to settle for a student."""
_CLONE_FILE = 0x40049409
"""FICLONE of linux/fs.h: share the blocks of another file (Btrfs, XFS), so that a copy costs nothing."""


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


def import_data(
    source: str,
    workspace: Workspace,
    force: bool = False,
    dry_run: bool = False,
    preset: str | None = None,
) -> Summary:
    """Take `source` in: data/raw, data.dvc and params.yaml follow it. Prints what was found and what is next.

    Args and errors: see `take_in`.
    """
    found = take_in(source, workspace, force, dry_run, preset)
    _tell(found, dry_run)
    return found


def take_in(
    source: str, workspace: Workspace, force: bool, dry_run: bool, preset: str | None = None
) -> Summary:
    """Have data/raw, data.dvc and params.yaml follow `source`, in silence.

    Args:
        source: a folder, or s3://bucket/prefix.
        workspace: the clone that takes it.
        force: replace a data/raw that DVC could not bring back.
        dry_run: look and tell, change nothing (an S3 source is fetched to the work folder all the same).
        preset: the params to begin from, in place of params.yaml as it is: a file's name in infra/presets.

    Raises:
        UserError: no such preset, annotations at fault (file and row), nothing recognised, or data/raw has changes
            to lose.
        InfrastructureError: the disk, DVC or the S3 endpoint failed.
    """
    if not (dry_run or force):
        _refuse_to_lose(workspace)
    base = workspace.params if preset is None else _preset(preset, workspace)
    current = params.load(base)
    folder = _fetched(source, workspace) if source.startswith("s3://") else Path(source)
    found = survey(folder, source, current.data)
    text, notes = written_params(base.read_text(encoding="utf-8"), current, found)
    params.parse(text, workspace.params)
    if preset is not None:
        found.notes.append(f"the other params are those of {base.relative_to(workspace.root)}")
    found.notes.extend(notes)
    if not dry_run:
        with new_file(workspace.params) as written:
            # First, so that a full disk is met while nothing is replaced.
            written.write_text(text, encoding="utf-8")
            _take(folder, FORMATS[found.format], workspace)
            _track(workspace)
        if source.startswith("s3://"):
            shutil.rmtree(folder)
    return found


def _preset(name: str, workspace: Workspace) -> Path:
    """The file of a preset.

    Raises:
        UserError: there is none of this name.
    """
    files = {file.stem: file for file in sorted(workspace.presets.glob("*.yaml"))}
    if name not in files:
        raise UserError(
            f"there is no preset {name!r}", file=workspace.presets, remedy=suggestion(name, files)
        )
    return files[name]


def _fetched(source: str, workspace: Workspace) -> Path:
    folder = workspace.root / settings().work / "imports" / digest(source)
    last = 0
    with Progress("fetch", 100, "%") as progress:

        def tell(done: int, total: int) -> None:
            nonlocal last
            percent = 100 * done // max(1, total)
            progress.advance(percent - last)
            last = percent

        s3.download(source, folder, tell)
    return folder


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
    clips = reader.clips(folder, heads)
    check(clips, heads)
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
        groups=len({clip.group or clip.video for clip in clips}),
        splits={
            split: count
            for split in SPLITS
            if (count := sum(clip.split == split and clip.labelled for clip in clips))
        },
        unlabelled=sum(not clip.labelled for clip in clips),
        training_groups=_training_groups(clips, next(iter(heads)), shares),
        missing_videos=missing,
        sound=_any_sound(present),
        detections=any(reader.detections_path(folder, video).is_file() for video in videos),
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


def _training_groups(clips: Sequence[AnnotatedClip], head: str, shares: params.Data) -> int:
    split_of = split_groups(
        members(clips, [head]), shares.validation_share, shares.test_share, shares.split_seed
    )
    return list(split_of.values()).count("train")


def _any_sound(paths: Sequence[Path]) -> bool:
    chosen = sorted({round(place) for place in np.linspace(0, len(paths) - 1, _LISTENED_TO)})
    with Prober(settings().decode_timeout_s) as prober:
        for place in chosen:
            try:
                if prober.probe(paths[place], []).audio_rate_hz:
                    return True
            except VideoError:  # ingest will say so, with the clip's row
                continue
    return False


def written_params(text: str, current: params.Params, found: Summary) -> tuple[str, list[str]]:
    """params.yaml rewritten for what was found, comments kept; sentences on what changed beside `data`."""
    writer = YAML()
    writer.preserve_quotes = True
    writer.width = 4096  # lines stay as they are
    writer.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    document = writer.load(text)
    notes: list[str] = []
    data = document["data"]
    data["name"], data["format"] = _scalar(found.name), found.format
    data["heads"] = {head: _list(classes) for head, classes in found.heads.items()}
    data["slices"] = _list(found.slices)
    _drop_absent(document, current, found, notes)
    _fit_lesson(document, found, notes)
    _fit_folds(document, found, notes)
    _fit_head_weights(document, found, notes)
    if document["register"]["head"] not in (*found.heads, "action"):
        document["register"]["head"] = "action"
    stream = StringIO()
    writer.dump(document, stream)
    return stream.getvalue(), notes


def _list(texts: Sequence[str]) -> CommentedSeq:
    """A YAML list in brackets."""
    sequence = CommentedSeq(_scalar(text) for text in texts)
    sequence.fa.set_flow_style()
    return sequence


def _scalar(text: str) -> str:
    """`text`, quoted where YAML would read it as something else (no, 1e3, 2024-01-01)."""
    try:
        plain = yaml.safe_load(text) == text
    except yaml.YAMLError:
        plain = False
    return text if plain else DoubleQuotedScalarString(text)


def _drop_absent(document: Any, current: params.Params, found: Summary, notes: list[str]) -> None:
    """Take out modalities that no video has, the teachers that need them and what refers to those."""
    present = {"audio": found.sound, "detections": found.detections}
    for name, modality in current.modalities.items():
        if not present.get(modality.kind, True):
            del document["modalities"][name]
            notes.append(f"no video has {modality.kind}: modalities.{name} is taken out")
    for name, teacher in current.teachers.items():
        if teacher.modality not in document["modalities"]:
            del document["teachers"][name]
            notes.append(f"teachers.{name} is taken out with it")
    for name, fused in current.fused.items():
        left = [teacher for teacher in fused.teachers if teacher in document["teachers"]]
        if len(left) < 2:
            del document["fused"][name]
            notes.append(f"fused.{name} is taken out, as fewer than two of its teachers are left")
        elif len(left) < len(fused.teachers):
            document["fused"][name]["teachers"] = _list(left)
            notes.append(f"fused.{name} is now made of {', '.join(left)}")
    for name, specialists in current.specialists.items():
        left = [teacher for teacher in specialists.auxiliaries if teacher in document["teachers"]]
        if not left or specialists.fused not in document["fused"]:
            del document["specialists"][name]
            notes.append(f"specialists.{name} is taken out, as teachers of it are missing")
        elif len(left) < len(specialists.auxiliaries):
            document["specialists"][name]["auxiliaries"] = _list(left)
    for name, student in current.students.items():
        source = student.learns_from.rpartition("/")[2]
        if student.method.kind == "mst" and source not in document["specialists"]:
            del document["students"][name]
            notes.append(f"students.{name} is taken out, as its specialists are")
            if document["register"]["student"] == name:
                document["register"]["student"] = "auto"
    for name, student in current.students.items():
        if student.method.kind == "omnivorous":
            left = [teacher for teacher in student.method.teachers if teacher in document["teachers"]]
            document["students"][name]["method"]["teachers"] = _list(left)
            if not left:
                del document["students"][name]
                notes.append(f"students.{name} is taken out, as nothing beside RGB is left to show it")
                if document["register"]["student"] == name:
                    document["register"]["student"] = "auto"
    heard_of = {*document["teachers"], *document["fused"], *document["specialists"]}
    for name, student in document["students"].items():
        heard = (student.get("ensemble") or {}).get("teachers", [])
        for teacher in [teacher for teacher in heard if teacher not in heard_of]:
            heard.remove(teacher)
        lesson, _, teacher = student["learns_from"].rpartition("/")
        if lesson == "artifacts/teachings" and teacher not in heard_of:
            student["learns_from"] = lesson
            heard.extend(document["teachers"])
            notes.append(f"students.{name} now learns from all teachers")
        if student["method"]["kind"] == "hints" and not any(
            document["teachers"][teacher]["hints"] for teacher in heard if teacher in document["teachers"]
        ):
            for teacher in [teacher for teacher in heard if teacher in document["teachers"]]:
                document["teachers"][teacher]["hints"] = True
            notes.append(f"students.{name} now has hints of all its teachers")
    kinds = {modality.kind for modality in current.modalities.values()}
    notes.extend(
        f"some videos have {kind}, but params.yaml names no such modality"
        for kind, there in present.items()
        if there and kind not in kinds
    )


def _fit_lesson(document: Any, found: Summary, notes: list[str]) -> None:
    """Where every clip is labelled, teachers speak of labelled clips: cross-fitted, and as far as they help."""
    if found.unlabelled:
        return
    for name, teacher in document["teachers"].items():
        if teacher["folds"] == 1:
            teacher["folds"] = _FOLDS
            notes.append(f"teachers.{name} is cross-fitted in {_FOLDS} folds, since every clip has a label")
    for name, student in document["students"].items():
        method = student["method"]
        if method.get("unlabelled_weight") and method["distillation_weight"] == 0:
            method.update(_UNMEASURED)
            notes.append(f"students.{name} now settles distillation_weight on validation (auto)")


def _fit_folds(document: Any, found: Summary, notes: list[str]) -> None:
    for name, teacher in document["teachers"].items():
        if teacher["folds"] > found.training_groups:
            teacher["folds"] = max(1, found.training_groups)
            notes.append(
                f"teachers.{name} gets {teacher['folds']} fold(s), as many as there are training groups"
            )


def _fit_head_weights(document: Any, found: Summary, notes: list[str]) -> None:
    """What was weighed head by head is measured anew where the heads are others."""
    unmeasured: dict[str, Any] = {"head_weights": None} | _UNMEASURED
    for name, student in document["students"].items():
        method = student["method"]
        stale = {
            weight
            for weight in unmeasured
            if isinstance(method.get(weight), dict) and method[weight].keys() != found.heads.keys()
        }
        method.update({weight: unmeasured[weight] for weight in stale})
        if "distillation_weight" in stale:
            method.update(_UNMEASURED)
            notes.append(f"students.{name} now settles distillation_weight on validation (auto)")


def _refuse_to_lose(workspace: Workspace) -> None:
    """Raise UserError where data/raw holds something that DVC could not bring back."""
    if not workspace.raw.exists():
        return
    pointer = workspace.root / "data.dvc"
    changed = not pointer.exists() or json.loads(_dvc(workspace, "status", "--json", "data.dvc") or "{}")
    if changed:
        raise UserError(
            "has changes that DVC does not hold",
            file=workspace.raw,
            remedy="keep them with `dvc commit data.dvc`, or give them up with `understudy import --force`",
        )


def _take(folder: Path, reader: Dataset, workspace: Workspace) -> None:
    """Copy `folder` beside data/raw, then let it take its place as a whole."""
    files = _files(folder)
    needed, free = sum(path.stat().st_size for path in files), _free(workspace.root)
    if needed > free:
        raise UserError(
            f"holds {_size(needed)}, the disk has {_size(free)} left",
            file=folder,
            remedy="make room first",
        )
    try:
        with new_folder(workspace.raw) as raw, Progress("take in", len(files), "files") as progress:
            for path in files:
                target = raw / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                _clone(path, target)
                progress.advance()
            reader.take_in(raw)
    except OSError as error:
        raise InfrastructureError(
            f"{folder} cannot be copied: {error.strerror}; data/raw is as it was"
        ) from None


def _files(folder: Path) -> list[Path]:
    """All files of `folder` but hidden ones.

    Raises:
        UserError: a link that leads out of the folder.
    """
    root = folder.resolve()
    files = []
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise UserError(
                "is a link that leads out of the folder", file=path, remedy="put the file itself there"
            )
        if path.is_file():
            files.append(path)
    return files


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _clone(source: Path, target: Path) -> None:
    """Copy a file, sharing its blocks where the file system can."""
    with source.open("rb") as reading, target.open("wb") as writing:
        try:
            fcntl.ioctl(writing.fileno(), _CLONE_FILE, reading.fileno())
        except OSError:
            shutil.copyfileobj(reading, writing, 1 << 20)


def _track(workspace: Workspace) -> None:
    """Have data.dvc follow data/raw; the remote that ships the sample is no place for other data."""
    pointer = workspace.root / "data.dvc"
    content = pointer.read_text(encoding="utf-8") if pointer.exists() else "outs:\n- path: data/raw\n"
    write_text(pointer, content.replace("  remote: sample\n", ""))
    try:
        _dvc(workspace, "commit", "--force", "data.dvc")
    except InfrastructureError as error:
        raise InfrastructureError(
            f"{error}\n  → data/raw is the new one, params.yaml the old: mend that, then understudy import --force"
        ) from None


def _dvc(workspace: Workspace, *arguments: str) -> str:
    """Run DVC in the clone and give what it prints.

    Raises:
        InfrastructureError: it failed; with its last line.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments],
        cwd=workspace.root,
        env=os.environ | {"DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise InfrastructureError(f"dvc {arguments[0]} failed: {lines[-1]}")
    return done.stdout


def _tell(found: Summary, dry_run: bool) -> None:
    classes = ", ".join(f"{len(classes)} {head} classes" for head, classes in found.heads.items())
    print(f"{found.name}: {found.clips} clips in {found.videos} videos of {found.groups} groups, {classes}")
    print(f"format {found.format}; sound: {_yes(found.sound)}; detections: {_yes(found.detections)}")
    splits = ", ".join(f"{split} {count} clips" for split, count in found.splits.items())
    print(f"splits: {splits or 'none given, they will be drawn by group'}")
    if found.unlabelled:
        print(f"{found.unlabelled} clips have no label; students learn from them what the teachers say")
    if found.missing_videos:
        print(f"{len(found.missing_videos)} video(s) are missing, the first {found.missing_videos[0]!r}")
    for note in found.notes:
        print(f"note: {note}")
    if dry_run:
        print("nothing was changed (dry run)")
    else:
        print("data/raw, data.dvc and params.yaml now follow it. Next: understudy run   (or: dvc repro)")
        print("To keep this version: git add data.dvc params.yaml && git commit")


def _yes(there: bool) -> str:
    return "yes" if there else "no"
