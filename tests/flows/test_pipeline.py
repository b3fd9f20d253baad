"""The flow, on a real Prefect server and real DVC."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from flows.clone import Clone

pytestmark = pytest.mark.usefixtures("prefect_server")
Runs = Callable[[], list[tuple[str, float, float]]]


def run(project: Clone, **wishes: Any) -> dict[str, str]:
    from flows.pipeline import pipeline

    return pipeline(str(project.root), **wishes)


def set_params(project: Clone, seconds: float, flow: int = 1) -> None:
    (project.root / "tiny.yaml").write_text(f"seconds: {seconds}\nmodalities: {{rgb: 1, flow: {flow}}}\n")


def test_the_second_run_finds_everything_cached(project: Clone, runs: Runs):
    first = run(project)
    assert set(first.values()) == {"ran"}
    assert len(first) == 5
    assert (project.root / "report.txt").read_text() == "words ingestrgbwords ingestflow"
    ran = runs()
    assert set(run(project).values()) == {"cached"}
    assert runs() == ran


def test_independent_stages_run_side_by_side_and_followers_after_what_they_need(project: Clone, runs: Runs):
    set_params(project, seconds=4)
    run(project, targets=["evaluate"])
    (_, _, ingested), *extracted = runs()
    assert {name for name, _, _ in extracted} == {"rgb", "flow"}
    latest_start, earliest_end = max(r[1] for r in extracted), min(r[2] for r in extracted)
    assert latest_start < earliest_end, "the two extractions did not overlap"
    assert min(r[1] for r in extracted) > ingested


def test_one_slot_means_one_stage_at_a_time(project: Clone, runs: Runs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNDERSTUDY_SLOTS", "1")
    set_params(project, seconds=0.5)
    run(project)
    ran = sorted(runs(), key=lambda r: r[1])
    assert all(before[2] <= after[1] for before, after in itertools.pairwise(ran))


def test_one_changed_param_reruns_that_stage_alone(project: Clone, runs: Runs):
    run(project)
    before = len(runs())
    set_params(project, seconds=0.0, flow=2)
    outcomes = run(project)
    assert [name for name, _, _ in runs()[before:]] == ["flow"]
    # flow.txt came out the same, so DVC does not run its follower.
    assert outcomes == {
        "ingest": "cached", "extract@rgb": "cached", "extract@flow": "ran",
        "evaluate": "cached", "aside": "cached",
    }  # fmt: skip


def test_a_failure_stops_its_followers_and_nobody_else(project: Clone, runs: Runs):
    from flows.coordinator import PipelineFailed

    (project.root / "source.txt").write_text("poison")
    with pytest.raises(PipelineFailed) as failed:
        run(project)
    error = failed.value
    assert [failure.stage for failure in error.failures] == ["ingest"]
    assert set(error.not_started) == {"extract@rgb", "extract@flow", "evaluate"}
    assert error.exit_code == 2
    assert str(project.work / "logs" / "ingest.log") in str(error)
    assert [name for name, _, _ in runs()] == ["aside"]
    (project.root / "source.txt").write_text("words ")
    assert run(project)["evaluate"] == "ran"


def test_an_infrastructure_failure_is_tried_again(project: Clone, monkeypatch: pytest.MonkeyPatch):
    from flows import coordinator as module

    monkeypatch.setattr(module.stage, "retry_delay_seconds", [0, 0])
    flaky = "import os, sys\nif os.path.exists('tried'): open(sys.argv[3], 'w').close(); sys.exit(0)\n"
    (project.root / "stage.py").write_text(flaky + "open('tried', 'w').close()\nsys.exit(75)\n")
    assert run(project, targets=["aside"]) == {"aside": "ran"}


def test_prefect_keeps_names_reasons_logs_and_the_comparison(project: Clone):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        ArtifactFilter,
        ArtifactFilterKey,
        FlowRunFilter,
        FlowRunFilterId,
    )

    (project.root / "reports").mkdir()
    figures = {"top1": 0.5, "top1_ci95": [0.25, 0.75], "ece": 0.1, "ece_scaled": 0.05, "nll": 1.0}
    row = {
        "name": "student",
        "role": "student",
        "inference_modalities": ["rgb"],
        "params": 1_500_000,
        "gmacs": 0.25,
    }
    comparison = {
        "dataset": "tiny",
        "split": "test",
        "clips": 4,
        "seeds": [0],
        "rows": [row | {"heads": {"action": figures}}],
    }
    (project.root / "reports" / "comparison.json").write_text(json.dumps(comparison))
    from flows.pipeline import pipeline

    state = pipeline(str(project.root), return_state=True)
    with get_client(sync_client=True) as client:
        only = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
        names = {task.name for task in client.read_task_runs(flow_run_filter=only)}
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["comparison"])), flow_run_filter=only
        )
    assert names == {"ingest", "extract@rgb", "extract@flow", "evaluate", "aside"}
    assert (
        "| student | student | rgb | action | 50.0 | 25.0 to 75.0 | 0.100 | 0.050 | 1.00 | 1.50 | 0.25 |"
        in found[0].data
    )
