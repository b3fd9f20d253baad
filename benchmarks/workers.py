"""What does a second GPU worker buy? The same pipeline on two and on one, each time from nothing.

`python -m benchmarks.workers [CLONE]`: a clone whose data/raw is there and whose changes are committed; without one, a
clone in small whose two teachers train for a while (`benchmarks.small`). Everything runs on this machine
(`benchmarks.team`), so workers share its cores.
"""

import re
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from benchmarks.small import SPLITS, make_clone, shipped, tiny
from benchmarks.team import Team, team

EPOCHS = 200
"""Of a training in small: long enough that it, and not the handing over, takes the time."""


def main(arguments: list[str]) -> None:
    """Print the wall time of each, and of every stage as the coordinator saw it."""
    with TemporaryDirectory(prefix="workers") as folder:
        _compare(Path(arguments[0]).resolve() if arguments else _small(Path(folder) / "project"))


def _small(root: Path) -> Path:
    params = tiny(shipped())
    for learner in (*params["teachers"].values(), *params["students"].values()):
        learner["training"] |= {"epochs": EPOCHS}
    return make_clone(root, params, SPLITS).root


def _compare(project: Path) -> None:
    taken: dict[str, tuple[float, dict[str, str]]] = {}
    for count in (2, 1):
        workers = {f"gpu-{number + 1}": "gpu" for number in range(count)} | {"cpu-1": "cpu"}
        with TemporaryDirectory(prefix="workers") as folder, team(project, Path(folder), workers) as running:
            taken[f"{count} gpu, 1 cpu"] = _timed(running)
    shown = Table("stage", *taken)
    for stage in taken["1 gpu, 1 cpu"][1]:
        shown.add_row(stage, *(stages.get(stage, "") for _, stages in taken.values()))
    shown.add_row("whole run, s", *(f"{seconds:.0f}" for seconds, _ in taken.values()))
    Console().print(shown)


def _timed(running: Team) -> tuple[float, dict[str, str]]:
    """Seconds of the whole run, and stage → its own."""
    began = time.monotonic()
    done = running.understudy("run", "--executor", "workers", timeout_s=4 * 3600)
    seconds = time.monotonic() - began
    if done.returncode or re.search(r": (restored|cached)", done.stdout):
        sys.exit(f"not a run from nothing:\n{done.stdout}{done.stderr}")
    found = re.findall(r"^[\d:]+ ([\w@]+): ran \((\d+) s\)", done.stdout, re.MULTILINE)
    return seconds, dict(found)


if __name__ == "__main__":
    main(sys.argv[1:])
