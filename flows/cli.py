"""The command `understudy`: maps arguments to functions, results to tables or JSON, errors to exit codes.

Everything heavy is imported inside the commands, so that help appears at once.
"""

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from flows.clone import Clone
    from flows.coordinator import PipelineFailed
    from flows.display import Board
    from flows.executor import ExecutorName
    from flows.plan import Plan
    from flows.study import Part
    from tasks.layout import Workspace
    from tasks.predict import Prediction
    from tasks.versus.compared import Versus

_DEBUG = "UNDERSTUDY_DEBUG"

app = typer.Typer(
    name="understudy",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train with every sense, deploy with one: distillation for egocentric action recognition.",
    epilog="Start with [bold]understudy doctor[/], then [bold]understudy run[/].",
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help=f"Show tracebacks (also {_DEBUG}=1).")] = False,
) -> None:
    if debug:
        os.environ[_DEBUG] = "1"


@app.command(
    epilog="Examples:  understudy doctor  ·  understudy doctor --json > doctor.json  ·  understudy doctor --infra"
)
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    infra: Annotated[
        bool, typer.Option("--infra", help="Check a team's servers, workers and stores instead.")
    ] = False,
) -> None:
    """Check the installation, DVC, Prefect, MLflow, the data and the hardware, and say what to do.

    Exits with 1 if a check fails.
    """
    from flows.doctor import examine, table

    if infra:
        from flows.installation import examine_infra

        checks = examine_infra(_clone())
    else:
        checks = examine(Path.cwd())
    if as_json:
        _print_json([vars(check) for check in checks])
    else:
        _console().print(table(checks))
    if any(check.state == "fails" for check in checks):
        raise typer.Exit(1)


@app.command(
    name="import",
    epilog="Examples:  understudy import ~/my-videos  ·  understudy import s3://bucket/prefix  ·  "
    "understudy import ~/EPIC-KITCHENS --preset epic-kitchens-100 --dry-run",
)
def import_(
    source: Annotated[
        str, typer.Argument(help="A folder with videos/ and annotations.csv, or s3://BUCKET/PREFIX.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Look and tell, change nothing.")] = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace a data/raw that DVC could not bring back.")
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            "-p",
            metavar="NAME",
            help="Begin from infra/presets/NAME.yaml in place of params.yaml as it is: epic-kitchens-100, "
            "something-something-v2 or something-else.",
        ),
    ] = None,
) -> None:
    """Check your own data, take it into data/raw, and write params.yaml for it.

    annotations.csv has the columns clip_id, video, start_s, stop_s, one column a label head (action, or verb
    and noun), and optionally group, split and slice columns.
    """
    from tasks.import_data import import_data
    from tasks.layout import Workspace

    clone = _clone()
    with nullcontext() if dry_run else clone.only_run():  # stages that run read what it replaces
        import_data(source, Workspace(clone.root), force, dry_run, preset)


@app.command(
    epilog="Examples:  understudy run  ·  understudy run --dry-run  ·  understudy run evaluate  ·  "
    "understudy run --force train_teacher@flow  ·  UNDERSTUDY_SLOTS=4 understudy run"
)
def run(
    stages: Annotated[
        list[str] | None,
        typer.Argument(
            help="Stages to bring up to date with all they depend on; extract means all extract@….",
            metavar="[STAGE]...",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Print what would run and why.")] = False,
    force: Annotated[
        list[str] | None,
        typer.Option("--force", "-f", metavar="STAGE", help="Run this stage even if unchanged."),
    ] = None,
    executor: Annotated[
        Literal["local", "workers"],
        typer.Option(
            help="Where stages are made: on this machine, or on the workers of your Prefect server."
        ),
    ] = "local",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show Prefect's log as well.")] = False,
) -> None:
    """Run what is stale, independent stages side by side; continue where a killed run stopped.

    DVC decides what is stale, Prefect orders it. Exits with the code of the first stage that failed: 2 for
    something to mend in params or data, 75 for a disk, network or store that failed.
    """
    from flows.plan import plan
    from tasks.params import load

    clone = _clone()
    os.chdir(clone.root)
    load(clone.root / "params.yaml")  # DVC drops the outputs of a stage before the stage refuses its params
    if dry_run:
        _console().print(_plan_table(plan(clone, stages or [], force or [])))
        return
    with clone.only_run():  # it mends what a killed run left, or DVC would not plan
        todo = plan(clone, stages or [], force or [])
    if todo.due:
        _run_flow(clone, stages or [], force or [], executor, verbose)
    else:
        _console().print(f"All {len(todo.steps)} stages are cached, nothing to run.")
    _finish(clone, {step.name for step in todo.steps})


@app.command(
    epilog="Examples:  understudy study benchmarks/study.yaml --dry-run  ·  understudy study benchmarks/study.yaml"
)
def study(
    file: Annotated[
        Path, typer.Argument(help="Methods, seeds and data sets, as benchmarks/study.yaml.", metavar="STUDY")
    ],
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", "-n", help="Print what would run for each data set, and its rough cost."),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show Prefect's log as well.")] = False,
) -> None:
    """Run methods × seeds × data sets through the pipeline and compare them: tables, tests, pictures, MLflow.

    Every data set has a workspace in the work folder, on this clone's DVC cache and trainings: what any study or
    run computed is not computed again, and a killed study goes on where it stopped. A data set that fails does not
    stop the others. The result is reports/study/NAME. Exit codes as those of run.
    """
    from flows import study as studies
    from tasks.study import spec

    source = spec.read(file.resolve())
    clone = _clone()
    os.chdir(clone.root)
    studies.share_work(clone)
    parts = studies.prepare(clone, source, dry_run)
    console = _console()
    if dry_run:
        rate = studies.rate(clone, parts)
        for part in parts:
            console.print(f"[bold]{part.name}[/]: {studies.outlook(part, rate)}")
            console.print(_plan_table(part.plan))
        return
    failed = _run_parts(clone, parts, verbose)
    out = studies.report(clone, source, parts, {name: str(error) for name, error in failed.items()})
    if out is not None:
        console.print(f"report:  {out.folder}/index.html\ntables:  {out.folder}/study.md, study.csv")
        console.print(out.recorded, style="yellow" if out.unrecorded else None)
    if failed:
        raise typer.Exit(next(iter(failed.values())).exit_code)


@app.command(
    epilog="Examples:  understudy predict kitchen.mp4  ·  understudy predict *.mp4 --json  ·  "
    "understudy predict recordings 'more/**/*.mov' --out said.parquet  ·  "
    "understudy predict long.mp4 --start 12.5 --stop 14  ·  "
    "understudy predict a.mp4 --model models:/understudy-student@champion"
)
def predict(
    videos: Annotated[
        list[str],
        typer.Argument(
            help="Video files, folders (all videos below) or patterns; RGB alone is looked at. "
            "Write -- before names that begin with a dash.",
            metavar="VIDEO...",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Write this .parquet, .csv or .jsonl instead, with a progress bar; killed and started again, "
            "it goes on.",
            metavar="FILE",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Videos that go through the network at once.", min=1)] = 16,
    start: Annotated[float | None, typer.Option(help="Seconds from the first frame.", min=0)] = None,
    stop: Annotated[float | None, typer.Option(help="Seconds from the first frame.", min=0)] = None,
    model: Annotated[
        str,
        typer.Option(help="A release folder, or models:/NAME@ALIAS or models:/NAME/VERSION in the registry."),
    ] = "artifacts/release",
    top: Annotated[int, typer.Option(help="Classes to show for each head.", min=1)] = 3,
) -> None:
    """Say what happens in videos, with calibrated probabilities.

    A video that cannot be read gets its error in the output and the others go on; the exit code is then 2.
    """
    from tasks.layout import Workspace

    span = _span(start, stop)
    root = Path.cwd() if Path(model).is_dir() else _clone().root
    from tasks import predict as predicting
    from tasks import predictions_file

    asked = predictions_file.find(videos)
    student = predicting.identify(
        model if model.startswith("models:") else str(root / model), Workspace(root)
    )
    if out is not None:
        written = predictions_file.write(asked, student, out, batch, top, span)
        print(f"{out}: {written.videos} videos, {written.failed} cannot be read; by {student.title}")
        failed = bool(written.failed)
    else:
        found = predicting.predict(asked, student.committee, top, span, batch)
        failed = any(prediction.error for prediction in found)
        if as_json:
            who = {"model": student.name, "version": student.version, "digest": student.digest}
            _print_json([vars(prediction) | who for prediction in found])
        else:
            _show_predictions(found, _console())
            _console().print(f"by {student.title}", style="dim", soft_wrap=True)
    if failed:
        raise typer.Exit(2)


@app.command(
    epilog="Examples:  understudy compare  ·  understudy compare HEAD~1 HEAD  ·  "
    "understudy compare old.json  ·  understudy compare @champion @challenger --html versus.html  ·  "
    "understudy compare v1 v2"
)
def compare(
    first: Annotated[
        str | None,
        typer.Argument(
            help="A comparison.json, a registered version (@champion, v2, models:/…) or a git revision."
        ),
    ] = None,
    second: Annotated[str | None, typer.Argument(help="Another; without it, the working tree's.")] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page too, of two registered versions."),
    ] = None,
) -> None:
    """Show teachers, baseline and students side by side, or two versions of them.

    Two registered versions are compared clip by clip, by what each said of the test clips when it was released:
    paired differences with intervals, and the classes that changed.
    """
    from tasks import compare as comparing
    from tasks.errors import UserError
    from tasks.layout import Workspace
    from tasks.report.table import comparison_table

    workspace = Workspace(_clone().root)
    console = _console()
    if first is None:
        comparison = comparing.current(workspace)
        console.print(comparison_table(comparison, console.width))
        if (against := comparing.baseline_table(comparison)) is not None:
            console.print(against)
        return
    versus = comparing.versus(first, second, workspace) if second is not None else None
    if versus is not None:
        _show_versus(versus, html, workspace, console)
        return
    if html is not None:
        raise UserError("--html is of two registered versions", remedy="name both, as @champion @challenger")
    before = comparing.read(first, workspace)
    after = comparing.current(workspace) if second is None else comparing.read(second, workspace)
    console.print(comparing.versions_table(before, after, (first, second or "working tree")))


@app.command(epilog="Examples:  understudy deploy --dry-run  ·  understudy deploy")
def deploy(
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Look and tell, change nothing.")] = False,
) -> None:
    """Set up a team's Prefect server: work pool, queues, deployments with their schedules, automations, notifications.

    The server is PREFECT_API_URL, its deployments are those of infra/prefect.yaml. Run again, it changes what differs
    and nothing else.
    """
    from flows.api import prepare_environment, team_server

    clone = _clone()
    prepare_environment(verbose=False)
    url = team_server()
    from flows import deploy as deploying

    changes = deploying.deploy(clone, dry_run)
    console = _console()
    for change in changes:
        console.print(f"{change.what} {change.why}", soft_wrap=True)
    if not changes:
        console.print(f"{url}: nothing to change")
    elif not dry_run:
        console.print(f"{url}: done")


@app.command(
    epilog="Examples:  understudy promote  ·  understudy promote 3  ·  "
    'understudy promote challenger --force --reason "the camera changed"'
)
def promote(
    version: Annotated[
        str, typer.Argument(help="A version's number or alias.", metavar="[VERSION|ALIAS]")
    ] = "challenger",
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Even though the gate says no; needs a reason.")
    ] = False,
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why; kept with the version.")] = "",
) -> None:
    """Make a registered version the champion, if the gate let it pass; the champion so far becomes previous.

    The gate compares it with the champion on the same test clips, by the thresholds in params.yaml, section gate.
    Who promoted it, when and why is kept in the registry. Exits with 2 where the gate says no.
    """
    from tasks.layout import Workspace
    from tasks.params import load
    from tasks.promotion import promote as make_champion

    workspace = Workspace(_clone().root)
    print(make_champion(version, load(workspace.params), workspace, force, reason))


@app.command(epilog='Examples:  understudy rollback  ·  understudy rollback --reason "misses cups"')
def rollback(
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why; kept with the version.")] = "",
) -> None:
    """Make the previous champion champion again; a second rollback takes it back."""
    from tasks.layout import Workspace
    from tasks.promotion import rollback as make_previous_champion

    print(make_previous_champion(Workspace(_clone().root), reason))


def main() -> None:
    """The entry point: no traceback for what a person can mend."""
    try:
        app()
    except Exception as error:
        sys.exit(_reported(error))


def _reported(error: Exception) -> int:
    """Print an error that is no defect and give its exit code; raise any other again."""
    from tasks.errors import InfrastructureError, UserError

    if os.environ.get(_DEBUG):
        raise error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" ({error.filename})" if error.filename else ""
        error = InfrastructureError(f"the disk is full{where}\n  → make room and try again")
    if not isinstance(error, (UserError, InfrastructureError)):
        raise error
    _complain(str(error))
    return error.exit_code


def _run_flow(
    clone: "Clone", stages: list[str], force: list[str], executor: "ExecutorName", verbose: bool
) -> None:
    """Run the flow under a live table; exit with the first failed stage's code."""
    from flows.display import Board

    with _prefect(clone, verbose):
        if (failed := _run_pipeline(clone, stages, force, executor, Board(_console()))) is not None:
            raise typer.Exit(failed.exit_code)


def _run_parts(clone: "Clone", parts: "Sequence[Part]", verbose: bool) -> "dict[str, PipelineFailed]":
    """Run what is due of every data set, one after the other; data set → how it failed."""
    from flows import study as studies
    from flows.display import Ahead, Board
    from tasks.settings import settings

    console = _console()
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


@contextmanager
def _prefect(clone: "Clone", verbose: bool) -> Iterator[None]:
    """Have a Prefect server to talk to."""
    from flows.api import prefect_api, prepare_environment

    prepare_environment(verbose)
    with ExitStack() as server:
        with _console().status("starting Prefect"):
            import flows.pipeline  # noqa: F401  # takes seconds, as the server does

            server.enter_context(prefect_api(clone))
        yield


def _run_pipeline(
    clone: "Clone", stages: list[str], force: list[str], executor: "ExecutorName", shown: "Board"
) -> "PipelineFailed | None":
    """Run the flow under a live table; how it failed, after saying so."""
    from flows.coordinator import PipelineFailed
    from flows.display import board
    from flows.pipeline import pipeline

    console = _console()
    token = board.set(shown)
    try:
        with shown.drawn():
            pipeline(clone.root, stages, force, executor)
        return None
    except PipelineFailed as failed:
        for failure in failed.failures:
            _complain(str(failure))
        if failed.not_started:
            _complain(f"not started, waiting for it: {', '.join(failed.not_started)}")
        return failed
    except KeyboardInterrupt:
        _complain("cancelled; what was done is kept, run again to go on")
        raise typer.Exit(130) from None
    finally:
        board.reset(token)
        console.print(shown.summary)
        if shown.did("ingest") and (left_out := _left_out(clone)):
            console.print(left_out, style="yellow")


def _left_out(clone: "Clone") -> str:
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


def _finish(clone: "Clone", covered: set[str]) -> None:
    """Make sure the release is registered here and say where to look, if the run covered them: else they may be old."""
    from tasks.layout import Workspace

    workspace = Workspace(clone.root)
    console = _console()
    if "register" in covered and (workspace.release / "release.json").is_file():
        from flows.registration import ensure_registered

        console.print(ensure_registered(clone))
    if "evaluate" in covered and (workspace.reports / "index.html").is_file():
        console.print("report:  reports/index.html\ntable:   [bold]understudy compare[/]")


def _plan_table(todo: "Plan") -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("stage", no_wrap=True)
    table.add_column("why", overflow="fold")
    for step in todo.steps:
        table.add_row(
            step.name, step.reason, style={"cached": "dim", "stale": "bold", "follows": ""}[step.verdict]
        )
    return table


def _show_predictions(found: "list[Prediction]", console: "Console") -> None:
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


def _printable(text: str) -> str:
    """`text` on one line, its control characters spelled out: names of strangers must not steer a terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _show_versus(versus: "Versus", html: Path | None, workspace: "Workspace", console: "Console") -> None:
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


def _span(start: float | None, stop: float | None) -> tuple[float, float] | None:
    from tasks.errors import UserError

    if start is None and stop is None:
        return None
    if stop is None:
        raise UserError("--start needs --stop", remedy="give both, in seconds from the first frame")
    return start or 0.0, stop


def _clone() -> "Clone":
    from flows.clone import find

    return find(Path.cwd())


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False)


def _complain(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(message, "red"), soft_wrap=True)


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
