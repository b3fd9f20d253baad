"""What the command `understudy` prints: tables, JSON, errors. Everything heavy is imported inside the functions."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from flows.plan import Plan
    from tasks.layout import Workspace
    from tasks.predict import Prediction
    from tasks.versus.compared import Versus


def terminal() -> "Console":
    """Standard output."""
    from rich.console import Console

    return Console(highlight=False)


def complain(message: str) -> None:
    """Print an error."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(message, "red"), soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    import json

    print(json.dumps(value, indent=1, ensure_ascii=False))


def plan_table(todo: "Plan") -> "Table":
    """What would run, and why."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("stage", no_wrap=True)
    table.add_column("why", overflow="fold")
    for step in todo.steps:
        table.add_row(
            step.name, step.reason, style={"cached": "dim", "stale": "bold", "follows": ""}[step.verdict]
        )
    return table


def show_predictions(found: "list[Prediction]", console: "Console") -> None:
    """A table of what was recognised; below it, where lines may be long, what cannot be read."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("video", overflow="fold")
    table.add_column("seconds", no_wrap=True)
    for head in next((list(p.heads) for p in found if p.heads), []):
        table.add_column(head, overflow="fold")
    for prediction in found:
        if not prediction.error:
            lines = [
                "\n".join(f"{p:5.1%} {label}" for label, p in ranked) for ranked in prediction.heads.values()
            ]
            span = f"{prediction.start_s:.2f}-{prediction.stop_s:.2f}"
            table.add_row(Text(_printable(prediction.video)), span, *map(Text, lines))
    if table.rows:
        console.print(table)
    for prediction in found:
        if prediction.error:
            message = _printable(f"{prediction.video}: {prediction.error}")
            console.print(Text(message, "red"), soft_wrap=True)


def show_versus(versus: "Versus", html: Path | None, workspace: "Workspace", console: "Console") -> None:
    """The tables of two versions, and their page if asked for."""
    from tasks.versus.table import tables

    console.print(versus.claim, soft_wrap=True)
    for table in tables(versus):
        console.print(table)
    if html is not None:
        from tasks.atomic import write_text
        from tasks.params import load
        from tasks.versus.page import render

        write_text(html, render(versus, None, load(workspace.params).evaluate.bins))
        console.print(f"page:  {html}", soft_wrap=True)


def _printable(text: str) -> str:
    """`text` on one line, its control characters spelled out: names of strangers must not steer a terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
