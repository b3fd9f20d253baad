"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_QUIET_S = 2.0
"""Seconds between two lines where there is no terminal."""


class Progress:
    """Counts `total` units of work and says how far it is and how long it will take.

    Args:
        title: what is being done.
        total: how many units there are.
        unit: what is counted, in the plural.
    """

    def __init__(self, title: str, total: int, unit: str):
        self._title, self._total, self._unit = title, total, unit
        self._done, self._start, self._said = 0, time.monotonic(), float("-inf")
        self._bar: Bar | None = None
        if sys.stdout.isatty():
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit + " {task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(file=sys.stdout),
            )
            self._task = self._bar.add_task(title, total=total, note="")

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, units: int = 1, note: str = "") -> None:
        """`units` more are done; `note` says how it stands, for example a loss."""
        if not units:
            return
        self._done += units
        if self._bar is not None:
            self._bar.update(self._task, advance=units, note=note)
            return
        now = time.monotonic()
        if now - self._said >= _QUIET_S or self._done == self._total:
            self._said = now
            left = (now - self._start) / max(1, self._done) * (self._total - self._done)
            parts = [f"{self._title} {self._done}/{self._total} {self._unit}", note, f"{left:.0f} s left"]
            print(", ".join(part for part in parts if part), flush=True)
