"""`understudy import`: takes a folder or an S3 prefix in as data/raw, tracked by DVC; writes its params."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tasks import params
from tasks.atomic import digest, new_file, new_folder, write_text
from tasks.datasets import FORMATS
from tasks.datasets.annotations import Dataset, suggestion
from tasks.errors import InfrastructureError, UserError
from tasks.layout import Workspace
from tasks.progress import Progress
from tasks.settings import dvc_scratch, settings
from tasks.stores import s3
from tasks.survey import Summary, survey
from tasks.written_params import written_params

_CLONE_FILE = 0x40049409
"""FICLONE of linux/fs.h: share the blocks of another file (Btrfs, XFS), so that a copy costs nothing."""


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
    _require_room(folder, sum(path.stat().st_size for path in files), workspace)
    try:
        with new_folder(workspace.raw) as raw, Progress("take in", len(files), "files") as progress:
            for path in files:
                target = raw / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                _clone(path, target)
                progress.advance()
            reader.take_in(raw, workspace.root / settings().work / "probes")
    except OSError as error:
        raise InfrastructureError(
            f"{folder} cannot be copied: {error.strerror}; data/raw is as it was"
        ) from None


def _require_room(folder: Path, size: int, workspace: Workspace) -> None:
    """Raise UserError where a copy of `folder` in data/raw and DVC's own of that do not fit the disk."""
    cache = Path(_dvc(workspace, "cache", "dir").strip())
    while not cache.exists():
        cache = cache.parent
    source, root, kept = (place.stat().st_dev for place in (folder, workspace.root, cache))
    shares = _shares_blocks(workspace.root)
    copies = [
        to for of, to in ((source, root), (root, kept)) if of != to or not shares
    ]  # the disks of real ones
    for disk, place in {root: workspace.root, kept: cache}.items():
        needed, free = size * copies.count(disk), _free(place)
        if needed > free:
            raise UserError(
                f"holds {_size(size)}; data/raw and DVC's cache of it take {_size(needed)} of the disk of {place}, "
                f"which has {_size(free)} left",
                file=folder,
                remedy="make room first",
            )


def _shares_blocks(folder: Path) -> bool:
    """Whether the file system of `folder` copies a file by sharing its blocks, as DVC does where it can."""
    with tempfile.NamedTemporaryFile(dir=folder) as one, tempfile.NamedTemporaryFile(dir=folder) as other:
        one.write(b"x")
        one.flush()
        return _share(one.fileno(), other.fileno())


def _share(source: int, target: int) -> bool:
    """Have the file `target` share the blocks of `source`, if the file system can."""
    try:
        fcntl.ioctl(target, _CLONE_FILE, source)
    except OSError:
        return False
    return True


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
        if not _share(reading.fileno(), writing.fileno()):
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
        env=os.environ | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(dvc_scratch(workspace.root))},
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
    if sum(found.splits.values()) == found.clips - found.unlabelled:
        for split in ("val", "test"):
            if split not in found.splits:
                print(f"no clip says {split}: groups of train will become it")
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
