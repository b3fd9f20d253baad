"""One clone of the project: its root, its scratch, and that one pipeline at a time runs in it."""

import fcntl
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from flows import disk
from tasks.atomic import write_text
from tasks.errors import InfrastructureError, UserError
from tasks.settings import settings

ENDING_S = 15.0
"""How long a new run waits for the processes of a killed one to be gone."""
PAUSES_S = (2.0, 10.0, 30.0, 60.0, 120.0)
"""Before each new attempt of a fetch. A name server or git server that is away for minutes must not cost a night."""
FETCH_S = 300.0
"""So long may one attempt take: a connection that died says nothing by itself."""


@dataclass(frozen=True)
class Clone:
    """A working copy of the repository, by its root folder."""

    root: Path

    @property
    def work(self) -> Path:
        """Scratch of this clone (`UNDERSTUDY_WORK`), absolute."""
        return self.root / settings().work

    def log(self, stage: str) -> Path:
        """The file that holds what `stage` printed when it last ran."""
        # Workspaces of a study lie inside the work folder that they share; their logs must not meet.
        shared = self.root.is_relative_to(self.work)
        place = self.root.relative_to(self.work) if shared else ""
        return self.work / "logs" / place / f"{stage.replace('/', '_')}.log"

    def git(self, *arguments: str, timeout_s: float | None = None, inherited: Sequence[int] = ()) -> str:
        """What a git command prints here.

        Args:
            timeout_s: it is ended after so long.
            inherited: descriptors that it holds open, too, as that of `only_run`.

        Raises:
            UserError: git refuses, with its own words.
            InfrastructureError: the disk is full, or it took too long.
        """
        command = ["git", "-C", str(self.root), *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=timeout_s, pass_fds=inherited
            )
        except subprocess.TimeoutExpired:
            raise InfrastructureError(f"git {arguments[0]} took more than {timeout_s} s") from None
        if done.returncode:
            said = done.stderr.strip() or f"git {arguments[0]} failed"
            if disk.is_full(said):
                raise InfrastructureError(said)
            raise UserError(said, remedy=f"see: git -C {self.root} status")
        return done.stdout

    def uncommitted(self) -> list[str]:
        """Files that differ from the commit or are not in it, but for ignored ones and dvc.lock, which runs write."""
        # --no-optional-locks: killed, it would leave an index.lock that is in the way of every checkout
        status = self.git("--no-optional-locks", "status", "--porcelain", "--untracked-files=normal")
        return [entry[3:] for entry in status.splitlines() if entry[3:] != "dvc.lock"]

    def refuse_changes(self, remedy: str) -> None:
        """Raise UserError where files differ from the commit, which a checkout would overwrite.

        Args:
            remedy: what whoever changed them may do.
        """
        if changed := self.uncommitted():
            raise UserError(f"{', '.join(changed[:3])} in {self.root} is not committed", remedy=remedy)

    def fetch(self) -> None:
        """Get the commits that are new where this was cloned from.

        Raises:
            InfrastructureError: it could not be reached, again and again.
        """
        for pause_s in (*PAUSES_S, None):
            try:
                # Pruned: a branch `a` that is gone there stands in the way of a new `a/b`.
                self.git("fetch", "--prune", "--quiet", timeout_s=FETCH_S)
                return
            except (UserError, InfrastructureError) as error:
                if pause_s is None:
                    cause = error.message if isinstance(error, UserError) else error
                    raise InfrastructureError(
                        f"git fetch in {self.root} failed {len(PAUSES_S) + 1} times: {cause}"
                    ) from None
                time.sleep(pause_s)

    def check_out(self, commit: str, lock: int) -> None:
        """Take a worker's clone to `commit`, whatever tracked files hold there.

        Args:
            lock: the descriptor of `only_run`: a git that outlives us holds it until it has ended.

        Raises:
            UserError: git refuses.
            InfrastructureError: the disk is full.
        """
        write_text(self._half_way, self.git("rev-parse", commit).strip())
        self.finish_check_out(lock)

    def finish_check_out(self, lock: int) -> None:
        """Do the rest of a `check_out` that was killed; else its half would be taken for somebody's changes.

        Nothing where none was: what a person changed stays.
        """
        if not self._half_way.exists():
            return
        # of a git that was killed: whoever lives holds the lock of `only_run`
        (self.root / self.git("rev-parse", "--git-path", "index.lock").strip()).unlink(missing_ok=True)
        commit = self._half_way.read_text(encoding="utf-8")
        self.git("checkout", "--quiet", "--force", "--detach", commit, inherited=[lock])
        self._half_way.unlink()

    @property
    def _half_way(self) -> Path:
        """Holds the commit that a checkout is on its way to."""
        return self.work / "check-out"

    @contextmanager
    def only_run(self) -> Iterator[int]:
        """Be the only run or import in this clone, and put right what a killed one left of DVC's own files.

        Yields:
            the lock's file descriptor. Processes that inherit it hold the lock as well, so that the next run
            starts when the last process of a killed run is gone, not earlier.

        Raises:
            UserError: another is going on.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / "run.lock").open("a+") as file:
            _lock(file.fileno(), file.name)
            self._mend()
            yield file.fileno()

    def _mend(self) -> None:
        """DVC writes these two in place: a kill in that moment leaves half a file, and no command works.

        Dropping them is safe: stages that dvc.lock no longer names come back from DVC's run-cache, and the
        rwlock only names processes that are running.
        """
        if not _reads(self.root / "dvc.lock", _lock_file):
            shutil.move(self.root / "dvc.lock", self.work / "dvc.lock.broken")  # maybe to another disk
        if not _reads(self.root / ".dvc" / "tmp" / "rwlock", json.loads):
            write_text(self.root / ".dvc" / "tmp" / "rwlock", "{}")


def find(start: Path) -> Clone:
    """The clone that `start` lies in: the nearest folder above it with a dvc.yaml.

    Raises:
        UserError: there is none.
    """
    for folder in (start, *start.parents):
        if (folder / "dvc.yaml").is_file():
            return Clone(folder)
    raise UserError(
        f"no dvc.yaml in {start} or above it", remedy="change into a clone of the project and try again"
    )


def of_flow(root: Path | None) -> Clone:
    """The clone that a flow works in: at its parameter `root`, else at the setting `clone`.

    Raises:
        UserError: there is none.
    """
    return find((root or settings().clone).resolve())


def _lock(descriptor: int, name: str) -> None:
    deadline = time.monotonic() + ENDING_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UserError(
                    "another `understudy run` or `understudy import` is going on in this clone",
                    file=name,
                    remedy="wait for it, or end it, and try again",
                ) from None
            time.sleep(0.2)


def _lock_file(text: str) -> object:
    """A dvc.lock as DVC reads it: half a file may be YAML all the same."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    try:
        return COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(text))
    except Invalid as error:
        raise ValueError(str(error)) from None


def _reads(file: Path, parse: Callable[[str], object]) -> bool:
    """Whether `file` is absent or whole; one second of patience, as a running DVC may be writing it."""
    for _ in range(5):
        try:
            if not file.exists() or parse(file.read_text(encoding="utf-8")) is not None:
                return True
        except (ValueError, yaml.YAMLError):
            pass
        time.sleep(0.2)
    return False
