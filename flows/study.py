"""A study's workspaces: one clone of the code a data set, in the work folder, on the clone's own DVC cache.

All workspaces share one work folder and one cache: a network, a shard or a stage that any of them, another study or
`understudy run` made is not made again.
"""

import filecmp
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

import tasks.datasets
import tasks.survey
from flows.clone import Clone
from flows.plan import Plan, plan
from tasks.atomic import code_digest, digest, write_json, write_text
from tasks.clips import read_clips
from tasks.errors import UserError
from tasks.import_data import take_in
from tasks.layout import Workspace
from tasks.params import load
from tasks.settings import dvc_config, dvc_scratch, settings
from tasks.stores.tracking import store_uri, told
from tasks.study import spec
from tasks.study.cost import clips_shown, measured_rate
from tasks.study.spec import Composed, Source
from tasks.study.table import duration
from tasks.survey import Summary, survey

CODE = ("tasks", "models", "mlflow", "dvc.yaml")
"""What a stage runs and depends on. Copied, not checked out, so that a method nobody committed yet is in it."""
TARGET = "evaluate"
"""The last stage a study needs: it compares and releases nothing."""
_IMPORTED = "import.json"
"""What was taken in as data/raw of a workspace, and what was found in it."""


@dataclass(frozen=True)
class Part:
    """One data set of a study, ready to run.

    Attributes:
        name: of the data set.
        clone: its workspace.
        composed: its params.
        plan: the stages, and which are due.
        work: training stage → clips that it shows to networks, if it has to run as a whole.
    """

    name: str
    clone: Clone
    composed: Composed
    plan: Plan
    work: Mapping[str, float]

    @property
    def work_due(self) -> float:
        """Clips that the stages that are due show, at most: finished trainings are not repeated."""
        return sum(self.work.get(step.name, 0.0) for step in self.plan.due)


def share_work(clone: Clone) -> None:
    """Have everything that this process starts, in whatever workspace, use the clone's work folder and MLflow store."""
    os.environ["UNDERSTUDY_WORK"] = str(clone.work.resolve())
    if os.environ.get("MLFLOW_TRACKING_URI"):
        os.environ["MLFLOW_TRACKING_URI"] = store_uri(Workspace(clone.root))


def prepare(clone: Clone, source: Source, dry_run: bool) -> list[Part]:
    """Make every data set's workspace follow the study, and plan it.

    Args:
        clone: whose code, data, cache and work folder are used; see `share_work`.
        source: the study.
        dry_run: take no data in, a data set that is not there yet is planned without it; and leave the results of a
            study that was run before, and the params that they are of.

    Raises:
        UserError: the study, its params or its data are at fault.
        InfrastructureError: the disk, DVC or an S3 endpoint failed.
    """
    for name in source.study.data_sets:  # errors are found before data is copied for hours
        if _is_own(source, name):
            _composed(clone, source, name, None)
        else:
            spec.before_import(source, name, Workspace(clone.root).params)
    return [_part(clone, source, name, dry_run) for name in source.study.data_sets]


def rate(clone: Clone, parts: Sequence[Part]) -> float | None:
    """Clips a second that trainings of this clone and of the study's workspaces have shown so far."""
    return measured_rate(Workspace(root) for root in (clone.root, *(part.clone.root for part in parts)))


def _is_own(source: Source, name: str) -> bool:
    return source.study.data_sets[name].source == spec.CLONE


def _composed(clone: Clone, source: Source, name: str, found: Summary | None) -> Composed:
    return spec.compose(source, name, Workspace(clone.root).params, found)


def _part(clone: Clone, source: Source, name: str, dry_run: bool) -> Part:
    workspace = Clone(clone.work / "studies" / source.study.name / name)
    workspace.root.mkdir(parents=True, exist_ok=True)
    with workspace.only_run(), _as_it_was(Workspace(workspace.root).params, dry_run):
        _lay_out(clone, workspace)
        if _is_own(source, name):
            found = None
            _check_out(clone, workspace)
        else:
            found = _imported(clone, workspace, source, name, dry_run)
        composed = _composed(clone, source, name, found)
        write_text(Workspace(workspace.root).params, composed.text)
        if not dry_run:
            _clear(workspace, composed)
        todo = plan(workspace, [TARGET])
    return Part(name, workspace, composed, todo, clips_shown(composed.params, _train_clips(workspace, found)))


@contextmanager
def _as_it_was(file: Path, restore: bool) -> Iterator[None]:
    """Put `file` back at the end, if asked to and it was there."""
    before = file.read_text(encoding="utf-8") if restore and file.is_file() else None
    try:
        yield
    finally:
        if before is not None:
            write_text(file, before)


def _train_clips(workspace: Clone, found: Summary | None) -> int:
    """Training clips: counted where ingest has run, else what an import counted less the usual shares."""
    index = Workspace(workspace.root).index
    if (index / "clips.csv").is_file():
        return len(read_clips(index, "train"))
    annotations = Workspace(workspace.root).raw / "annotations.csv"
    if found is not None:
        return found.splits.get("train", round(0.6 * found.clips))
    return round(0.6 * len(annotations.read_bytes().splitlines())) if annotations.is_file() else 0


def _lay_out(clone: Clone, workspace: Clone) -> None:
    """The code of the clone as it is now, and a DVC repository of its own on the clone's cache."""
    for name in CODE:
        source, target = clone.root / name, workspace.root / name
        if source.is_dir():
            _mirror(source, target)
        elif not target.is_file() or not filecmp.cmp(source, target, shallow=False):
            shutil.copy2(source, target)
    (workspace.root / ".dvc").mkdir(exist_ok=True)
    config = f"[core]\n    no_scm = true\n    analytics = false\n[cache]\n    dir = {_cache(clone)}\n"
    file = workspace.root / ".dvc" / "config"
    if not file.is_file() or file.read_text(encoding="utf-8") != config:
        write_text(file, config)


def _mirror(source: Path, target: Path) -> None:
    """Make the folder `target` hold the files of `source` and no others; what is alike is left untouched."""

    def files(folder: Path) -> set[Path]:
        every = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return {path for path in every if "__pycache__" not in path.parts}

    wanted = files(source)
    for path in files(target) - wanted:
        (target / path).unlink()
    for path in wanted:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        if not (target / path).is_file() or not filecmp.cmp(source / path, target / path, shallow=False):
            shutil.copy2(source / path, target / path)


def _cache(clone: Clone) -> Path:
    """The folder of the clone's DVC cache, run-cache included."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(clone.root), config=dvc_config(clone.root), _wait_for_lock=True) as repo:
            return Path(repo.cache.local_cache_dir)
    except DvcException as error:
        raise UserError(
            f"DVC cannot be used in this clone: {error}", remedy="see: understudy doctor"
        ) from None


def _check_out(clone: Clone, workspace: Clone) -> None:
    """Have data/raw of the workspace follow the clone's data.dvc."""
    pointer = clone.root / "data.dvc"
    if not pointer.is_file():
        raise UserError("is not there", file=pointer, remedy="take data in: understudy import")
    text = pointer.read_text(encoding="utf-8").replace("  remote: sample\n", "")
    target = workspace.root / "data.dvc"
    (workspace.root / _IMPORTED).unlink(missing_ok=True)
    if not target.is_file() or target.read_text(encoding="utf-8") != text:
        write_text(target, text)
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "--wait-for-lock", "checkout", "--quiet", "--force", "data.dvc"],
        cwd=workspace.root,
        env=os.environ | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(dvc_scratch(workspace.root))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(
            "what it names is not in DVC's cache", file=pointer, remedy="fetch it: dvc pull data.dvc"
        )


def _imported(clone: Clone, workspace: Clone, source: Source, name: str, dry_run: bool) -> Summary | None:
    """What an import of the data set's source found; taken in anew where the source changed since.

    An S3 prefix is taken in once, unless what is asked of it, or the code that does it, is another since. In a dry run
    nothing is taken in, and nothing known of a prefix not yet fetched.
    """
    given = source.study.data_sets[name].source
    remote = given.startswith("s3://")
    where = given if remote else str(source.path(given))
    if not remote and not Path(where).is_dir():
        raise source.refuse(
            f"data_sets.{name}.source: {given!r} is not a folder",
            ("data_sets", name, "source"),
            f"clone for this clone's own data, a folder relative to {source.file.parent}, or s3://BUCKET/PREFIX",
        )
    note = workspace.root / _IMPORTED
    known = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    before = spec.before_import(source, name, Workspace(clone.root).params)
    data = yaml.safe_load(before)["data"]
    shares = [data[name] for name in ("validation_share", "test_share", "split_seed")]
    code = code_digest(tasks.datasets, tasks.survey)  # what it found, and what it made of the source
    version = digest(where, code, shares, None if remote else _listing(Path(where)))
    if known.get("version") == version and (workspace.root / "data.dvc").is_file():
        return Summary(**known["found"])
    write_text(Workspace(workspace.root).params, before)
    if dry_run:
        return None if remote else survey(Path(where), where, load(Workspace(workspace.root).params).data)
    note.unlink(missing_ok=True)
    found = take_in(where, Workspace(workspace.root), force=True, dry_run=False)
    write_json(note, {"source": where, "version": version, "found": asdict(found)})
    return found


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    """Every file with its size and time, so that a change is seen without reading all."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    stats = ((str(path.relative_to(folder)), path.stat()) for path in paths)
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _clear(workspace: Clone, composed: Composed) -> None:
    """Take away what an earlier version of the study made and this one does not name: stages depend on the folders."""
    params = composed.params
    made: dict[str, Collection[str]] = {
        "artifacts/students": params.students.keys(),
        "artifacts/teachers": params.teachers.keys(),
        "artifacts/fused": params.fused.keys(),
        "artifacts/teachings": {*params.teachers, *params.fused},
        "artifacts/specialists": params.specialists.keys(),
        "data/modalities": params.modalities.keys(),
    }
    for folder, names in made.items():
        for path in (workspace.root / folder).glob("*"):
            if path.name not in names:
                shutil.rmtree(path)


def outlook(part: Part, rate: float | None) -> str:
    """What is to come for a data set, in words: stages, trainings, and their time at a rate of clips a second."""
    due = part.plan.due
    if not due:
        return f"all {len(part.plan.steps)} stages are cached"
    trainings = [step.name for step in due if step.name in part.work]
    words = f"{len(due)} of {len(part.plan.steps)} stages to look at"
    if trainings:
        words += f", trainings show at most {part.work_due:,.0f} clips"
        hours = None if rate is None else duration(part.work_due / rate / settings().slots)
        words += f", about {hours} at the rate of earlier ones" if hours else " (no rate measured here yet)"
    aside = [f"without {name}: {reason}" for name, reason in part.composed.left_out.items()]
    return "\n  ".join([words, *aside, *part.composed.notes])


@dataclass(frozen=True)
class Report:
    """Where a study's result lies.

    Attributes:
        folder: relative to the clone.
        recorded: what MLflow was told, or why it could not be.
        unrecorded: whether MLflow failed.
    """

    folder: Path
    recorded: str
    unrecorded: bool


def report(clone: Clone, source: Source, parts: Sequence[Part], failed: Mapping[str, str]) -> Report | None:
    """Write reports/study/NAME from the data sets that are up to date, and record it; None without any."""
    from tasks.study import page, record
    from tasks.study.results import Finished, summarise

    finished = [
        Finished(
            part.name,
            Workspace(part.clone.root),
            part.composed.params,
            part.composed.left_out,
            part.composed.notes,
        )
        for part in parts
        if part.name not in failed
    ]
    if not finished:
        return None
    found = summarise(source.study, finished, failed)
    workspace = Workspace(clone.root)
    out = workspace.reports / "study" / source.study.name
    page.write(found, out)
    folder = out.relative_to(clone.root)
    try:
        return Report(folder, record.record(found, folder, workspace), False)
    except Exception as error:  # MLflow remembers; the study stands without it
        reason = told(error, workspace)
        return Report(folder, f"MLflow was not told: {reason}; run the study again when it is back", True)
