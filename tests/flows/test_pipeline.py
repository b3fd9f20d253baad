"""The flow, on a real Prefect server and real DVC."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from flows.clone import Clone
from tasks.errors import InfrastructureError

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


def test_what_was_not_told_in_one_run_is_told_in_the_next(project: Clone, monkeypatch: pytest.MonkeyPatch):
    """MLflow was away when the stage had registered the release: no later run makes it again."""
    from flows import coordinator

    dvc = project.root / "dvc.yaml"
    dvc.write_text(dvc.read_text().replace("  aside:", "  register:"))
    told: list[Clone] = []

    def away(_: Clone) -> None:
        raise InfrastructureError("MLflow is away")

    with monkeypatch.context() as patch:
        patch.setattr(coordinator, "publish_verdict", away)
        with pytest.raises(InfrastructureError, match="away"):
            run(project)
    monkeypatch.setattr(coordinator, "publish_verdict", told.append)
    assert run(project)["register"] == "cached"
    assert told == [project]


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


def test_of_several_stages_those_with_the_longest_way_ahead_start_first(
    project: Clone, runs: Runs, monkeypatch: pytest.MonkeyPatch
):
    """The baseline after the rgb teacher: as the same training it would wait for that in a slot of its own."""
    monkeypatch.setenv("UNDERSTUDY_SLOTS", "1")
    text = (project.root / "dvc.yaml").read_text()
    head, aside = text.split("  aside:")
    (project.root / "dvc.yaml").write_text(
        head.replace("stages:", f"stages:\n  aside:{aside.rstrip()}") + "\n"
    )
    run(project)
    assert [name for name, _, _ in runs()][-1] == "aside"


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


@pytest.mark.parametrize("end", ["sys.exit(75)", "os.kill(os.getpid(), 9)"], ids=["infrastructure", "killed"])
def test_what_is_no_fault_of_the_stage_is_tried_again(
    project: Clone, monkeypatch: pytest.MonkeyPatch, end: str
):
    from flows import coordinator as module

    monkeypatch.setattr(module.stage, "retry_delay_seconds", [0, 0])
    flaky = "import os, sys\nif os.path.exists('tried'): open(sys.argv[3], 'w').close(); sys.exit(0)\n"
    (project.root / "stage.py").write_text(flaky + f"open('tried', 'w').close()\n{end}\n")
    assert run(project, targets=["aside"]) == {"aside": "ran"}


def artifacts(key: str, flow_run: Any = None) -> list[Any]:
    """Those of a key, of one flow run or of all."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        ArtifactFilter,
        ArtifactFilterKey,
        FlowRunFilter,
        FlowRunFilterId,
    )

    with get_client(sync_client=True) as client:
        return client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])),
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run])) if flow_run else None,
        )


def test_prefect_shows_the_comparison_and_the_model_card_in_the_run_that_was_asked_for(project: Clone):
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

    state = pipeline(project.root, return_state=True)
    found = artifacts("comparison", state.state_details.flow_run_id)
    assert (
        "| student | student | rgb | action | 50.0 | 25.0 to 75.0 | 0.100 | 0.050 | 1.00 | 1.50 | 0.25 |"
        in found[0].data
    )


def test_prefect_shows_how_far_a_training_is(project: Clone, monkeypatch: pytest.MonkeyPatch):
    from flows import artifacts as module

    monkeypatch.setattr(module, "UPDATE_S", 0.0)
    lines = [f"teacher flow seed 0 {n}/4 epochs, loss 1.5, val top1 0.250, {4 - n} s left" for n in (0, 1, 3)]
    (project.root / "stage.py").write_text(
        f"import sys\nprint({chr(10).join(['starts', *lines])!r})\nopen(sys.argv[3], 'w').close()\n"
    )
    assert run(project, targets=["aside"]) == {"aside": "ran"}
    (shown,) = artifacts("aside")
    assert shown.type == "progress"
    assert float(shown.data) == 75
    assert shown.description == lines[-1]


def test_a_prefect_that_cannot_show_progress_takes_no_training_with_it(
    project: Clone, monkeypatch: pytest.MonkeyPatch
):
    from flows import artifacts as module

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no server")

    monkeypatch.setattr(module, "create_progress_artifact", refuse)
    (project.root / "stage.py").write_text(
        "import sys\nprint('aside 1/4 epochs, loss 1, 3 s left')\nopen(sys.argv[3], 'w').close()\n"
    )
    assert run(project, targets=["aside"]) == {"aside": "ran"}
