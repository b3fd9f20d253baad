"""What does a fault cost? Runs on three workers, into each of which something is killed at a random moment.

`python -m benchmarks.faults [RUNS]`, 20 unless told otherwise. Each run trains the teacher of a clone in small anew and
writes down what it says (`benchmarks.small`), so that each has to end in the bytes of the run in which nothing
happened. A run that ends otherwise, or needs a person, is a failure of ours. What systemd does on a team's machines is
done here: a server or worker that was killed is begun again after 10 s.
"""

import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.settings import temporary_settings
from rich.console import Console
from rich.table import Table

from benchmarks.small import make_clone, shipped, tiny
from benchmarks.team import CHECKPOINTS, Team, team
from tasks.atomic import file_digest

WORKERS = {"gpu-1": "gpu", "gpu-2": "gpu", "cpu-1": "cpu"}
AGAIN = ("train_teacher@detections", "teach@detections")
"""Made anew in every run; the last depends on the first."""
RESTART_S = 10.0
AWAY_S = 20.0
PATIENCE_S = 1200
_NOTICED = {"Crashed", "Failed", "AwaitingRetry"}


@dataclass(frozen=True)
class Ended:
    """What became of a run.

    Attributes:
        right: it ended by itself, in the same bytes as the run in which nothing happened, and DVC agrees.
        seconds: it took.
        noticed_s: from the fault to the first state of a stage's run that tells of it; None where none did, because
            it was ridden out.
        said: what it printed.
    """

    right: bool
    seconds: float
    noticed_s: float | None
    said: str


def main(arguments: list[str]) -> None:
    """Print a table, a line a kind of fault."""
    runs = int(arguments[0]) if arguments else 20
    faults: dict[str, Callable[[Team], None]] = {
        "stage killed": _kill_stage,
        "worker killed": _kill_worker,
        "Prefect's server killed": _kill_prefect,
        "store away for 20 s": _take_store_away,
        "MLflow away for 20 s": _take_mlflow_away,
    }
    found: dict[str, list[Ended]] = defaultdict(list)
    with TemporaryDirectory(prefix="faults") as name:
        folder = Path(name)
        with team(_project(folder / "project"), folder / "team", WORKERS) as running:
            done = running.understudy("run", "--executor", "workers", AGAIN[-1], timeout_s=2400)
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            made = _made(running)
            quiet = _ended(running, made, None, 0.0)
            print(
                f"nothing happens: {quiet.seconds:.0f} s, {'right' if quiet.right else quiet.said}",
                flush=True,
            )
            for number in range(runs):
                kind = list(faults)[number % len(faults)]
                moment_s = random.uniform(0.05, 0.55) * quiet.seconds  # what waits for a stage finds one
                ended = _ended(running, made, faults[kind], moment_s)
                found[kind].append(ended)
                noticed = (
                    "ridden out" if ended.noticed_s is None else f"noticed after {ended.noticed_s:.0f} s"
                )
                state = "right" if ended.right else f"WRONG\n{ended.said}"
                print(
                    f"{number + 1}/{runs} {kind} after {moment_s:.0f} s: {noticed}, "
                    f"{ended.seconds - quiet.seconds:+.0f} s, {state}",
                    flush=True,
                )
    table = Table("fault", "runs", "right by themselves", "noticed after s", "longer by s, median (most)")
    for kind, runs_of in found.items():
        seen = [run.noticed_s for run in runs_of if run.noticed_s is not None]
        extra = [run.seconds - quiet.seconds for run in runs_of]
        table.add_row(
            kind,
            str(len(runs_of)),
            str(sum(run.right for run in runs_of)),
            f"{statistics.median(seen):.0f} ({max(seen):.0f}), {len(seen)} runs" if seen else "ridden out",
            f"{statistics.median(extra):.0f} ({max(extra):.0f})",
        )
    table.add_row("all", str(runs), str(sum(run.right for each in found.values() for run in each)), "", "")
    Console(width=120).print(table)


def _project(root: Path) -> Path:
    """One teacher, committed."""
    params = tiny(shipped())
    params |= {"teachers": {"detections": params["teachers"]["detections"]}}
    params["modalities"] = {name: params["modalities"][name] for name in ("rgb", "detections")}
    params["students"] = {"baseline": params["students"]["baseline"]}
    budget = params["teachers"]["detections"]["training"]
    budget |= {"epochs": 100}  # long enough to be hit
    return make_clone(root, params, ("train",) * 8 + ("val",) * 2 + ("test",) * 2).root


def _made(running: Team) -> dict[str, str]:
    """File → its hash, of the networks and of what they say; curves tell seconds, which are never the same."""
    folders = [running.coordinator / "artifacts" / kind for kind in ("teachers", "teachings")]
    files = sorted(file for folder in folders for file in folder.rglob("*.safetensors"))
    return {str(file.relative_to(running.coordinator)): file_digest(file) for file in files}


def _ended(
    running: Team, made: dict[str, str], fault: Callable[[Team], None] | None, moment_s: float
) -> Ended:
    """Run all of `AGAIN` anew, with the fault at that moment."""
    for (
        clone
    ) in running.workers.values():  # else the checkpoints of the run before would end a training at once
        shutil.rmtree(clone / ".understudy" / "trainings", ignore_errors=True)
    running.store.drop(CHECKPOINTS)
    forced = [word for stage in AGAIN for word in ("--force", stage)]
    began, happened = time.monotonic(), datetime.now(UTC)
    run = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", "--executor", "workers", AGAIN[-1], *forced],
        cwd=running.coordinator,
        env=running.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if fault is not None:
        time.sleep(moment_s)
        happened = datetime.now(UTC)
        fault(running)
    try:
        said, _ = run.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        run.kill()
        said, _ = run.communicate()
    seconds = time.monotonic() - began
    right = run.returncode == 0 and _made(running) == made and _is_clean(running)
    return Ended(right, seconds, _noticed_s(running, happened) if fault else None, said)


def _is_clean(running: Team) -> bool:
    status = [sys.executable, "-m", "dvc", "status", *AGAIN]
    done = subprocess.run(
        status, cwd=running.coordinator, env=running.environment, capture_output=True, text=True
    )
    return "up to date" in done.stdout


def _noticed_s(running: Team, happened: datetime) -> float | None:
    """Seconds to the first state of a stage's run, after the fault, that tells of one."""
    found = []
    with temporary_settings(running.settings), get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["stage"]))):
            for state in client.read_flow_run_states(run.id):
                if state.name in _NOTICED and state.timestamp > happened:
                    found.append((state.timestamp - happened).total_seconds())
    return min(found, default=None)


def _kill_stage(running: Team) -> None:
    """A process that makes a stage, as the kernel does where memory ends; the next one, if there is none."""
    while True:
        for name in running.workers:
            for process in running.parts[name].family:
                try:
                    if re.search(r"-m tasks \w+", " ".join(process.cmdline())):
                        process.kill()
                        return
                except psutil.NoSuchProcess:
                    continue
        time.sleep(0.05)


def _kill_worker(running: Team) -> None:
    """One that is at work, as if its machine had lost power."""
    busy = [name for name in running.workers if len(running.parts[name].family) > 1]
    part = running.parts[random.choice(busy or list(running.workers))]
    part.kill()
    time.sleep(RESTART_S)
    part.begin()


def _kill_prefect(running: Team) -> None:
    running.parts["prefect"].kill()
    time.sleep(RESTART_S)
    running.parts["prefect"].begin()


def _take_store_away(running: Team) -> None:
    running.store.end()
    time.sleep(AWAY_S)
    running.store.begin()


def _take_mlflow_away(running: Team) -> None:
    running.parts["mlflow"].kill()
    time.sleep(AWAY_S)
    running.parts["mlflow"].begin()


if __name__ == "__main__":
    main(sys.argv[1:])
