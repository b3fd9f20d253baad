"""Two versions on a terminal."""

from collections.abc import Iterator

from rich.table import Table

from tasks.pairing import Paired
from tasks.versus.compared import Versus

TITLES = {"top1": "top-1 %", "ece": "ECE", "nll": "NLL"}
"""Figure → how a reader calls it."""
MOST_CLASSES = 10
"""Classes that a terminal shows of those that gain, and of those that lose."""
_SCALES = {"top1": (100, 1), "ece": (1, 3), "nll": (1, 2)}


def shown(figure: str, value: float) -> str:
    """A figure in its unit."""
    scale, digits = _SCALES[figure]
    return f"{scale * value:.{digits}f}"


def difference(figure: str, both: Paired) -> str:
    """What changed, with its interval where the two are paired."""
    scale, digits = _SCALES[figure]
    text = f"{scale * both.change:+.{digits}f}"
    if both.interval is None:
        return text
    low, high = (f"{scale * bound:+.{digits}f}" for bound in both.interval)
    return f"{text} [{low}, {high}]"


def tables(versus: Versus) -> Iterator[Table]:
    """The figures of every head, then the classes whose top-1 changed."""
    first, second = versus.sides
    caption = versus.unlike or f"[95 % interval], paired over {first.scorecard.clips} test clips"
    table = Table(title=f"{first.title} → {second.title}", caption=caption)
    table.add_column("head", no_wrap=True)
    table.add_column("figure", no_wrap=True)
    for title in (f"v{first.version}", f"v{second.version}", "difference"):
        table.add_column(title, justify="right", no_wrap=True)
    for head, figures in versus.heads.items():
        for place, (figure, both) in enumerate(figures.items()):
            table.add_row(
                "" if place else head,
                TITLES[figure],
                shown(figure, both.before),
                shown(figure, both.after),
                difference(figure, both),
            )
    yield table
    for head, parts in versus.classes.items():
        changed = [part for part in parts if part.change]
        if not changed:
            continue
        table = Table(title=f"{head}: classes whose top-1 changed")
        table.add_column(head, overflow="fold")
        for title in ("clips", f"v{first.version} %", f"v{second.version} %", "points"):
            table.add_column(title, justify="right", no_wrap=True)
        few = (
            changed if len(changed) <= 2 * MOST_CLASSES else changed[:MOST_CLASSES] + changed[-MOST_CLASSES:]
        )
        for part in few:
            table.add_row(
                part.name,
                str(part.clips),
                f"{100 * part.before:.0f}",
                f"{100 * part.after:.0f}",
                f"{100 * part.change:+.0f}",
            )
        if len(few) < len(changed):
            table.caption = f"{len(few)} of {len(changed)}; --html FILE has them all"
        yield table
