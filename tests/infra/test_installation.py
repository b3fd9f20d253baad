"""`understudy doctor --infra` against a whole installation: Postgres, Prefect, MLflow, S3 and three workers."""

import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from flows.clone import Clone
from flows.doctor import Check

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
DVC = [sys.executable, "-m", "dvc"]
Waiting = Callable[[Callable[[], object], float, str], None]


@pytest.fixture
def clone(tmp_path: Path, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Clone:
    """A clone with the deployments of this project and a DVC remote on S3."""
    root = tmp_path / "clone"
    (root / "infra").mkdir(parents=True)
    shutil.copy(ROOT / "infra" / "prefect.yaml", root / "infra")
    (root / "dvc.yaml").write_text("stages: {}\n")
    for name, value in (s3 | {"UNDERSTUDY_CHECKPOINTS": "s3://team/checkpoints"}).items():
        monkeypatch.setenv(name, value)
    for command in (
        ["git", "init", "-q"],
        [*DVC, "init", "-q"],
        [*DVC, "remote", "add", "--default", "storage", "s3://team/dvc"],
    ):
        subprocess.run(command, cwd=root, check=True, capture_output=True)
    return Clone(root)


@pytest.fixture
def clients(prefect_team: Any, mlflow_team: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a client of both servers."""
    for name, value in (prefect_team.environment | mlflow_team.environment).items():
        monkeypatch.setenv(name, value)


def told(checks: list[Check]) -> dict[str, str]:
    return {check.name: "" if check.state == "works" else check.detail for check in checks}


@pytest.mark.usefixtures("clients")
def test_a_whole_installation_is_in_order_and_what_breaks_is_named(
    clone: Clone,
    start_worker: Callable[..., Any],
    eventually: Waiting,
    monkeypatch: pytest.MonkeyPatch,
    s3: dict[str, str],
):
    from prefect.client.orchestration import get_client

    from flows.deploy import deploy
    from flows.infra import QUEUES
    from flows.installation import examine_infra

    before = told(examine_infra(clone))
    assert before["work pool"] == "there is no work pool understudy"
    assert "deployment pipeline/nightly is missing" in before["deployments"]
    assert "automation understudy: lost run is missing" in before["automations"]

    deploy(clone, dry_run=False)
    assert "no worker asks for work of gpu, cpu, coordinator" in told(examine_infra(clone))["workers"]
    for queue in QUEUES:
        start_worker(queue, clone.root)
    eventually(lambda: not told(examine_infra(clone))["workers"], 90, "three workers")
    checks = examine_infra(clone)
    assert [check for check in checks if check.state == "fails"] == []
    assert len(checks) == 14
    text = "\n".join(check.detail for check in checks)
    for secret in ("PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        assert os.environ[secret] not in text
    store = boto3.client("s3", endpoint_url=s3["AWS_ENDPOINT_URL"])
    for place in ("dvc", "checkpoints"):
        assert "Contents" not in store.list_objects_v2(Bucket="team", Prefix=place), "the probe is gone"

    with get_client(sync_client=True) as client:
        automation = client.read_automations_by_name("understudy: start again")[0]
        client.pause_automation(automation.id)
        nightly = client.read_deployment_by_name("pipeline/nightly")
        client.update_deployment_schedule(nightly.id, nightly.schedules[0].id, active=False)
    after = told(examine_infra(clone))
    assert after["automations"] == "automation understudy: start again differs: enabled"
    assert after["deployments"] == "deployment pipeline/nightly differs: schedules"
    deploy(clone, dry_run=False)
    assert not any(told(examine_infra(clone)).values())

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "guessed")
    wrong = told(examine_infra(clone))
    assert "refuses us (401)" in wrong["MLflow"]


@pytest.mark.usefixtures("clients")
def test_a_remote_that_only_this_clone_sees_is_refused(clone: Clone):
    from flows.installation import examine_infra

    subprocess.run([*DVC, "remote", "modify", "storage", "url", "infra/remote"], cwd=clone.root, check=True)
    assert "inside this clone: nobody else has it" in told(examine_infra(clone))["DVC remote"]
    subprocess.run([*DVC, "remote", "default", "--unset"], cwd=clone.root, check=True)
    assert "none is the default" in told(examine_infra(clone))["DVC remote"]


def test_servers_that_are_not_there_are_named(clone: Clone, monkeypatch: pytest.MonkeyPatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.installation import examine_infra

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        checks = told(examine_infra(clone))
    assert "does not answer" in checks["Prefect"]
    assert "does not answer" in checks["MLflow"]
    assert "work pool" not in checks
    assert checks["DVC remote"] == ""


@pytest.mark.usefixtures("clients")
def test_mlflow_keeps_artifacts_in_the_store_and_lets_nobody_in(
    mlflow_team: Any, s3: dict[str, str], tmp_path: Path
):
    from tasks.layout import Workspace
    from tasks.stores import tracking

    (tmp_path / "words.txt").write_text("words")
    client = tracking.client(Workspace(tmp_path))
    run = client.create_run(client.create_experiment("one"))
    client.log_artifact(run.info.run_id, str(tmp_path / "words.txt"))
    store = boto3.client("s3", endpoint_url=s3["AWS_ENDPOINT_URL"], region_name="us-east-1",
                         aws_access_key_id="team", aws_secret_access_key="of-the-test")  # fmt: skip
    keys = [item["Key"] for item in store.list_objects_v2(Bucket="team", Prefix="mlflow")["Contents"]]
    assert any(key.endswith(f"{run.info.run_id}/artifacts/words.txt") for key in keys)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{mlflow_team.url}/api/2.0/mlflow/experiments/search?max_results=1")
