"""What a run would do and why, read from DVC: its graph and its status. Knows nothing of Prefect."""

import difflib
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from flows.clone import Clone
from tasks.errors import InfrastructureError, UserError
from tasks.settings import dvc_config, dvc_scratch

Verdict = Literal["cached", "stale", "follows"]
Queue = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Step:
    """One stage of the pipeline and what is to happen to it.

    `stale`: its own inputs, command or outputs changed. `follows`: only something it depends on is stale;
    DVC decides when its turn comes. `cached`: nothing to do.

    Attributes:
        dependencies: the steps before it.
        forced: run it even where nothing changed.
        queue: what it needs, from its `meta` in dvc.yaml; cpu where that says nothing.
        phase: the part of the pipeline it belongs to, from there as well; empty: none.
    """

    name: str
    verdict: Verdict
    reason: str
    dependencies: tuple[str, ...]
    forced: bool = False
    queue: Queue = "cpu"
    phase: str = ""


@dataclass(frozen=True)
class Plan:
    """The stages of a run, each after everything it depends on."""

    steps: tuple[Step, ...]

    @property
    def due(self) -> list[Step]:
        """The stages that are not cached."""
        return [step for step in self.steps if step.verdict != "cached"]

    def stages_ahead(self) -> dict[str, int]:
        """For each step the number of those on the longest way from it to the end of the pipeline."""
        ahead = dict.fromkeys((step.name for step in self.steps), 0)
        for step in reversed(self.steps):
            for name in step.dependencies:
                ahead[name] = max(ahead[name], ahead[step.name] + 1)
        return ahead


def plan(clone: Clone, targets: Sequence[str] = (), force: Sequence[str] = (), phase: str = "") -> Plan:
    """Ask DVC which stages are stale.

    Args:
        targets: stages to bring up to date, with all they depend on; a bare name such as `extract` means all
            of `extract@…`. Empty: the whole pipeline.
        force: stages to run even where nothing changed.
        phase: instead of targets, all stages of this phase.

    Raises:
        UserError: an unknown stage, a dvc.yaml that DVC refuses, tracked data that is not there, or a stage at work in
            this clone, whose outputs DVC does not look at meanwhile.
        InfrastructureError: DVC's own database cannot be written, as on a full disk.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with Repo(str(clone.root), config=dvc_config(clone.root), _wait_for_lock=True) as repo:
            graph = repo.index.graph
            stages = {stage_name(stage): stage for stage in graph}
            parents = {
                name: [stage_name(s) for s in graph.successors(stage)] for name, stage in stages.items()
            }
            told = repo.status()
            status = {name: told.get(stage.addressing, []) for name, stage in stages.items()}
            _refuse_missing_data(stages, status)
            if phase and not (targets := [name for name, each in stages.items() if _phase(each) == phase]):
                raise UserError(
                    f"no stage has the phase {phase}", file="dvc.yaml", remedy="see its rows `meta:`"
                )
            return _decide(stages, parents, status, targets, force)
    except sqlite3.Error as error:  # DVC keeps notes on files there, and loses nothing with them
        raise InfrastructureError(
            f"DVC's notes in {dvc_scratch(clone.root)} cannot be used: {error}\n"
            "  → make room on the disk, or remove that folder; DVC makes it anew"
        ) from None
    except LockError as error:
        busy = str(error).partition("\n\n")[0]
        raise UserError(
            f"a stage is at work, and what is stale cannot be told before it ends: {busy}",
            file=clone.root,
            remedy="wait for it, or end it, and try again",
        ) from None
    except DvcException as error:
        raise UserError(
            str(error), file=clone.root / "dvc.yaml", remedy="`dvc status` shows the rows at fault"
        ) from None


def _decide(
    stages: dict[str, Any],
    parents: dict[str, list[str]],
    status: dict[str, Any],
    targets: Sequence[str],
    force: Sequence[str],
) -> Plan:
    wanted = resolve(targets, stages) if targets else list(stages)
    forced = resolve(force, stages)
    steps: dict[str, Step] = {}
    for name in _ordered([*wanted, *forced], parents):
        changed = _reason(stages[name], status[name])
        after = [parent for parent in parents[name] if parent in steps and steps[parent].verdict != "cached"]
        verdict: Verdict = "cached"
        reason = "cached"
        if name in forced:
            verdict, reason = "stale", "forced"
        elif changed:
            verdict, reason = "stale", changed
        elif after:
            verdict, reason = "follows", f"may change (after {', '.join(after)})"
        if stages[name].is_data_source and verdict == "cached":
            continue  # data that is as DVC knows it is not a stage to a reader of the plan
        dependencies = tuple(parent for parent in parents[name] if parent in steps)
        place = _queue(stages[name]), _phase(stages[name])
        steps[name] = Step(name, verdict, reason, dependencies, name in forced, *place)
    return Plan(tuple(steps.values()))


def _queue(stage: Any) -> Queue:
    queue: Queue = (stage.meta or {}).get("queue", "cpu")
    if queue not in get_args(Queue):
        known = " or ".join(get_args(Queue))
        raise UserError(
            f"{stage_name(stage)}: meta.queue is {queue!r}", file="dvc.yaml", remedy=f"write {known}"
        )
    return queue


def _phase(stage: Any) -> str:
    return str((stage.meta or {}).get("phase", ""))


def stage_name(stage: Any) -> str:
    """What `dvc repro` calls the stage at the root; DVC's own `addressing` depends on the current folder."""
    return str(getattr(stage, "name", None) or stage.path_in_repo)


def resolve(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """The stages that `names` mean: an exact name, or all of `name@…`.

    Raises:
        UserError: no such stage, with the nearest one.
    """
    known = list(known)
    found = []
    for name in names:
        matches = [stage for stage in known if name in (stage, stage.partition("@")[0])]
        if not matches:
            near = difflib.get_close_matches(name, known, n=1)
            suggestion = f"did you mean {near[0]!r}?" if near else f"stages: {', '.join(sorted(known))}"
            raise UserError(f"there is no stage {name!r}", file="dvc.yaml", remedy=suggestion)
        found += matches
    return found


def _ordered(names: Iterable[str], parents: dict[str, list[str]]) -> list[str]:
    """`names` and all they depend on, each once and after its parents."""
    order: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in order:
            for parent in parents[name]:
                visit(parent)
            order[name] = None

    for name in names:
        visit(name)
    return list(order)


def _reason(stage: Any, entries: list[Any]) -> str:
    """Why DVC holds the stage for stale, in a few words; empty where it does not."""
    if not entries:
        return ""
    if not any(out.hash_info for out in stage.outs):
        return "never run"
    changed, missing = [], []
    for entry in entries:
        if isinstance(entry, str):
            changed.append(entry.removeprefix("changed "))
            continue
        for kind, paths in entry.items():
            for path, what in paths.items():
                if isinstance(what, dict):  # params: the keys that changed
                    changed.append(f"{path} {' '.join(what)}")
                elif kind == "changed outs" and what in ("deleted", "not in cache"):
                    missing.append(path)
                else:
                    changed.append(path)
    parts = [
        f"{word}: {', '.join(names)}" for word, names in (("changed", changed), ("missing", missing)) if names
    ]
    return "; ".join(parts)


def _refuse_missing_data(stages: dict[str, Any], status: dict[str, Any]) -> None:
    for name, entries in status.items():
        if not stages[name].is_data_source:
            continue
        for entry in entries:
            outs = entry.get("changed outs", {}) if isinstance(entry, dict) else {}
            for path, what in outs.items():
                if what in ("deleted", "not in cache"):
                    raise UserError(f"{path} is not here", file=name, remedy=f"fetch it: dvc pull {name}")
