"""The executor of this machine, with real DVC: what it reports, and that nothing outlives it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import psutil
import pytest

from flows import tether
from flows.clone import Clone
from flows.executor import Outcome, StageFailed
from flows.gpus import Gpus, visible
from flows.local import LocalExecutor, _exit_code
from flows.plan import Queue, Step
from tasks.errors import InfrastructureError


def due(stage: str, forced: bool = False, queue: Queue = "cpu") -> Step:
    return Step(stage, "stale", "changed", (), forced, queue)


def run(project: Clone, stage: str, forced: bool = False) -> tuple[Outcome, list[str]]:
    lines: list[str] = []
    with project.only_run() as lock:
        outcome = LocalExecutor(project, lock).run(due(stage, forced), lines.append)
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


@pytest.mark.parametrize(
    "stage",
    [
        "import pathlib; pathlib.Path('/dev/full').write_text('words')",
        "import sqlite3; raise sqlite3.OperationalError('database or disk is full')",
    ],
)
def test_a_full_disk_is_infrastructure(project: Clone, stage: str):
    (project.root / "stage.py").write_text(stage)
    with pytest.raises(StageFailed, match=r"No space left on device|disk is full") as failed:
        run(project, "ingest")
    assert failed.value.exit_code == 75


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("ERROR: unexpected error - Could not connect to the endpoint URL", 75),
        ("ERROR: failed to reproduce 'ingest': 1 files failed to download", 75),
        ("ERROR: failed to reproduce 'ingest': [Errno 104] Connection reset by peer", 75),
        ("ERROR: failed to reproduce 'ingest': output 'index.txt' does not exist", 1),
    ],
)
def test_a_remote_that_is_away_is_infrastructure(words: str, code: int):
    assert _exit_code(deque([words]), 255) == code
    ran = "ERROR: failed to reproduce 'ingest': failed to run: python stage.py, exited with 1"
    assert _exit_code(deque(["Could not connect to the endpoint", ran]), 255) == 1  # the stage's own words


def test_stopping_ends_the_stage_and_starts_no_other(project: Clone):
    (project.root / "tiny.yaml").write_text("seconds: 60.0\nmodalities: {rgb: 1, flow: 1}\n")
    spoken = threading.Event()
    caught: list[BaseException] = []
    with project.only_run() as lock:
        executor = LocalExecutor(project, lock)

        def go() -> None:
            try:
                executor.run(due("ingest"), lambda _: spoken.set())
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
            executor.run(due("aside"), print)
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


def test_what_was_to_be_fetched_is_not_made_here(project: Clone):
    (project.root / "tiny.yaml").write_text("seconds: 60.0\nmodalities: {rgb: 1, flow: 1}\n")
    with project.only_run() as lock, pytest.raises(InfrastructureError, match="ingest was to be fetched"):
        LocalExecutor(project, lock).repro("ingest", [], print, {}, may_run=False)
    assert not (project.root / "index.txt").exists()


SHOWING = """\
import os, pathlib, sys, time
with open("seen.txt", "a") as file:
    file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "none") + "\\n")
time.sleep(1.5)
pathlib.Path(sys.argv[3]).write_text("done")
"""


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("3,5", ["3", "5", "3 or 5"]),
        ("GPU-ab, GPU-cd", ["GPU-ab", "GPU-cd", "GPU-ab or GPU-cd"]),
        ("7", ["7"] * 3),
    ],
)
def test_stages_that_need_a_gpu_get_one_each_where_there_are_several(
    project: Clone, monkeypatch: pytest.MonkeyPatch, given: str, seen: list[str]
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.delenv("UNDERSTUDY_DEVICE", raising=False)
    (project.root / "stage.py").write_text(SHOWING)
    alike = "{cmd: 'python stage.py x source.txt ${item}.txt', deps: [source.txt], outs: ['${item}.txt']}"
    (project.root / "dvc.yaml").write_text(f"stages: {{alike: {{foreach: [a, b, c], do: {alike}}}}}\n")
    stages = ("alike@a", "alike@b", "alike@c")
    with project.only_run() as lock:
        executor = LocalExecutor(project, lock)
        threads = [
            threading.Thread(target=executor.run, args=[due(stage, queue="gpu"), print]) for stage in stages
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    told = (project.root / "seen.txt").read_text().split()
    assert len(told) == 3
    for name, expected in zip([*sorted(told[:2]), told[2]], seen, strict=True):
        assert name in expected.split(" or ")


def test_a_stage_that_needs_no_gpu_sees_all_there_are(project: Clone, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    (project.root / "stage.py").write_text(SHOWING)
    run(project, "ingest")
    assert (project.root / "seen.txt").read_text() == "3,5\n"


@pytest.mark.parametrize(
    ("given", "device", "names"),
    [
        ("0,1", "auto", ["0", "1"]),
        ("0,1", "cuda", ["0", "1"]),
        ("0,-1,1", "auto", ["0"]),
        ("", "auto", []),
        ("0,1", "cpu", []),
        ("0,1", "cuda:1", []),
    ],
)
def test_gpus_are_counted_without_torch(
    monkeypatch: pytest.MonkeyPatch, given: str, device: str, names: list[str]
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setenv("UNDERSTUDY_DEVICE", device)
    assert visible() == names


def test_a_stage_of_several_devices_waits_for_as_many_gpus():
    gpus = Gpus(["0", "1", "2"])
    with gpus.lent(2) as first:
        assert first == {"CUDA_VISIBLE_DEVICES": "0,1"}
        got: list[str] = []

        def wait() -> None:
            with gpus.lent(2) as second:
                got.append(second["CUDA_VISIBLE_DEVICES"])

        thread = threading.Thread(target=wait)
        thread.start()
        with gpus.lent(1) as third:
            assert third == {"CUDA_VISIBLE_DEVICES": "2"}
        assert got == []
    thread.join(10)
    assert len(got) == 1
    with gpus.lent(9) as everything:  # the stage itself says that it wanted more
        assert sorted(everything["CUDA_VISIBLE_DEVICES"].split(",")) == ["0", "1", "2"]


def test_who_waits_for_a_gpu_is_let_go_when_the_run_is_cancelled():
    gpus = Gpus(["0", "1"])
    caught = []

    def wait() -> None:
        try:
            with gpus.lent(1):
                pass
        except InterruptedError as error:
            caught.append(error)

    with gpus.lent(1) as first, gpus.lent(1) as second:
        assert {first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]} == {"0", "1"}
        thread = threading.Thread(target=wait)
        thread.start()
        gpus.close()
        thread.join(10)
    assert len(caught) == 1
