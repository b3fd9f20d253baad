"""Making up for a release that the registry of this machine does not have."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from flows import registration
from flows.clone import Clone
from flows.registration import ensure_registered, publish_verdict
from tasks.atomic import file_digest
from tasks.errors import InfrastructureError, UserError
from tasks.promotion import awaits_decision, went_live

ROOT = Path(__file__).parents[2]


def test_a_server_that_is_down_is_told_with_cause_and_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    release = tmp_path / "artifacts" / "release"
    release.mkdir(parents=True)
    (release / "release.json").write_text(json.dumps({"files": {}}))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InfrastructureError) as failed:
        ensure_registered(Clone(tmp_path))
    message = str(failed.value)
    assert "registry: MLflow at http://127.0.0.1:9 did not register the release" in message
    assert "Connection refused" in message
    assert "run `dvc repro register` again" in message


def test_a_release_that_was_changed_is_for_a_person_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    release = tmp_path / "artifacts" / "release"
    release.mkdir(parents=True)
    (release / "release.json").write_text(json.dumps({"files": {"weights-0.safetensors": "0" * 64}}))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with pytest.raises(UserError, match=r"registry: .*artifacts/release"):
        ensure_registered(Clone(tmp_path))


def judged(root: Path, outcome: str) -> Clone:
    """A clone with a release and what the gate said of it."""
    release, gate = root / "artifacts" / "release", root / "reports" / "gate"
    for folder in (release, gate):
        folder.mkdir(parents=True)
    (release / "release.json").write_text(json.dumps({"name": str(root)}))
    params = (ROOT / "params.yaml").read_text()
    (root / "params.yaml").write_text(params.replace("promote: manual", "promote: ask"))
    verdict = {"version": "7", "outcome": outcome, "summary": f"version 7 {outcome} {root.name}"}
    verdict["release_digest"] = file_digest(release / "release.json")
    (gate / "verdict.json").write_text(json.dumps(verdict))
    (gate / "verdict.md").write_text(f"**Gate: {outcome}.** {root.name}")
    return Clone(root)


@pytest.mark.usefixtures("prefect_server")
def test_the_verdict_is_an_artifact_and_a_pass_that_nobody_decided_on_an_event(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from prefect import flow
    from prefect.client.orchestration import get_client

    clones = [
        judged(tmp_path / name, name.partition("-")[0])
        for name in ("passed-decided", "failed", "passed-alone", "passed")
    ]
    waiting = {clones[2].root: went_live("7"), clones[3].root: awaits_decision("7")}
    monkeypatch.setattr(registration, "ensure_registered", lambda clone: waiting.get(clone.root, ""))

    @flow
    def telling() -> None:
        for clone in clones:
            publish_verdict(clone)
        publish_verdict(Clone(tmp_path))  # nothing was released there

    telling()
    assert capsys.readouterr().out.count("nobody can be asked here (approve/approval)") == 1
    with get_client(sync_client=True) as client:
        artifacts = client.request("POST", "/artifacts/filter", json={"sort": "CREATED_DESC"}).json()
        told = [artifact["data"] for artifact in artifacts if artifact["key"] == "gate"]
        assert told == [
            f"**Gate: {clone.root.name.partition('-')[0]}.** {clone.root.name}" for clone in clones[::-1]
        ]
        assert artifacts[0]["description"] == "The gate on version 7: passed"
        asked = {"filter": {"event": {"name": ["understudy.challenger.beats_champion"]}}}
        until, events = time.monotonic() + 30, []
        while len(events) < 2 and time.monotonic() < until:
            events = client.request("POST", "/events/filter", json=asked).json()["events"]
            time.sleep(0.2)
    assert sorted(event["payload"]["summary"] for event in events) == [
        "version 7 passed passed",
        "version 7 passed passed-alone",
    ]


@pytest.mark.usefixtures("prefect_server")
def test_a_person_is_asked_again_where_the_run_that_asked_ended_without_an_answer():
    from prefect.client.orchestration import get_client
    from prefect.states import Completed, Crashed

    from flows.registration import _ask

    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow_from_name("approve"), "approval")

        def asked() -> list[Any]:
            _ask("7")
            runs = [run for run in client.read_flow_runs() if run.deployment_id == deployment]
            return sorted(runs, key=lambda run: run.created)

        (first,) = asked()
        assert first.parameters == {"version": "7"}
        assert asked() == [first], "it still asks"
        client.set_flow_run_state(first.id, Crashed(), force=True)
        _, second = asked()
        client.set_flow_run_state(second.id, Completed(name="Declined"), force=True)
        assert len(asked()) == 2, "the answer was no"
        client.delete_deployment(deployment)
