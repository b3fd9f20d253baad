"""What an executor is: it brings one stage up to date, here or elsewhere. Knows nothing of Prefect."""

import signal
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol

from flows.plan import Step
from tasks.errors import InfrastructureError

ExecutorName = Literal["local", "workers"]
"""Where the stages of a run are made: on this machine, or on whichever workers are free."""


KILLED = 128 + signal.SIGKILL
"""The exit code of what a SIGKILL ended, as a shell tells it."""


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
        log: the file, or the page of Prefect's UI, with all it printed.
        given_up: it was already tried as often as is worth it.
    """

    def __init__(self, stage: str, exit_code: int, reason: str, log: Path | str, given_up: bool = False):
        self.stage, self.exit_code, self.reason, self.log = stage, exit_code, reason, log
        self.given_up = given_up
        super().__init__(f"{stage} failed (exit code {exit_code}): {reason}\n  log: {log}")

    @property
    def worth_retrying(self) -> bool:
        """Whether a disk, network or store failed, or the stage was killed, as where memory ends."""
        return not self.given_up and self.exit_code in (InfrastructureError.exit_code, KILLED)


class Executor(Protocol):
    """Brings stages up to date, several at a time if called from several threads."""

    @property
    def slots(self) -> int:
        """How many stages it is worth running side by side."""

    def run(self, step: Step, on_line: Callable[[str], None]) -> Outcome:
        """Bring one stage up to date and wait for it.

        Args:
            on_line: called with what the stage prints.

        Raises:
            StageFailed: the stage, DVC or what carries them ended with an error.
            InterruptedError: the run was cancelled.
        """

    def stop(self) -> None:
        """End every stage in progress and start no other."""
