"""`python -m tasks`: exit codes a scheduler can act on, messages without tracebacks, one writer a stage."""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def stage(workspace, *arguments, **environment):
    """Run a stage in `workspace` as DVC does."""
    return subprocess.run(
        [sys.executable, "-m", "tasks", *arguments],
        cwd=workspace,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def workspace(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


@pytest.mark.parametrize("arguments", [(), ("trian",), ("extract", "rgb", "flow")])
def test_a_wrong_command_line_lists_the_stages(workspace, arguments):
    done = stage(workspace, *arguments)
    assert done.returncode == 2
    assert "STAGE one of ingest, extract" in done.stderr


def test_what_the_user_must_mend_is_one_message_and_exit_code_2(workspace):
    text = (workspace / "params.yaml").read_text().replace("seeds:", "sedes:")
    (workspace / "params.yaml").write_text(text)
    done = stage(workspace, "ingest")
    assert done.returncode == 2
    assert "unknown key sedes; did you mean 'seeds'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_raw_folder_that_is_not_there_is_said(workspace):
    done = stage(workspace, "ingest")
    assert done.returncode == 2
    assert "annotations.csv" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_infrastructure_and_leaves_nothing_half_written(workspace):
    out = workspace / "data"
    out.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(out)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        (out / "raw").mkdir()
        shutil.copy(Path(__file__), out / "raw" / "annotations.csv")
        (out / "filler").write_bytes(b"x" * 40_000)
        script = (
            "import errno, sys, pathlib, tasks.__main__ as main, tasks.ingest as ingest\n"
            "from tasks.atomic import write_text\n"
            "ingest.run = lambda params, workspace, item: write_text(workspace.index / 'clips.csv', 'x' * 100_000)\n"
            "sys.exit(main.main(['ingest']))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=workspace,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 75
        assert "the disk is full" in done.stderr
        assert "Traceback" not in done.stderr
        assert list((out / "index").iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)


def test_a_stage_waits_for_the_one_that_runs_already(workspace):
    locks = workspace / ".understudy" / "locks"
    locks.mkdir(parents=True)
    with (locks / "ingest.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = subprocess.Popen(
            [sys.executable, "-m", "tasks", "ingest"],
            cwd=workspace,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(3)
        assert waiting.poll() is None
    assert "annotations.csv" in waiting.communicate(timeout=60)[1]
