"""The executor of this machine: one stage, one process group, none of which outlives us."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from flows import tether
from flows.clone import Clone
from tasks.errors import InfrastructureError

KEPT_LINES = 30
_EXIT = re.compile(r"failed to run: .*, exited with (-?\d+)")
_RESTORED = re.compile(r"is cached - skipping run, checking out outputs")
_SKIPPED = re.compile(r"didn't change, skipping|are up to date")
_NEWS_OF_DVC = re.compile(
    r"^(Running stage '|> |Updating lock file|Generating lock file|To track the changes"
    r"|To enable auto staging|\tgit add |\tdvc config |Use `dvc push`|Verifying data sources"
    r"|Stage '.*' didn't change|Data and pipelines are|ERROR: failed to reproduce|\s*$)"
)


class Outcome(StrEnum):
    """How a stage came to be up to date."""

    RAN = "ran"
    RESTORED = "restored"
    CACHED = "cached"


class StageFailed(Exception):
    """A stage ended with an error.

    Attributes:
        stage: its name.
        exit_code: the stage's own: 2 the user's to mend, 75 infrastructure, anything else a defect.
        reason: the last it printed.
        log: the file with all it printed.
    """

    def __init__(self, stage: str, exit_code: int, reason: str, log: Path):
        self.stage, self.exit_code, self.reason, self.log = stage, exit_code, reason, log
        super().__init__(f"{stage} failed (exit code {exit_code}): {reason}\n  log: {log}")

    @property
    def worth_retrying(self) -> bool:
        """Whether a disk, network or store failed, not the stage."""
        return self.exit_code == InfrastructureError.exit_code


class LocalExecutor:
    """Runs stages of one clone as `dvc repro -s`, several at a time if called from several threads.

    Args:
        clone: where.
        lock: the descriptor of `Clone.only_run`, which every stage's tether inherits.
    """

    def __init__(self, clone: Clone, lock: int):
        self._clone, self._lock = clone, lock
        self._running: set[subprocess.Popen[str]] = set()
        self._guard = threading.Lock()
        self._stopped = False

    def run(self, stage: str, forced: bool, on_line: Callable[[str], None]) -> Outcome:
        """Bring one stage up to date and wait for it.

        Args:
            on_line: called with every line the stage prints.

        Raises:
            StageFailed: the stage, or DVC, ended with an error.
        """
        log = self._clone.log(stage)
        log.parent.mkdir(parents=True, exist_ok=True)
        last: deque[str] = deque(maxlen=KEPT_LINES)
        outcome = Outcome.RAN
        process = self._start(stage, forced)
        try:
            assert process.stdout is not None
            with log.open("w", encoding="utf-8") as file:
                for line in process.stdout:
                    file.write(line)
                    file.flush()
                    last.append(line.rstrip())
                    outcome = _outcome(line, outcome)
                    if not _NEWS_OF_DVC.match(line):
                        on_line(line.rstrip())
            code = process.wait()
        finally:
            self._end(process)
        if code:
            raise StageFailed(stage, _exit_code(last, code), _last_words(last), log)
        return outcome

    def stop(self) -> None:
        """End every stage in progress and start no other."""
        with self._guard:
            self._stopped = True
            running = list(self._running)
        for process in running:
            _let_go(process)

    def _start(self, stage: str, forced: bool) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
        if forced:
            command.append("--force")
        with self._guard:
            if self._stopped:
                raise InterruptedError(f"{stage}: not started, the run was cancelled")
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", tether.__file__, *command],
                cwd=self._clone.root,
                env=self._environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
                pass_fds=[self._lock],
            )
            self._running.add(process)
        return process

    def _environment(self) -> dict[str, str]:
        """Ours, with DVC quiet, and with this interpreter first, which is the `python` of dvc.yaml."""
        return os.environ | {
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self._clone.dvc_site),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PYTHONUNBUFFERED": "1",
        }

    def _end(self, process: "subprocess.Popen[str]") -> None:
        """Leave nothing of the stage's group behind, however we came here."""
        _let_go(process)
        try:
            process.wait(timeout=tether.GRACE_S + 5)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        with self._guard:
            self._running.discard(process)


def _let_go(process: "subprocess.Popen[str]") -> None:
    """Close our end of the tether: its process ends the stage if that is still running."""
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()


def _outcome(line: str, so_far: Outcome) -> Outcome:
    if _RESTORED.search(line):
        return Outcome.RESTORED
    return Outcome.CACHED if _SKIPPED.search(line) else so_far


def _exit_code(last: deque[str], code: int) -> int:
    """The stage's exit code, which DVC only tells in words; 1 where DVC itself failed."""
    for line in reversed(last):
        if match := _EXIT.search(line):
            return abs(int(match.group(1)))
    return code if code >= 128 and code != 255 else 1


def _last_words(last: deque[str]) -> str:
    """The end of what the stage said, without DVC's own lines."""
    own = [line for line in last if not _NEWS_OF_DVC.match(line)]
    if not own:  # the stage never spoke: DVC's own words are the reason
        own = [line.removeprefix("ERROR: ") for line in last if line.strip()][-1:]
    traceback = next((i for i, line in enumerate(own) if line.startswith("Traceback ")), None)
    if traceback is not None:
        own = own[-1:]
    return "\n".join(own[-6:]).strip() or "it said nothing"
