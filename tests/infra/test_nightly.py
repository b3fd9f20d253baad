"""The nightly deployment from end to end: server on Postgres, three workers that clone for themselves, tiny stages."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.clone import Clone

ROOT = Path(__file__).parents[2]
DVC_YAML = """\
stages:
  ingest:
    cmd: cat raw/a.txt > index.txt
    meta: {queue: cpu, phase: extract}
    deps: [raw]
    outs: [index.txt]
  train_teacher:
    cmd: tr a-z A-Z < index.txt > teacher.txt
    meta: {queue: gpu, phase: train_teachers}
    deps: [index.txt]
    outs: [teacher.txt]
"""


@pytest.fixture
def origin(tmp_path: Path) -> Clone:
    """What everybody clones: two stages, data that DVC tracks, this project's deployments, a DVC remote in a folder."""
    root = tmp_path / "origin"
    (root / "infra").mkdir(parents=True)
    shutil.copy(ROOT / "infra" / "prefect.yaml", root / "infra")
    shutil.copy(ROOT / "params.yaml", root)
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "raw").mkdir()
    (root / "raw" / "a.txt").write_text("words")
    (root / ".gitignore").write_text("index.txt\nteacher.txt\n.understudy/\n")
    dvc = [sys.executable, "-m", "dvc"]
    own = ["git", "-c", "user.name=team", "-c", "user.email=team@localhost"]
    for command in (
        ["git", "init", "-q"],
        [*dvc, "init", "-q"],
        [*dvc, "remote", "add", "-q", "--default", "storage", str(tmp_path / "remote")],
        [*dvc, "add", "-q", "raw"],
        [*dvc, "push", "-q"],
        ["git", "add", "."],
        [*own, "commit", "-qm", "first"],
    ):
        subprocess.run(command, cwd=root, check=True, capture_output=True)
    return Clone(root)


@pytest.mark.slow
def test_the_nightly_run_sends_its_stages_to_the_workers_and_ends_with_every_output(
    origin: Clone,
    prefect_team: Any,
    start_worker: Callable[..., Any],
    eventually: Callable[..., None],
    tmp_path: Path,
):
    from prefect.client.orchestration import get_client
    from prefect.deployments import run_deployment

    from flows.deploy import deploy
    from flows.infra import QUEUES

    deploy(origin, dry_run=False)
    for queue in QUEUES:
        start_worker(queue, tmp_path / queue, UNDERSTUDY_REPOSITORY=str(origin.root))
    run: Any = run_deployment("pipeline/nightly", timeout=0, as_subflow=False)
    with get_client(sync_client=True) as client:
        eventually(lambda: client.read_flow_run(run.id).state.is_final(), 500, "the nightly run ends")
        state = client.read_flow_run(run.id).state
        assert state.is_completed(), state.message
        deployment = client.read_deployment_by_name("stage/on-worker").id
        stages = [each for each in client.read_flow_runs() if each.deployment_id == deployment]
    assert {each.parameters["stage"]: each.work_queue_name for each in stages} == {
        "ingest": "cpu",
        "train_teacher": "gpu",
    }
    assert all(each.state.is_completed() for each in stages)
    assert (tmp_path / "coordinator" / "teacher.txt").read_text() == "WORDS"
    assert (tmp_path / "gpu" / "teacher.txt").read_text() == "WORDS"
    assert not (tmp_path / "cpu" / "teacher.txt").exists()
