"""Phases as subflow runs of a real Prefect server, with real DVC."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from flows.clone import Clone

pytestmark = pytest.mark.usefixtures("prefect_server")
Runs = Callable[[], list[tuple[str, float, float]]]
Shown = dict[str, tuple[str, dict[str, tuple[str, list[str]]]]]


def shown(state: Any) -> Shown:
    """Of the flow run that ended in `state` and its subflow runs: flow → (its state, task run → (state, tags)).

    Task runs reach the server as events, a little later than their flow run ends.
    """
    before, deadline = None, time.monotonic() + 60
    while (now := _shown(state)) != before or any(
        task in ("Pending", "Running") for _, tasks in now.values() for task, _ in tasks.values()
    ):
        assert time.monotonic() < deadline, now
        before = now
        time.sleep(1)
    return now


def _shown(state: Any) -> Shown:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterParentFlowRunId

    asked = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        below = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[asked]))
        found = {}
        for run in (client.read_flow_run(asked), *client.read_flow_runs(flow_run_filter=below)):
            only = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
            tasks = client.read_task_runs(flow_run_filter=only)
            name = client.read_flow(run.flow_id).name
            found[name] = (
                run.state.name,
                {
                    each.name: (each.state.name, sorted(each.tags))
                    for each in tasks
                    if "@" in each.name or each.tags
                },
            )
    return found


def set_params(project: Clone, seconds: float, flow: int = 1) -> None:
    (project.root / "tiny.yaml").write_text(f"seconds: {seconds}\nmodalities: {{rgb: 1, flow: {flow}}}\n")


def test_stages_are_task_runs_of_their_phase_with_their_reason_and_cached_ones_say_so(project: Clone):
    from flows.pipeline import pipeline

    first = shown(pipeline(project.root, return_state=True))
    done = ("Completed", ["never run"])
    assert first == {
        "pipeline": ("Completed", {"aside": done}),
        "extract": ("Completed", {"ingest": done, "extract@rgb": done, "extract@flow": done}),
        "evaluate-calibration": ("Completed", {"evaluate": done}),
    }
    set_params(project, seconds=0.0, flow=2)
    second = shown(pipeline(project.root, return_state=True))
    assert second["extract"][1] == {
        "ingest": ("Cached", ["cached"]),
        "extract@rgb": ("Cached", ["cached"]),
        "extract@flow": ("Completed", ["changed: tiny.yaml modalities.flow"]),
    }
    # flow.txt came out the same, so DVC did not run its follower.
    assert second["evaluate-calibration"][1] == {"evaluate": ("Cached", ["may change (after extract@flow)"])}
    assert second["pipeline"][1] == {"aside": ("Cached", ["cached"])}


def test_a_slow_stage_of_a_phase_holds_back_only_what_needs_it(project: Clone, runs: Runs):
    from flows.pipeline import pipeline

    (project.root / "dvc.yaml").write_text("""\
stages:
  train:
    foreach: {fast: 0.2, slow: 12}
    do:
      cmd: python stage.py ${key} source.txt ${key}.txt ${item}
      meta: {queue: gpu, phase: train_teachers}
      deps: [source.txt]
      outs: ["${key}.txt"]
  baseline:
    cmd: python stage.py baseline fast.txt baseline.txt 0.2
    meta: {queue: gpu, phase: distill}
    deps: [fast.txt]
    outs: [baseline.txt]
""")
    pipeline(project.root)
    times = {name: (began, ended) for name, began, ended in runs()}
    assert times["baseline"][1] < times["slow"][1]


def test_a_phase_alone_brings_its_stages_and_what_they_need_and_nothing_else(project: Clone, runs: Runs):
    from flows.phases import evaluate_calibration, extract

    found = shown(extract(project.root, return_state=True))
    assert found.keys() == {"extract"}
    assert found["extract"][1].keys() == {"ingest", "extract@rgb", "extract@flow"}
    set_params(project, seconds=0.0, flow=3)
    found = shown(evaluate_calibration(project.root, return_state=True))
    assert found["extract"][1]["extract@flow"][0] == "Completed"
    assert found["evaluate-calibration"][1].keys() == {"evaluate"}
    assert "aside" not in {name for name, _, _ in runs()}


def test_a_phase_with_a_failed_stage_fails_and_those_after_it_are_never_opened(project: Clone):
    from flows.pipeline import pipeline

    (project.root / "source.txt").write_text("poison")
    found = shown(pipeline(project.root, return_state=True))
    assert found["pipeline"][0] == "Failed"
    assert found["extract"] == ("Failed", {"ingest": ("Failed", ["never run"])})
    assert found.keys() == {"pipeline", "extract"}


def test_the_clone_is_that_of_the_setting_where_no_root_is_given(
    project: Clone, monkeypatch: pytest.MonkeyPatch
):
    from flows.phases import extract

    monkeypatch.setenv("UNDERSTUDY_CLONE", str(project.root))
    assert set(extract()) == {"ingest", "extract@rgb", "extract@flow"}


def test_a_wish_that_no_executor_fulfils_is_refused_before_anything_runs(project: Clone, runs: Runs):
    from prefect.exceptions import ParameterTypeError

    from flows.pipeline import pipeline

    with pytest.raises(ParameterTypeError, match="executor"):
        pipeline(project.root, executor="elsewhere")  # type: ignore[arg-type]
    assert runs() == []


def test_every_phase_of_dvc_yaml_has_a_flow_and_the_other_way_round():
    from pathlib import Path

    import yaml

    from flows.phases import PHASES

    root = Path(__file__).parents[2]
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    assert {stage.get("do", stage)["meta"]["phase"] for stage in stages} == set(PHASES)
