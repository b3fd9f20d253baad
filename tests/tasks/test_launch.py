"""A stage of several devices: torchrun starts its ranks, one of them writes, and all end as one process would."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from tasks.layout import Workspace
from tasks.networks import Committee
from tasks.stores import tracking  # before MLflow, which reads what it sets

import mlflow  # isort: skip

ROOT = Path(__file__).parents[2]


def ready(workspace: Workspace, params: dict[str, Any], devices: int, epochs: int = 2) -> None:
    """Write params of one teacher of boxes, one network, so many devices."""
    params = deepcopy(params)
    boxes = params["teachers"]["boxes"]
    boxes |= {"folds": 1, "training": boxes["training"] | {"devices": devices, "epochs": epochs}}
    params |= {"teachers": {"boxes": boxes}, "fused": {}}
    workspace.params.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def start(workspace: Workspace, *program: str) -> "subprocess.Popen[str]":
    """The stage of the teacher as DVC starts it, on the CPU; `program` in place of `-m tasks`."""
    return subprocess.Popen(
        [sys.executable, *(program or ("-m", "tasks")), "train_teacher", "boxes"],
        cwd=workspace.root,
        env=os.environ | {"PYTHONPATH": str(ROOT), "UNDERSTUDY_DEVICE": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def runs(workspace: Workspace, devices: int) -> list[str]:
    """The states of the MLflow runs of trainings with so many devices."""
    client = tracking.client(workspace)
    found = client.get_experiment_by_name(tracking.experiment_name("small"))
    assert found is not None
    own = client.search_runs([found.experiment_id], f"params.training.devices = '{devices}'")
    return [run.info.status for run in own]


def weights(workspace: Workspace) -> list[float]:
    (network,) = Committee.load(workspace.teacher("boxes") / "seed-0").members
    return [float(value) for tensor in network.state_dict().values() for value in tensor.flatten()]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow store for all tests: creating one takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    mlflow.MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    return uri


@pytest.fixture
def make(
    tmp_path: Path,
    drawn_workspace: Callable[[Path], Workspace],
    small_params: dict[str, Any],
    store: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Workspace]:
    """A workspace whose teacher has so many devices."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("UNDERSTUDY_WORK", ".understudy")

    def made(name: str, devices: int, epochs: int = 2) -> Workspace:
        workspace = drawn_workspace(tmp_path / name)
        ready(workspace, small_params, devices, epochs)
        return workspace

    return made


LOOKED_AT = """
import sys
import torch
from tasks.__main__ import main
code = main(sys.argv[1:])
torchrun = [name for name in sys.modules if name.startswith(("torch.distributed.elastic", "tasks.launch"))]
sys.exit(code or f"{torchrun} were imported" * bool(torchrun) or torch.distributed.is_initialized())
"""
"""`python -m tasks`, which fails where one process knows of others."""


def test_a_stage_of_two_devices_writes_once_what_one_would_write(make: Callable[..., Workspace]) -> None:
    alone, shared = make("alone", 1), make("shared", 2)
    told = [finished(start(alone, "-c", LOOKED_AT)), finished(start(shared))]
    assert [one.returncode for one in told] == [0, 0], [one.stderr for one in told]
    assert files(shared.root / "artifacts") == files(alone.root / "artifacts")
    assert not list(shared.root.rglob("*.new-*"))
    assert weights(shared) == pytest.approx(
        weights(alone), abs=2e-3
    )  # Adam makes steps of rounding errors, too
    assert runs(shared, 2) == runs(alone, 1) == ["FINISHED"]
    assert told[1].stdout.count("2/2 epochs") == told[0].stdout.count("2/2 epochs") == 1
    assert "Traceback" not in told[1].stderr
    first, second = (
        json.loads((workspace.teacher("boxes") / "teacher.json").read_text(encoding="utf-8"))
        for workspace in (alone, shared)
    )
    first["validation"] = second["validation"] = {}  # of temperatures fitted to almost the same logits
    assert second == first


@pytest.mark.slow
def test_killed_with_its_ranks_and_gone_on_by_another_number(
    make: Callable[..., Workspace], small_params: dict[str, Any]
) -> None:
    workspace = make("killed", 2, epochs=4000)
    process = start(workspace)
    trainings = workspace.root / ".understudy" / "trainings"
    deadline = time.monotonic() + 200
    while not list(trainings.glob("*.pt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    ranks = psutil.Process(process.pid).children()
    assert len(ranks) == 2
    assert all(
        connection.laddr.ip == "127.0.0.1"
        for each in (psutil.Process(process.pid), *ranks)
        for connection in each.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    )
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    gone, left = psutil.wait_procs(ranks, timeout=20)
    assert (len(gone), left) == (2, [])

    (checkpoint,) = trainings.glob("*.pt")
    done = len(torch.load(checkpoint, weights_only=True)["history"])
    # The budget is part of the training's name: the same one, a process alone, which is stopped after a while.
    ready(workspace, small_params, 1, epochs=4000)
    process = start(workspace)
    before = checkpoint.stat().st_mtime_ns
    while checkpoint.stat().st_mtime_ns == before:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline + 200
        time.sleep(0.2)
    process.kill()
    process.communicate(timeout=60)
    assert [file.name for file in trainings.glob("*.pt")] == [checkpoint.name]
    assert len(torch.load(checkpoint, weights_only=True)["history"]) > done


LAUNCHED = "import sys; from tasks.launch import launch; sys.exit(launch(2, ['-c', sys.argv[1]]))"
FAILS = """
import os, sys, time
from tasks.errors import InfrastructureError, UserError
from tasks.launch import record
if os.environ["RANK"] == "0":
    time.sleep(600)  # beyond the patience of `finished`
try:
    {line}
except Exception as error:
    record(error)
    sys.exit(getattr(error, "exit_code", 1))
"""


def launched(script: str) -> "subprocess.Popen[str]":
    """A script as two ranks."""
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHED, script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_signal_ends_the_ranks_too() -> None:
    # One write a rank: print's text and its line end may be two, with those of the other rank between them.
    process = launched("import os, time; os.write(1, b'here\\n'); time.sleep(120)")
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["here\n"] * 2
    ranks = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGTERM)
    gone, left = psutil.wait_procs(ranks, timeout=30)
    assert (len(gone), left) == (2, [])
    assert finished(process).returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        (
            "raise UserError('the batch is cold', remedy='warm it')",
            2,
            "error: the batch is cold\n  → warm it\n",
        ),
        ("raise InfrastructureError('the disk is full')", 75, "error: the disk is full\n"),
        ("raise RuntimeError('a defect')", 1, "RuntimeError: a defect"),
        ("os.kill(os.getpid(), 9)", 137, "error: rank 1 was killed (SIGKILL)\n"),
    ],
)
def test_one_rank_that_fails_ends_all_and_says_why(line: str, code: int, told: str) -> None:
    done = finished(launched(FAILS.format(line=line)))
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert ("Traceback" in done.stderr) == (code == 1)


def test_an_error_of_the_user_comes_through_torchrun(make: Callable[..., Workspace]) -> None:
    workspace = make("broken", 2)
    text = workspace.params.read_text(encoding="utf-8")
    workspace.params.write_text(text.replace("folds: 1", "folds: 5"), encoding="utf-8")
    done = finished(start(workspace))
    assert done.returncode == 2, done.stderr
    assert "folds of teacher boxes" in done.stderr
    assert files(workspace.root / "artifacts") == []
    assert len(re.findall("^error: ", done.stderr, re.MULTILINE)) == 1
    assert "Traceback" not in done.stderr


def test_more_devices_than_clips_in_a_batch_are_refused(make: Callable[..., Workspace]) -> None:
    done = finished(start(make("many", 4)))
    assert done.returncode == 2
    assert "devices (4) must not exceed batch (3)" in done.stderr
