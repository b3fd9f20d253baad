"""A person's approval: a run of Prefect asks and is suspended, and what is said moves the champion or does not."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.clone import Clone
from flows.infra import APPROVAL_DEPLOYMENT
from tasks import promotion
from tasks.gate import Check, Verdict
from tasks.layout import Workspace
from tasks.params import load
from tasks.register import MODEL
from tasks.stores import tracking

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """A clone whose registry holds a champion and two versions that the gate let pass."""
    root = tmp_path / "clone"
    (root / "infra").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    shutil.copy(ROOT / "infra" / "prefect.yaml", root / "infra")
    text = (ROOT / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("promote: manual", "promote: ask"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    workspace = Workspace(root)
    client = tracking.client(workspace)
    client.create_registered_model(MODEL)
    made = [
        client.create_model_version(MODEL, f"file://{tmp_path}", tags={"release_digest": f"{number}"})
        for number in range(3)
    ]
    client.set_registered_model_alias(MODEL, "champion", "1")
    client.set_registered_model_alias(MODEL, "challenger", "3")
    for version in made[1:]:
        checks = [Check("top1", True, 0.09, 0.0, "top-1 of the action 61 % against 52 %")]
        verdict = Verdict(str(version.version), "1", "passed", "action", 136, checks)
        key = promotion._key(load(workspace.params), version, made[0])
        client.set_model_version_tag(MODEL, version.version, "gate_json", json.dumps(verdict.as_json()))
        client.set_model_version_tag(MODEL, version.version, "gate_key", key)
    return Clone(root)


@pytest.fixture
def client(prefect_team: Any) -> Iterator[Any]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as opened:
        yield opened


def test_who_says_yes_moves_the_champion_and_who_says_no_leaves_it(
    clone: Clone, client: Any, start_worker: Callable[..., Any], eventually: Callable[..., None]
):
    from prefect.flow_runs import resume_flow_run

    from flows.deploy import deploy
    from flows.registration import _ask

    deploy(clone, dry_run=False)
    store = os.environ["MLFLOW_TRACKING_URI"]
    start_worker("coordinator", clone.root, MLFLOW_TRACKING_URI=store)
    registry = tracking.client(Workspace(clone.root))

    def asked(version: str) -> Any:
        _ask(version)
        _ask(version)
        deployment = client.read_deployment_by_name(APPROVAL_DEPLOYMENT).id
        (run,) = [
            each
            for each in client.read_flow_runs()
            if each.deployment_id == deployment and each.parameters["version"] == version
        ]
        eventually(lambda: client.read_flow_run(run.id).state.is_paused(), 300, "a person is asked")
        state = client.read_flow_run(run.id).state
        assert state.name == "Suspended"
        return run

    def ends(run: Any) -> Any:
        eventually(lambda: client.read_flow_run(run.id).state.is_final(), 300, "what was said is done")
        return client.read_flow_run(run.id).state

    no, yes = asked("2"), asked("3")
    resume_flow_run(no.id, run_input={"version": "2", "promote": False, "who": "Ada", "reason": "cups"})
    state = ends(no)
    assert (state.name, state.is_completed()) == ("Declined", True)
    assert state.message == "version 2 was declined: Ada in Prefect: cups"
    assert registry.get_registered_model(MODEL).aliases == {"champion": 1, "challenger": 3}

    resume_flow_run(yes.id, run_input={"version": "3", "promote": True, "who": "Grace", "reason": "sharper"})
    state = ends(yes)
    assert state.is_completed(), state.message
    found = registry.get_registered_model(MODEL)
    assert found.aliases == {"champion": 3, "previous": 1}
    assert "Grace in Prefect: sharper; gate: version 3 passed" in found.description
    assert "version 2 was declined: Ada" in found.description
