"""The executor of this machine: one stage, one process group, none of which outlives us."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from flows import disk, tether
from flows.clone import Clone
from flows.executor import Outcome, StageFailed
from flows.gpus import Gpus, visible
from flows.plan import Step
from tasks.errors import InfrastructureError
from tasks.settings import dvc_scratch, settings

KEPT_LINES = 30
_EXIT = re.compile(r"failed to run: .*, exited with (-?\d+)")
_STORE_FAILED = re.compile(
    r"failed to (down|up)load|[Cc]ould not connect|[Cc]onnection (reset|refused|aborted|was closed)|timed? ?out"
)
"""What DVC says where its remote is away or breaks off: each kind of remote has its own words."""
_RESTORED = re.compile(r"is cached - skipping run, checking out outputs")
_SKIPPED = re.compile(r"didn't change, skipping|are up to date")
_RUNS = re.compile(r"^Running stage '")
_NEWS_OF_DVC = re.compile(
    r"^(Running stage '|> |Pulling data for |Updating lock file|Generating lock file|To track the changes"
    r"|To enable auto staging|\tgit add |\tdvc config |Use `dvc push`|Verifying data sources"
    r"|Stage '.*' didn't change|Data and pipelines are|ERROR: failed to reproduce|\s*$)"
)


class LocalExecutor:
    """Runs stages of one clone as `dvc repro -s`, several at a time if called from several threads.

    Args:
        clone: where.
        lock: the descriptor of `Clone.only_run`, which every stage's tether inherits.
    """

    def __init__(self, clone: Clone, lock: int):
        self._clone, self._lock = clone, lock
        self._gpus = Gpus(visible())
        self._running: set[subprocess.Popen[str]] = set()
        self._guard = threading.Lock()
        self._stopped = False

    @property
    def slots(self) -> int:
        """See `Executor`: the setting of that name."""
        return settings().slots

    def run(self, step: Step, on_line: Callable[[str], None]) -> Outcome:
        """See `Executor`."""
        options = ["--force"] if step.forced else []
        if not (devices := self.devices(step)):
            return self.repro(step.name, options, on_line, {})
        with self._gpus.lent(devices) as environment:
            return self.repro(step.name, options, on_line, environment)

    def devices(self, step: Step) -> int:
        """How many GPUs a stage has: those of its training, none in another queue than `gpu`."""
        if step.queue != "gpu":
            return 0
        from tasks.params import load  # takes seconds

        name, _, item = step.name.partition("@")
        return load(self._clone.root / "params.yaml").devices(name, item or None)

    def repro(
        self,
        stage: str,
        options: Sequence[str],
        on_line: Callable[[str], None],
        environment: Mapping[str, str],
        may_run: bool = True,
    ) -> Outcome:
        """`dvc repro --single-item` of one stage.

        Args:
            options: more of DVC's.
            on_line: called with every line the stage prints.
            environment: what it sees beside ours.
            may_run: False where its outputs must be there to be fetched: the stage is ended as it begins.

        Raises:
            StageFailed: the stage, or DVC, ended with an error.
            InfrastructureError: it began to run and may not.
        """
        log = self._clone.log(stage)
        log.parent.mkdir(parents=True, exist_ok=True)
        last: deque[str] = deque(maxlen=KEPT_LINES)
        outcome = Outcome.RAN
        process = self._start(stage, options, environment)
        try:
            assert process.stdout is not None
            with log.open("w", encoding="utf-8") as file:
                for line in process.stdout:
                    if not may_run and _RUNS.match(line):
                        raise InfrastructureError(
                            f"{stage} was to be fetched, and DVC would make it here again"
                        )
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
        self._gpus.close()
        for process in running:
            _let_go(process)

    def _start(
        self, stage: str, options: Sequence[str], environment: Mapping[str, str]
    ) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", *options, stage]
        with self._guard:
            if self._stopped:
                raise InterruptedError(f"{stage}: not started, the run was cancelled")
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", tether.__file__, *command],
                cwd=self._clone.root,
                env={**self._environment(), **environment},
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
            "DVC_SITE_CACHE_DIR": str(dvc_scratch(self._clone.root)),
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
    """The stage's exit code, which DVC only tells in words; 1 where DVC itself failed.

    But 75 where the disk is full or DVC's remote failed, as both may pass.
    """
    code = code if code >= 128 and code != 255 else 1
    ran = False
    for line in last:
        if match := _EXIT.search(line):
            ran, told = True, int(match.group(1))
            code = told if told >= 0 else 128 - told  # ended by a signal: as a shell tells it
    passing = any(disk.is_full(line) or (not ran and _STORE_FAILED.search(line)) for line in last)
    return InfrastructureError.exit_code if code == 1 and passing else code


def _last_words(last: deque[str]) -> str:
    """The end of what the stage said, without DVC's own lines."""
    own = [line for line in last if not _NEWS_OF_DVC.match(line)]
    if not own:  # the stage never spoke: DVC's own words are the reason
        own = [line.removeprefix("ERROR: ") for line in last if line.strip()][-1:]
    traceback = next((i for i, line in enumerate(own) if line.startswith("Traceback ")), None)
    if traceback is not None:
        own = own[-1:]
    return "\n".join(own[-6:]).strip() or "it said nothing"
