"""The DVC remote that machines share: what a stage takes from it, and what it hands back through it."""

import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.clone import Clone
from flows.plan import stage_name
from tasks.errors import InfrastructureError, UserError
from tasks.settings import dvc_config

SAMPLE = "sample"
"""The remote that ships in the repository: it holds the sample alone, and every clone has its own."""
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Before each new attempt of a transfer. A store that is away for half a minute must not cost a training."""


def require(clone: Clone) -> None:
    """Refuse a clone whose default remote is none that other machines see.

    Raises:
        UserError: it has none, or the shipped one.
    """
    with _opened(clone) as repo:
        name = repo.config["core"].get("remote")
    if name in (None, SAMPLE):
        raise UserError(
            "no DVC remote that machines share is the default",
            file=clone.root / ".dvc" / "config",
            remedy="dvc remote add -d storage s3://bucket/prefix, and commit .dvc/config",
        )


def push_inputs(clone: Clone, due: Collection[str]) -> None:
    """Send what the stages `due` take of others that are up to date, and of tracked data, where the remote lacks it.

    Raises:
        InfrastructureError: the remote failed, again and again.
    """
    with _opened(clone) as repo:
        graph = repo.index.graph
        before = {name for stage in graph if stage_name(stage) in due for name in _read_by(graph, stage)}
        if needed := sorted(before - set(due)):  # to DVC, none means all
            _persistently("push", lambda: repo.push(targets=_targets(clone, needed)))


def push_made(clone: Clone, stage: str) -> None:
    """Send a stage's outputs, and its entry of the run-cache: what was made of which inputs.

    Raises:
        InfrastructureError: the remote failed, again and again.
    """
    with _opened(clone) as repo:
        _persistently("push", lambda: repo.push(targets=_targets(clone, [stage])))
        asked = next(each for each in repo.index.graph if stage_name(each) == stage)
        _persistently("push", lambda: _push_entry(repo, asked))


def _push_entry(repo: Any, stage: Any) -> None:
    """Send what the run-cache holds of a stage's inputs, where the remote lacks it.

    `dvc push --run-cache` writes anew whatever was made in this clone or any other, thousands of files after a year,
    and keeps a rule of the store from removing old ones.
    """
    from dvc.stage.cache import _get_stage_hash

    key = _get_stage_hash(stage)
    made = Path(repo.stage_cache.cache_dir, key[:2], key) if key else None
    if made is None or not made.is_dir():
        return
    # where DVC looks for it
    odb = repo.cloud.get_remote_odb(None, "push --run-cache", hash_name="md5-dos2unix")
    for entry in made.iterdir():
        there = odb.fs.join(odb.path, "runs", key[:2], key, entry.name)
        if not odb.fs.exists(there):
            odb.fs.put_file(str(entry), there)


def take_inputs(clone: Clone, stage: str) -> None:
    """Have the clone hold exactly what `stage` reads of other stages, by dvc.lock, and nothing older beside it.

    `dvc repro --pull` alone would fetch what is missing and take what is there as it is, be it of another commit.

    Raises:
        InfrastructureError: the remote failed, again and again, or does not have it.
    """
    with _opened(clone) as repo:
        graph = repo.index.graph
        asked = next(each for each in graph if stage_name(each) == stage)
        _tidy(graph, asked)
        if before := _read_by(graph, asked):
            _persistently("pull", lambda: repo.pull(targets=_targets(clone, before), force=True))


def drop_leftovers(clone: Clone, due: Collection[str]) -> None:
    """Empty the folders that the stages `due` read of what no stage makes any more: workers do not have it either."""
    with _opened(clone) as repo:
        graph = repo.index.graph
        for stage in graph:
            if stage_name(stage) in due:
                _tidy(graph, stage)


def take_outputs(clone: Clone, stage: str) -> None:
    """Have the clone hold what dvc.lock says that `stage` made.

    Raises:
        InfrastructureError: the remote failed, again and again, or does not have it.
    """
    with _opened(clone) as repo:
        _persistently("pull", lambda: repo.pull(targets=_targets(clone, [stage]), force=True))


def readings(clone: Clone) -> dict[str, list[str]]:
    """Stage → the stages and tracked data whose outputs it reads."""
    with _opened(clone) as repo:
        graph = repo.index.graph
        return {stage_name(stage): _read_by(graph, stage) for stage in graph}


def _read_by(graph: Any, stage: Any) -> list[str]:
    """Who made what a stage reads: those before it, and those for whom they stand.

    DVC takes no lists from params, so a dependency may stand for what was needed to make it (dvc.yaml says so where it
    is): teachers, for the modalities that an omnivorous student is shown of them; to `evaluate`, what a fused teacher
    taught, for its network.
    """
    stands_for = {"train_teacher": "extract"}
    if stage_name(stage) == "evaluate":
        stands_for["teach_fused"] = "fuse"

    def kind(of: Any) -> str:
        return stage_name(of).partition("@")[0]

    before = list(graph.successors(stage))
    deeper = [
        far for near in before for far in graph.successors(near) if kind(far) == stands_for.get(kind(near))
    ]
    return sorted({stage_name(each) for each in (*before, *deeper)})


def take_tracked(clone: Clone) -> None:
    """Have the clone hold exactly the data that its .dvc files name.

    Raises:
        UserError: the remote does not hold them.
        InfrastructureError: the remote failed, again and again.
    """
    from dvc.exceptions import CheckoutError

    with _opened(clone) as repo:
        tracked = [stage_name(each) for each in repo.index.graph if each.is_data_source]
        if not tracked:
            return
        try:
            _persistently("pull", lambda: repo.pull(targets=_targets(clone, tracked), force=True))
        except InfrastructureError as error:
            if not isinstance(error.__cause__, CheckoutError):
                raise
            raise UserError(
                f"the DVC remote does not hold all that this commit names: {error}",
                remedy="push it from where it was committed: dvc push",
            ) from None


def _tidy(graph: Any, stage: Any) -> None:
    """Leave nothing in what a stage reads but outputs of stages."""
    outs = [Path(out.fs_path) for each in graph for out in each.outs]
    for dep in stage.deps:
        _keep_only(Path(dep.fs_path), outs)


def _keep_only(folder: Path, outs: Sequence[Path]) -> None:
    """Empty a folder that holds outputs of several stages of all that is none: outputs of another commit."""
    if not folder.is_dir() or not any(folder in out.parents for out in outs):
        return
    for path in folder.iterdir():
        if path in outs:
            continue
        if any(path in out.parents for out in outs):
            _keep_only(path, outs)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _targets(clone: Clone, names: Sequence[str]) -> list[str]:
    """Stages and .dvc files as DVC finds them from whatever folder is the current one."""
    return [
        str(clone.root / name) if name.endswith(".dvc") else f"{clone.root / 'dvc.yaml'}:{name}"
        for name in names
    ]


def _persistently(what: str, transfer: Callable[[], object]) -> None:
    for pause_s in (*PAUSES_S, None):
        try:
            transfer()
            return
        except Exception as error:  # each kind of remote has its own
            if pause_s is None:
                raise InfrastructureError(f"dvc {what} failed {len(PAUSES_S) + 1} times: {error}") from error
            time.sleep(pause_s)


@contextmanager
def _opened(clone: Clone) -> Iterator[Any]:
    from dvc.repo import Repo

    with Repo(str(clone.root), config=dvc_config(clone.root), _wait_for_lock=True) as repo:
        yield repo
