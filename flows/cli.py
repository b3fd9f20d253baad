"""The command `understudy`: maps arguments to functions, results to tables or JSON, errors to exit codes.

Everything heavy is imported inside the commands, so that help appears at once.
"""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.runs import finish, run_flow, run_parts
from flows.terminal import complain, plan_table, print_json, show_predictions, show_versus, terminal

if TYPE_CHECKING:
    from flows.clone import Clone

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
        print_json([vars(check) for check in checks])
    else:
        terminal().print(table(checks))
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
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", "-n", help="Look and tell, change nothing; what lies in S3 is fetched first."
        ),
    ] = False,
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
        typer.Option(
            "--force",
            "-f",
            metavar="STAGE",
            help="Run this stage even if unchanged; finished trainings are not made again.",
        ),
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
        terminal().print(plan_table(plan(clone, stages or [], force or [])))
        return
    with clone.only_run():  # it mends what a killed run left, or DVC would not plan
        todo = plan(clone, stages or [], force or [])
    if todo.due:
        run_flow(clone, stages or [], force or [], executor, verbose)
    else:
        terminal().print(f"All {len(todo.steps)} stages are cached, nothing to run.")
    finish(clone, {step.name for step in todo.steps})


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
    console = terminal()
    if dry_run:
        rate = studies.rate(clone, parts)
        for part in parts:
            console.print(f"[bold]{part.name}[/]: {studies.outlook(part, rate)}")
            console.print(plan_table(part.plan))
        return
    failed = run_parts(clone, parts, verbose)
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
    "understudy predict a.mp4 --model @champion"
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
        typer.Option(help="A release folder, or a registered version (@champion, v2, models:/…)."),
    ] = "artifacts/release",
    top: Annotated[int, typer.Option(help="Classes to show for each head.", min=1)] = 3,
) -> None:
    """Say what happens in videos, with calibrated probabilities.

    A video that cannot be read gets its error in the output and the others go on; the exit code is then 2.
    """
    from tasks.layout import Workspace

    span = _span(start, stop)
    a_folder = Path(model).is_dir()
    root = Path.cwd() if a_folder else _clone().root
    from tasks import predict as predicting
    from tasks import predictions_file
    from tasks.stores.tracking import address

    asked = predictions_file.find(videos)
    registered = "" if a_folder else address(model)
    student = predicting.identify(
        registered if registered.startswith("models:") else str(root / model), Workspace(root)
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
            print_json([vars(prediction) | who for prediction in found])
        else:
            show_predictions(found, terminal())
            terminal().print(f"by {student.title}", style="dim", soft_wrap=True)
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
    console = terminal()
    if first is None:
        comparison = comparing.current(workspace)
        console.print(comparison_table(comparison, console.width))
        if (against := comparing.baseline_table(comparison)) is not None:
            console.print(against)
        return
    versus = comparing.versus(first, second, workspace) if second is not None else None
    if versus is not None:
        show_versus(versus, html, workspace, console)
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
    console = terminal()
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
    from tasks.stores.faults import of_machine

    if os.environ.get(_DEBUG):
        raise error
    error = of_machine(error) or error
    if not isinstance(error, (UserError, InfrastructureError)):
        raise error
    complain(str(error))
    return error.exit_code


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


if __name__ == "__main__":
    main()
