"""What a person sees while the pipeline runs: a live table on a terminal, a line a change elsewhere."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flows.plan import Plan

State = Literal["waiting", "running", "ran", "restored", "cached", "failed", "not started"]
_LOOK: dict[State, tuple[str, str]] = {
    "waiting": ("·", "dim"),
    "running": ("▶", "bold cyan"),
    "ran": ("✔", "green"),
    "restored": ("✔", "green"),
    "cached": ("✔", "dim green"),
    "failed": ("✘", "bold red"),
    "not started": ("-", "yellow"),
}
HEARTBEAT_S = 30.0
_TOO_FAST = 4.0
"""Times the rate known before: what is faster was not trained, but found in the cache of trainings."""


@dataclass
class _Row:
    reason: str
    state: State = "waiting"
    line: str = ""
    since: float = field(default_factory=time.monotonic)
    seconds: float | None = None

    @property
    def elapsed_s(self) -> float | None:
        return time.monotonic() - self.since if self.state == "running" else self.seconds


@dataclass
class Ahead:
    """How much work trainings are, so that a board can say how long they will take.

    Attributes:
        work: stage → its work, in any unit; stages that are not there take no time worth telling.
        later: work that comes after this board's.
        rate: units a second of one stage, as known before; None where nothing was measured.
        slots: stages side by side.
    """

    work: Mapping[str, float]
    later: float
    rate: float | None
    slots: int


class Board:
    """The state of every stage of a run. Told by the run's threads, drawn by the terminal's."""

    def __init__(self, console: Console, ahead: Ahead | None = None):
        self._console, self._ahead = console, ahead
        self._rows: dict[str, _Row] = {}
        self._guard = threading.RLock()
        self._start = time.monotonic()
        self._live = console.is_terminal

    def show(self, plan: Plan) -> None:
        """List the stages of `plan`."""
        with self._guard:
            for step in plan.steps:
                state: State = "cached" if step.verdict == "cached" else "waiting"
                self._rows[step.name] = _Row(step.reason, state)
        cached = len(plan.steps) - len(plan.due)
        self._say(f"{len(plan.due)} stage(s) to look at, {cached} cached")

    def running(self, stage: str) -> None:
        """`stage` has begun."""
        with self._guard:
            row = self._rows[stage]
            row.state, row.since = "running", time.monotonic()
        self._say(f"{stage}: running ({self._rows[stage].reason})")

    def line(self, stage: str, text: str) -> None:
        """`stage` printed a line."""
        with self._guard:
            self._rows[stage].line = text

    def ended(self, stage: str, state: State, why: str = "") -> None:
        """`stage` came to its end, in `state`; `why` if it failed."""
        why = why.partition("\n")[0]
        with self._guard:
            row = self._rows[stage]
            row.seconds = time.monotonic() - row.since if row.state == "running" else None
            row.state, row.line = state, why or row.line
        took = f" ({row.seconds:.0f} s)" if row.seconds else ""
        self._say(f"{stage}: {state}{took}{': ' + why if why else ''}{self._left_in_words()}")

    def did(self, stage: str) -> bool:
        """Whether `stage` gave its outputs anew in this run."""
        with self._guard:
            return stage in self._rows and self._rows[stage].state in ("ran", "restored")

    @property
    def summary(self) -> str:
        """How many stages ended how, and the time it took."""
        with self._guard:
            counts = {state: sum(row.state == state for row in self._rows.values()) for state in _LOOK}
        parts = [f"{count} {state}" for state, count in counts.items() if count]
        return f"{', '.join(parts)} in {_clock(time.monotonic() - self._start)}"

    def left_s(self) -> float | None:
        """About how long the trainings ahead will take; None where nothing tells, 0 where none are ahead."""
        if self._ahead is None:
            return None
        rate, left = self._ahead.rate, self._ahead.later
        with self._guard:
            done = [
                (self._ahead.work[name], row.seconds)
                for name, row in self._rows.items()
                if row.state == "ran" and name in self._ahead.work and row.seconds
            ]
            if self._ahead.rate is not None:
                # A training that was done before takes seconds, and says nothing.
                done = [(work, took) for work, took in done if work / took < _TOO_FAST * self._ahead.rate]
            if done:
                rate = sum(work for work, _ in done) / sum(took for _, took in done)
            for name, row in self._rows.items():
                if row.state in ("waiting", "running"):
                    spent = (row.elapsed_s or 0.0) * (rate or 0.0)
                    left += max(0.0, self._ahead.work.get(name, 0.0) - spent)
        if not rate:
            return None if left else 0.0
        return left / rate / self._ahead.slots

    def _left_in_words(self) -> str:
        left = self.left_s()
        return f", about {_clock(left)} of training left" if left else ""

    @contextmanager
    def drawn(self) -> Iterator["Board"]:
        """Keep the board on the screen; where that is no terminal, print what goes on every `HEARTBEAT_S`."""
        if self._live:
            with Live(self, console=self._console, refresh_per_second=4, vertical_overflow="visible"):
                yield self
            return
        stop = threading.Event()
        heart = threading.Thread(target=self._beat, args=(stop,), daemon=True)
        heart.start()
        try:
            yield self
        finally:
            stop.set()
            heart.join()

    def __rich__(self) -> RenderableType:
        table = Table(box=None, padding=(0, 1), expand=True, show_header=False)
        table.add_column(width=1)
        table.add_column(no_wrap=True, max_width=30)
        table.add_column(no_wrap=True, min_width=7)
        table.add_column(justify="right", no_wrap=True, min_width=5)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        with self._guard:
            for stage, row in self._rows.items():
                mark, style = _LOOK[row.state]
                said = row.line if row.state in ("running", "failed") and row.line else row.reason
                table.add_row(
                    Text(mark, style),
                    Text(stage, style),
                    Text(row.state, style),
                    "" if row.elapsed_s is None else _clock(row.elapsed_s),
                    Text(said, "dim"),
                )
        elapsed = f"  {_clock(time.monotonic() - self._start)} elapsed{self._left_in_words()}"
        return Group(table, Text(elapsed, "dim"))

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_S):
            with self._guard:
                busy = [(name, row) for name, row in self._rows.items() if row.state == "running"]
                for name, row in busy:
                    self._say(f"{name}: {_clock(row.elapsed_s or 0)} {row.line}")

    def _say(self, text: str) -> None:
        if not self._live:
            self._console.print(
                f"[dim]{_clock(time.monotonic() - self._start)}[/] {escape(text)}", soft_wrap=True
            )


board: ContextVar[Board | None] = ContextVar("board", default=None)
"""The board that the pipeline of this context tells what it does; none on a worker, where nobody watches."""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
