"""The pipeline on three workers in three clones, with real servers of Prefect and MLflow and an S3 store."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from benchmarks.small import with_fusion
from benchmarks.team import Team, new_worker, team
from tasks.register import without_pictures

pytestmark = pytest.mark.slow
WORKERS = {"gpu-1": "gpu", "gpu-2": "gpu", "cpu-1": "cpu"}


@pytest.fixture(scope="module")
def crew(small_clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """The small clone, and two gpu workers and one cpu worker."""
    folder = tmp_path_factory.mktemp("workers")
    project = small_clone.copy(folder / "project")
    do(project.root, project.environment, "git", "checkout", "--quiet", "params.yaml")
    with team(project.root, folder / "team", WORKERS) as running:
        yield running


def do(folder: Path, environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture(scope="module")
def finished(crew: Team) -> str:
    """What the first runs printed, up to the teachers alone, so that these can start at once."""
    said = ""
    for stages in (["extract"], ["train_teacher"], []):
        done = crew.understudy("run", "--executor", "workers", *stages, timeout_s=2400)
        assert done.returncode == 0, done.stdout + done.stderr
        said += done.stdout
    return said


def stage_runs(crew: Team) -> list[dict[str, Any]]:
    """Of every run of the flow `stage`: its name, its state, when it began and ended, and the worker's clone."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName, LogFilter, LogFilterFlowRunId
    from prefect.settings import temporary_settings

    found = []
    with temporary_settings(crew.settings), get_client(sync_client=True) as client:  # type: ignore[arg-type]
        for run in client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["stage"]))):
            logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
            told = [re.search(r" in (\S+) at [0-9a-f]{40}", log.message) for log in logs]
            clone = next((Path(match[1]).name for match in told if match), "")
            found.append(
                {
                    "id": run.id, "name": run.name, "state": run.state.name, "message": run.state.message,
                    "began": run.start_time, "ended": run.end_time, "clone": clone,
                }
            )  # fmt: skip
    return found


def outcomes(stdout: str) -> dict[str, str]:
    found = re.findall(r"^\d+:\d+ ([\w@]+): (ran|restored|cached|failed|not started)", stdout, re.MULTILINE)
    return dict(found)


def test_every_stage_ran_on_a_worker_of_its_queue(crew: Team, finished):
    runs = {run["name"]: run for run in stage_runs(crew)}
    assert outcomes(finished) == dict.fromkeys(runs, "ran")
    assert {run["state"] for run in runs.values()} == {"Completed"}
    declared = yaml.safe_load((crew.coordinator / "dvc.yaml").read_text())["stages"]
    for name, run in runs.items():
        stage = declared[name.partition("@")[0]]
        queue = stage.get("do", stage)["meta"]["queue"]
        assert WORKERS[run["clone"]] == queue, run


def test_teachers_trained_on_different_workers_at_the_same_time(crew: Team, finished):
    runs = {run["name"]: run for run in stage_runs(crew)}
    first, second = runs["train_teacher@detections"], runs["train_teacher@audio"]
    assert {first["clone"], second["clone"]} == {"gpu-1", "gpu-2"}
    assert max(first["began"], second["began"]) < min(first["ended"], second["ended"])


def test_the_coordinators_clone_has_every_output_and_dvc_agrees(crew: Team, finished):
    status = do(crew.coordinator, crew.environment, sys.executable, "-m", "dvc", "status")
    assert "up to date" in status
    rows = json.loads((crew.coordinator / "reports" / "comparison.json").read_text())["rows"]
    assert {"detections", "audio", "baseline", "student"} <= {row["name"] for row in rows}
    locked = yaml.safe_load((crew.coordinator / "dvc.lock").read_text())["stages"]
    for entry in locked.values():
        for out in entry["outs"]:
            assert (crew.coordinator / out["path"]).exists()
    assert not (crew.coordinator / ".understudy" / "trainings").exists(), "a training ran in the coordinator"
    assert "understudy-student version 1" in finished


def test_prefect_shows_progress_comparison_model_card_and_the_way_to_mlflow(crew: Team, finished):
    from prefect.client.orchestration import get_client
    from prefect.settings import temporary_settings

    with temporary_settings(crew.settings), get_client(sync_client=True) as client:  # type: ignore[arg-type]
        found = {artifact.key: artifact for artifact in client.read_artifacts(limit=200)}
    assert found["train-teacher-audio"].type == "progress"
    assert "baseline" in found["comparison"].data
    card = (crew.coordinator / "artifacts/release/model_card.md").read_text()
    assert found["model-card"].data == without_pictures(card)
    assert f"({crew.environment['MLFLOW_TRACKING_URI']}/#/experiments/" in found["mlflow"].data


def test_the_second_run_finds_everything_cached(crew: Team, finished):
    before = len(stage_runs(crew))
    done = crew.understudy("run", "--executor", "workers")
    assert done.returncode == 0, done.stderr
    assert re.match(r"All \d+ stages are cached", done.stdout)
    assert len(stage_runs(crew)) == before


def test_no_secret_is_written_anywhere(crew: Team, finished, secret_holders):
    """Neither clones, logs, nor the databases of the servers hold the store's or Prefect's."""
    for variable in ("AWS_SECRET_ACCESS_KEY", "PREFECT_API_AUTH_STRING"):
        secret = crew.environment[variable].rpartition(":")[2]
        assert secret not in finished
        assert not secret_holders(crew.coordinator.parent, secret=secret), variable


def commit(crew: Team, message: str) -> None:
    for command in (f"git commit --quiet --all --message {message}", "git push --quiet origin HEAD"):
        do(crew.coordinator, crew.environment, *command.split())


def set_epochs(crew: Team, teacher: str, epochs: int) -> None:
    file = crew.coordinator / "params.yaml"
    params = yaml.safe_load(file.read_text())
    params["teachers"][teacher]["training"]["epochs"] = epochs
    file.write_text(yaml.safe_dump(params, sort_keys=False))


def test_a_cancelled_run_frees_the_worker_and_the_next_one_goes_on(crew: Team, finished):
    set_epochs(crew, "audio", 5000)
    refused = crew.understudy("run", "--executor", "workers")
    assert refused.returncode == 2
    assert "params.yaml" in refused.stderr
    commit(crew, "epochs")
    cancelled = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", "--executor", "workers"],
        cwd=crew.coordinator, env=crew.environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    trainings = [crew.workers[name] / ".understudy" / "trainings" for name in ("gpu-1", "gpu-2")]
    known = {file for folder in trainings for file in folder.glob("*")}
    wait_for(lambda: {file for folder in trainings for file in folder.glob("*.pt")} - known, 180)
    cancelled.send_signal(signal.SIGINT)
    told = time.monotonic()
    wait_for(lambda: not training_processes(), 60)
    print(f"the worker's training was gone {time.monotonic() - told:.1f} s after Ctrl-C")
    assert cancelled.wait(90) == 130
    wait_for(lambda: last(crew, "train_teacher@audio")["state"] == "Cancelled", 60)  # its worker says so

    set_epochs(crew, "audio", 3)
    commit(crew, "fewer")
    done = crew.understudy("run", "--executor", "workers", "train_teacher@audio")
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcomes(done.stdout) == {"train_teacher@audio": "ran"}


def test_a_worker_takes_the_networks_and_senses_that_what_it_reads_stands_for(crew: Team, finished):
    """A fused teacher's networks and the senses of an omnivorous student: neither is a dependency by its name."""
    file = crew.coordinator / "params.yaml"
    file.write_text(yaml.safe_dump(with_fusion(yaml.safe_load(file.read_text())), sort_keys=False))
    commit(crew, "fusion")
    done = crew.understudy("run", "--executor", "workers", timeout_s=2400)
    assert done.returncode == 0, done.stdout + done.stderr
    for worker in crew.workers.values():
        for made in ("artifacts/fused", "data/modalities"):
            shutil.rmtree(worker / made, ignore_errors=True)
    forced = ["--force", "evaluate", "--force", "distill@shown"]
    done = crew.understudy("run", "--executor", "workers", *forced, "evaluate", timeout_s=2400)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((crew.coordinator / "reports" / "comparison.json").read_text())["rows"]
    assert {"both", "routed", "shown"} <= {row["name"] for row in rows}


def test_a_worker_whose_gpu_is_gone_ends_and_its_stage_goes_to_another(crew: Team, finished):
    """It would take all that is due, and fail it; started again it waits until its GPU computes (start-worker)."""
    set_epochs(crew, "audio", 4)
    commit(crew, "gone")
    healthy = [crew.parts["gpu-1"], crew.parts["gpu-2"]]
    for part in healthy:
        part.end()
    gone = {"UNDERSTUDY_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""}
    broken = new_worker(crew.coordinator.parent, "gpu-3", "gpu", crew.environment | gone)
    broken.begin()
    try:
        run = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "run", "--executor", "workers", "train_teacher@audio"],
            cwd=crew.coordinator, env=crew.environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_for(lambda: not broken.is_running, 300)
    finally:
        broken.end()
    for part in healthy:
        part.begin()
    said, _ = run.communicate(timeout=600)
    assert run.returncode == 0, said
    assert outcomes(said)["train_teacher@audio"] == "ran"
    (failed,) = [run for run in stage_runs(crew) if run["clone"] == "gpu-3"]
    assert failed["state"] == "Failed"
    assert failed["message"].startswith("exit code 75: this worker's device computes nothing any more")


def last(crew: Team, stage: str) -> dict[str, Any]:
    """The stage's run that began last."""
    return max((run for run in stage_runs(crew) if run["name"] == stage), key=lambda run: run["began"])


def training_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if "train_teacher" in (process.info["cmdline"] or ()) and "team" in (process.info["cwd"] or ""):
            found.append(process)
    return found


def wait_for(condition, seconds: float) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.2)
