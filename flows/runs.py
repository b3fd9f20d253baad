"""Runs of the pipeline as a person at a terminal sees them: a live table, what failed, where to look next.

Everything heavy is imported inside the functions, so that the command's help appears at once.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING

import typer

from flows.terminal import complain, terminal

if TYPE_CHECKING:
    from flows.clone import Clone
    from flows.coordinator import PipelineFailed
    from flows.display import Board
    from flows.executor import ExecutorName
    from flows.study import Part


def run_flow(
    clone: "Clone", stages: list[str], force: list[str], executor: "ExecutorName", verbose: bool
) -> None:
    """Run the flow under a live table; exit with the first failed stage's code."""
    from flows.display import Board

    with _prefect(clone, verbose):
        if (failed := _run_pipeline(clone, stages, force, executor, Board(terminal()))) is not None:
            raise typer.Exit(failed.exit_code)


def run_parts(clone: "Clone", parts: "Sequence[Part]", verbose: bool) -> "dict[str, PipelineFailed]":
    """Run what is due of every data set, one after the other; data set → how it failed."""
    from flows import study as studies
    from flows.display import Ahead, Board
    from tasks.settings import settings

    console = terminal()
    failed = {}
    due = [part for part in parts if part.plan.due]
    for part in parts:
        if part not in due:
            console.print(f"[bold]{part.name}[/]: all {len(part.plan.steps)} stages are cached")
    with _prefect(clone, verbose) if due else nullcontext():
        for number, part in enumerate(due):
            rate = studies.rate(clone, parts)
            console.print(f"[bold]{part.name}[/], {number + 1} of {len(due)}: {studies.outlook(part, rate)}")
            later = sum(each.work_due for each in due[number + 1 :])
            board = Board(console, Ahead(part.work, later, rate, settings().slots))
            if (failure := _run_pipeline(part.clone, [studies.TARGET], [], "local", board)) is not None:
                failed[part.name] = failure
    return failed


def finish(clone: "Clone", covered: set[str]) -> None:
    """Make sure the release is registered here and say where to look, if the run covered them: else they may be old."""
    from tasks.layout import Workspace

    workspace = Workspace(clone.root)
    console = terminal()
    if "register" in covered and (workspace.release / "release.json").is_file():
        from flows.registration import ensure_registered

        console.print(ensure_registered(clone))
    if "evaluate" in covered and (workspace.reports / "index.html").is_file():
        console.print("report:  reports/index.html\ntable:   [bold]understudy compare[/]")


@contextmanager
def _prefect(clone: "Clone", verbose: bool) -> Iterator[None]:
    """Have a Prefect server to talk to."""
    from flows.api import prefect_api, prepare_environment

    prepare_environment(verbose)
    with ExitStack() as server:
        with terminal().status("starting Prefect"):
            import flows.pipeline  # noqa: F401  # takes seconds, as the server does

            server.enter_context(prefect_api(clone))
        yield


def _run_pipeline(
    clone: "Clone", stages: list[str], force: list[str], executor: "ExecutorName", shown: "Board"
) -> "PipelineFailed | None":
    """Run the flow under a live table; how it failed, after saying so."""
    import httpx

    from flows.coordinator import PipelineFailed
    from flows.display import board
    from flows.pipeline import pipeline
    from tasks.errors import InfrastructureError

    console = terminal()
    token = board.set(shown)
    try:
        with shown.drawn():
            pipeline(clone.root, stages, force, executor)
        return None
    except PipelineFailed as failed:
        for failure in failed.failures:
            complain(str(failure))
        if failed.not_started:
            complain(f"not started, waiting for it: {', '.join(failed.not_started)}")
        return failed
    except httpx.HTTPError as error:
        if isinstance(error, httpx.HTTPStatusError) and not error.response.is_server_error:
            raise
        raise InfrastructureError(
            f"Prefect's server was lost ({str(error) or type(error).__name__})\n"
            "  → what was done is kept: run again when it is back"
        ) from error
    except KeyboardInterrupt:
        complain("cancelled; what was done is kept, run again to go on")
        raise typer.Exit(130) from None
    finally:
        board.reset(token)
        console.print(shown.summary)
        if shown.did("ingest") and (left_out := quarantined(clone)):
            console.print(left_out, style="yellow")


def quarantined(clone: "Clone") -> str:
    """How many clips ingest left out, and where it says why; empty where it took all."""
    import json

    from tasks.layout import Workspace

    index = Workspace(clone.root).index
    if not (index / "summary.json").is_file():
        return ""
    summary = json.loads((index / "summary.json").read_text(encoding="utf-8"))
    left_out = summary["quarantined"]
    file = os.path.relpath(index / "quarantine.csv")
    return f"{left_out} of {left_out + summary['clips']} clips are in quarantine: {file}" if left_out else ""
