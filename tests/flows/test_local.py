"""The executor of this machine, with real DVC: what it reports, and that nothing outlives it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from flows import tether
from flows.clone import Clone
from flows.local import LocalExecutor, Outcome, StageFailed


def run(project: Clone, stage: str, forced: bool = False) -> tuple[Outcome, list[str]]:
    lines: list[str] = []
    with project.only_run() as lock:
        outcome = LocalExecutor(project, lock).run(stage, forced, lines.append)
    return outcome, lines


def wait_for(condition, seconds: float = 20.0) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def test_a_stage_runs_once_is_cached_then_and_comes_back_from_the_run_cache(project: Clone):
    assert run(project, "ingest") == (Outcome.RAN, ["ingest 1/2"])
    assert run(project, "ingest") == (Outcome.CACHED, [])
    (project.root / "index.txt").unlink()
    assert run(project, "ingest")[0] == Outcome.RESTORED
    assert run(project, "ingest", forced=True)[0] == Outcome.RAN


def test_a_failing_stage_tells_its_own_words_exit_code_and_log(project: Clone):
    (project.root / "source.txt").write_text("poison")
    with pytest.raises(StageFailed) as failed:
        run(project, "ingest")
    error = failed.value
    assert (error.stage, error.exit_code) == ("ingest", 2)
    assert error.reason.endswith("source.txt, row 1: poison")
    assert error.log == project.work / "logs" / "ingest.log"
    assert "source.txt, row 1: poison" in error.log.read_text()
    assert not error.worth_retrying


def test_a_stage_that_dvc_cannot_start_fails_with_dvcs_reason(project: Clone):
    (project.root / "source.txt").unlink()
    with pytest.raises(StageFailed, match=r"source\.txt") as failed:
        run(project, "ingest")
    assert failed.value.exit_code == 1


def test_a_traceback_is_told_by_its_last_line(project: Clone):
    (project.root / "stage.py").write_text("raise ValueError('no such thing')")
    with pytest.raises(StageFailed) as failed:
        run(project, "ingest")
    assert failed.value.reason == "ValueError: no such thing"


def test_stopping_ends_the_stage_and_starts_no_other(project: Clone):
    (project.root / "tiny.yaml").write_text("seconds: 60.0\nmodalities: {rgb: 1, flow: 1}\n")
    spoken = threading.Event()
    caught: list[BaseException] = []
    with project.only_run() as lock:
        executor = LocalExecutor(project, lock)

        def go() -> None:
            try:
                executor.run("ingest", False, lambda _: spoken.set())
            except StageFailed as error:
                caught.append(error)

        thread = threading.Thread(target=go)
        thread.start()
        assert spoken.wait(30)
        started = time.monotonic()
        executor.stop()
        thread.join(15)
        assert not thread.is_alive()
        assert time.monotonic() - started < 10
        with pytest.raises(InterruptedError):
            executor.run("aside", False, print)
    assert len(caught) == 1
    assert not (project.root / "index.txt").exists()


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_killed_asker_takes_the_whole_group_with_it(tmp_path: Path, stubborn: bool):
    """Asker → tether → shell → sleeper; SIGKILL of the asker ends even a stubborn sleeper."""
    ignoring = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if stubborn else ""
    (tmp_path / "sleeper.py").write_text(
        f"{ignoring}import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)"
    )
    command = [sys.executable, "-I", "-S", tether.__file__, "sh", "-c", f"{sys.executable} sleeper.py; true"]
    asker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys\nsubprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE,"
            " start_new_session=True).wait()",
            *command,
        ],
        cwd=tmp_path,
    )
    file = tmp_path / "pid"
    wait_for(lambda: file.exists() and file.read_text())
    sleeper = int(file.read_text())
    os.kill(asker.pid, signal.SIGKILL)
    asker.wait()
    wait_for(lambda: not psutil.pid_exists(sleeper) or psutil.Process(sleeper).status() == "zombie", 10)


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 75", 75), ("kill -9 $$", 137)])
def test_the_tether_hands_on_the_exit_code(script: str, code: int):
    with subprocess.Popen(
        [sys.executable, "-I", "-S", tether.__file__, "sh", "-c", script],
        stdin=subprocess.PIPE,
        start_new_session=True,
    ) as asked:
        assert asked.wait(20) == code
