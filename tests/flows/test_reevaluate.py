"""What the weekly flow shows and tells, on a real Prefect server."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasks.reevaluate import Figure, Reevaluation

pytestmark = pytest.mark.usefixtures("prefect_server")


def publish(found: Reevaluation) -> list[dict[str, str]]:
    """Publish from a flow run; the rows of its artifact."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.events.worker import EventsWorker

    from flows import reevaluate

    state = flow(reevaluate.publish, validate_parameters=False)(found, return_state=True)
    EventsWorker.drain_all(timeout=20)
    only = FlowRunFilter.model_validate({"id": {"any_": [state.state_details.flow_run_id]}})
    with get_client(sync_client=True) as client:
        (artifact,) = client.read_artifacts(flow_run_filter=only)
    return list(json.loads(artifact.data))


def told(least: int) -> list[dict[str, Any]]:
    """The events of ours on the server, once there are so many; those of half a minute if there are not."""
    from prefect.client.orchestration import get_client

    since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    wanted = {"occurred": {"since": since}, "event": {"prefix": ["understudy."]}}
    deadline = time.monotonic() + 30
    with get_client(sync_client=True) as client:
        while True:
            found = list(client.request("POST", "/events/filter", json={"filter": wanted}).json()["events"])
            if len(found) >= least or time.monotonic() > deadline:
                return found
            time.sleep(0.5)


def test_a_champion_that_holds_is_shown_and_one_that_drifted_is_told_with_its_figures():
    rows = publish(Reevaluation("3", 136, 0, [Figure("top1", 0.31, (0.24, 0.39), 0.30)]))
    assert rows == [
        {
            "figure": "top1",
            "at registration": 0.31,
            "interval": "0.2400 to 0.3900",
            "now": 0.3,
            "drifted": "no",
        }
    ]
    figures = [Figure("top1", 0.31, (0.24, 0.39), 0.30), Figure("ece_scaled", 0.06, (0.03, 0.11), 0.19)]
    rows = publish(Reevaluation("4", 136, 40, figures))
    assert [row["drifted"] for row in rows] == ["no", "yes"]
    (event,) = told(least=1)
    assert event["event"] == "understudy.champion.drifted"
    assert event["resource"]["prefect.resource.id"] == "understudy.model-version.4"
    assert event["payload"] == {"summary": "ece_scaled 0.1900, was 0.0600 [0.0300, 0.1100]"}
    publish(Reevaluation("4", 136, 40, figures))
    assert len(told(least=2)) == 1, "the same news is told once"
