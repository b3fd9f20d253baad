"""The command, in processes of its own: help, exit codes, messages, and what a SIGKILL leaves behind."""

import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from rich.console import Console

from flows import cli, runs
from flows.clone import Clone
from flows.terminal import show_predictions
from tasks.errors import InfrastructureError, UserError
from tasks.predict import Prediction

COMMAND = [sys.executable, "-m", "flows.cli"]
HEAVY = ("torch", "prefect", "mlflow", "dvc", "pandas", "cv2")
Runs = Callable[[], list[tuple[str, float, float]]]


@pytest.fixture
def understudy(
    project: Clone, environment: dict[str, str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*arguments: str, cwd: Path = project.root) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=180
        )

    return call


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["doctor"],
        ["deploy"],
        ["import"],
        ["run"],
        ["study"],
        ["predict"],
        ["compare"],
        ["promote"],
        ["rollback"],
    ],
)
def test_every_help_has_examples_and_imports_nothing_heavy(command: list[str], environment: dict[str, str]):
    script = (
        "import sys\nsys.argv[0] = 'understudy'\nfrom flows.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *command, "--help"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("[]\n"), done.stdout[-200:]
    assert "Examples:" in done.stdout or not command


def test_the_dry_run_prints_the_plan_and_starts_nothing(understudy, runs: Runs):
    done = understudy("run", "--dry-run")
    assert done.returncode == 0
    assert "extract@rgb never run" in " ".join(done.stdout.split())
    assert runs() == []


def test_user_errors_end_with_2_a_message_and_no_traceback(understudy, tmp_path: Path):
    for done, words in [
        (understudy("run", "evalute"), "did you mean 'evaluate'?"),
        (understudy("run", cwd=tmp_path), "no dvc.yaml"),
        (understudy("compare"), "nothing was evaluated yet"),
        (understudy("compare", "no-such-revision"), "neither a file nor a git revision"),
        (
            understudy("compare", "a.json", "b.json", "--html", "c.html"),
            "--html is of two registered versions",
        ),
        (understudy("promote", "--force"), "--force needs a reason"),
        (understudy("rollback"), "the registry has no understudy-student yet"),
        (understudy("predict", "a.mp4", "--start", "1"), "--start needs --stop"),
        (
            understudy("predict", "a.mp4", "--model", "v9"),
            "the registry has no models:/understudy-student/9 → a number",
        ),
        (understudy("run", "--nonsense"), "No such option"),
        (understudy("study", "nowhere.yaml"), "not found"),
        (understudy("study", "params.yaml"), "params.yaml, row 4: unknown key data"),
    ]:
        assert done.returncode == 2, done.stderr
        assert words in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("\nseeds:", "\nsedes: 1\nseeds:", "unknown key sedes; did you mean 'seeds'?"),
        ("\nseeds:", "\nseeds: [", "not valid YAML"),
        ("kind: hints\n", "kind: hinst\n", "kind: there is no 'hinst'; did you mean 'hints'?"),
    ],
)
def test_params_at_fault_are_refused_with_their_row_before_anything_runs(
    project: Clone,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    after: str,
    words: str,
    dry: bool,
):
    file = project.root / "params.yaml"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))
    monkeypatch.chdir(project.root)
    with pytest.raises(UserError) as refused:
        cli.run(dry_run=dry)
    assert words in str(refused.value)
    assert "params.yaml, row " in str(refused.value)
    assert runs() == []


def test_an_import_during_a_run_is_refused_before_it_looks_at_anything(
    project: Clone, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("flows.clone.ENDING_S", 0.3)
    monkeypatch.chdir(project.root)
    with project.only_run(), pytest.raises(UserError, match="`understudy run` or"):
        cli.import_("no-such-folder")
    with pytest.raises(UserError, match="is not a folder"):
        cli.import_("no-such-folder")


@pytest.mark.usefixtures("prefect_server")
def test_a_server_of_prefect_that_is_lost_is_infrastructure(project: Clone, monkeypatch: pytest.MonkeyPatch):
    from flows import pipeline
    from flows.display import Board
    from flows.terminal import terminal

    def lost(*_: object) -> None:
        raise httpx.ConnectError("[Errno 111] Connection refused")

    monkeypatch.setattr(pipeline, "pipeline", lost)
    with pytest.raises(InfrastructureError, match=r"server was lost \(.*refused\)\n.*run again"):
        runs._run_pipeline(project, [], [], "local", Board(terminal()))


def test_a_full_disk_is_infrastructure_and_no_traceback(capsys: pytest.CaptureFixture[str]):
    assert cli._reported(OSError(errno.ENOSPC, "No space left on device", "notes.db")) == 75
    assert "the disk is full (notes.db)" in capsys.readouterr().err
    assert cli._reported(OSError(errno.EROFS, "Read-only file system", "run.lock")) == 75
    assert "this machine failed: Read-only file system (run.lock)" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        cli._reported(FileNotFoundError(errno.ENOENT, "No such file or directory", "x"))


@pytest.mark.parametrize(
    ("quarantined", "told"), [(63, "63 of 203 clips are in quarantine: data/index/quarantine.csv"), (0, "")]
)
def test_clips_that_were_left_out_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quarantined: int, told: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "index").mkdir(parents=True)
    summary = {"clips": 140, "quarantined": quarantined}
    (tmp_path / "data" / "index" / "summary.json").write_text(json.dumps(summary))
    assert runs.quarantined(Clone(tmp_path)) == told


def test_a_run_that_covers_neither_report_nor_release_does_not_point_at_old_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "index.html").write_text("of other data")
    (tmp_path / "artifacts" / "release").mkdir(parents=True)
    (tmp_path / "artifacts" / "release" / "release.json").write_text("no JSON: whoever reads it fails")
    runs.finish(Clone(tmp_path), {"ingest"})
    assert capsys.readouterr().out == ""
    runs.finish(Clone(tmp_path), {"ingest", "evaluate"})
    assert "reports/index.html" in capsys.readouterr().out


def test_debug_shows_the_traceback(understudy):
    assert "Traceback" in understudy("--debug", "run", "evalute").stderr


def test_a_failed_stage_is_named_with_reason_log_and_exit_code_then_mended(
    project: Clone, understudy, runs: Runs
):
    (project.root / "source.txt").write_text("poison")
    done = understudy("run")
    assert done.returncode == 2
    assert "ingest failed (exit code 2)" in done.stderr
    assert "source.txt, row 1: poison" in done.stderr
    assert str(project.log("ingest")) in done.stderr
    assert "not started" in done.stderr
    assert "Traceback" not in done.stderr
    assert "1 ran, 1 failed, 3 not started" in done.stdout
    (project.root / "source.txt").write_text("words ")
    mended = understudy("run")
    assert mended.returncode == 0, mended.stderr
    assert understudy("run").stdout.startswith("All 5 stages are cached")


def test_compare_shows_two_files_side_by_side(understudy, tmp_path: Path):
    for name, top1 in (("old.json", 0.5), ("new.json", 0.75)):
        row = {"name": "student", "heads": {"action": {"top1": top1, "ece_scaled": 0.05}}}
        comparison = {"dataset": "tiny", "split": "test", "clips": 4, "seeds": [0], "rows": [row]}
        (tmp_path / name).write_text(json.dumps(comparison))
    done = understudy("compare", str(tmp_path / "old.json"), str(tmp_path / "new.json"))
    assert "50.0 → 75.0" in done.stdout
    assert "+25.0" in done.stdout
    (tmp_path / "old.json").write_text("{}")
    assert (
        "not a comparison"
        in understudy("compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")).stderr
    )


def test_predictions_fit_80_columns_and_errors_stay_whole():
    heads = {"verb": [("wash", 0.7), ("take", 0.2)], "noun": [("cup", 0.9), ("tin", 0.1)]}
    long, broken = "/a/folder/" + "deep/" * 20 + "long.mp4", "/a/folder/" + "deep/" * 20 + "broken.mp4"
    found = [
        Prediction("kitchen.mp4", 0, 1.5, heads),
        Prediction(broken, error="is truncated: it promises 28.792 s and holds 1.400 s"),
        Prediction(long, 0, 1.5, heads),
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    show_predictions(found, console)
    *table, error = console.export_text().splitlines()
    assert any(line.startswith("kitchen.mp4 ") and "70.0% wash" in line for line in table)
    assert max(map(len, table)) <= 80
    assert "…" not in "".join(table)
    assert error == f"{broken}: is truncated: it promises 28.792 s and holds 1.400 s"


@pytest.mark.slow
def test_killed_at_random_moments_the_next_run_ends_with_the_same_result(
    project: Clone, understudy, runs: Runs, environment: dict[str, str]
):
    """SIGKILL of the command takes server, DVC and stages with it; what was finished is not done again."""
    (project.root / "tiny.yaml").write_text("seconds: 1.0\nmodalities: {rgb: 1, flow: 1}\n")
    for moment in (random.uniform(1, 12), random.uniform(12, 20)):
        process = subprocess.Popen(
            [*COMMAND, "run"], cwd=project.root, env=environment, stdout=subprocess.DEVNULL
        )
        time.sleep(moment)
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive, f"killed after {moment:.1f} s, these outlived it: {alive}"
    done = understudy("run")
    assert done.returncode == 0, done.stderr
    assert (project.root / "report.txt").read_text() == "words ingestrgbwords ingestflow"
    assert (project.root / "aside.txt").read_text() == "words aside"
    assert understudy("run").stdout.startswith("All 5 stages are cached")
