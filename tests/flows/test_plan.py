"""The plan says what DVC would do, and why, in words."""

import json
import subprocess

import pytest

from flows.clone import Clone
from flows.plan import Step, plan, resolve
from tasks.errors import InfrastructureError, UserError
from tasks.settings import dvc_scratch


def repro(project: Clone, *arguments: str) -> None:
    subprocess.run(["dvc", "repro", "-q", *arguments], cwd=project.root, check=True)


def reasons(project: Clone, **wishes: list[str]) -> dict[str, str]:
    return {step.name: step.reason for step in plan(project, **wishes).steps}


def test_a_new_project_was_never_run_and_every_stage_comes_after_what_it_needs(project: Clone):
    steps = plan(project).steps
    assert {step.reason for step in steps} == {"never run"}
    order = [step.name for step in steps]
    for step in steps:
        assert all(order.index(parent) < order.index(step.name) for parent in step.dependencies)
    by_name = {step.name: step for step in steps}
    assert by_name["extract@flow"].dependencies == ("ingest",)
    assert set(by_name["evaluate"].dependencies) == {"extract@rgb", "extract@flow"}


def test_the_way_ahead_of_a_step_is_the_longest(project: Clone):
    assert plan(project).stages_ahead() == {
        "ingest": 2,
        "extract@rgb": 1,
        "extract@flow": 1,
        "evaluate": 0,
        "aside": 0,
    }


def test_a_changed_param_reaches_that_stage_and_what_follows(project: Clone):
    repro(project)
    assert plan(project).due == []
    (project.root / "tiny.yaml").write_text("seconds: 0.0\nmodalities: {rgb: 1, flow: 2}\n")
    assert reasons(project) == {
        "ingest": "cached",
        "extract@rgb": "cached",
        "extract@flow": "changed: tiny.yaml modalities.flow",
        "evaluate": "may change (after extract@flow)",
        "aside": "cached",
    }


def test_a_changed_input_a_missing_output_and_a_changed_command_are_told_apart(project: Clone):
    repro(project)
    (project.root / "source.txt").write_text("other words ")
    (project.root / "rgb.txt").unlink()
    text = (project.root / "dvc.yaml").read_text()
    (project.root / "dvc.yaml").write_text(text.replace("cat rgb.txt", "cat -u rgb.txt"))
    told = reasons(project)
    assert told["ingest"] == "changed: source.txt"
    assert told["extract@rgb"] == "missing: rgb.txt"
    assert told["extract@flow"] == "may change (after ingest)"
    assert told["evaluate"].startswith("changed: ")
    assert "command" in told["evaluate"]


def test_targets_bring_what_they_depend_on_and_nothing_else(project: Clone):
    assert list(reasons(project, targets=["extract@rgb"])) == ["ingest", "extract@rgb"]
    assert list(reasons(project, targets=["extract"])) == ["ingest", "extract@rgb", "extract@flow"]


def test_a_forced_stage_is_due_though_nothing_changed(project: Clone):
    repro(project)
    steps = {step.name: step for step in plan(project, force=["extract@rgb"]).steps}
    assert steps["extract@rgb"] == Step(
        "extract@rgb", "stale", "forced", ("ingest",), forced=True, queue="gpu", phase="extract"
    )
    assert steps["evaluate"].verdict == "follows"
    assert steps["extract@flow"].verdict == "cached"


def test_forcing_one_stage_alone_still_looks_at_the_whole_pipeline(project: Clone):
    assert len(plan(project, force=["aside"]).steps) == 5


def test_an_unknown_stage_is_refused_with_the_nearest_one(project: Clone):
    with pytest.raises(UserError, match="did you mean 'evaluate'"):
        plan(project, targets=["evalute"])
    with pytest.raises(UserError, match="stages: a, b"):
        resolve(["zzz"], ["a", "b"])


def test_a_broken_dvc_yaml_is_the_users_to_mend(project: Clone):
    (project.root / "dvc.yaml").write_text("stages:\n  a: {cmd: x, oops: 1}\n")
    with pytest.raises(UserError):
        plan(project)


def test_beside_a_stage_at_work_what_is_stale_cannot_be_told(project: Clone):
    with subprocess.Popen(["sleep", "60"]) as other:
        blocker = {"pid": other.pid, "cmd": "dvc repro extract@rgb"}
        lock = {"write": {str(project.root / "rgb.txt"): blocker}, "read": {}}
        (project.root / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(lock))
        try:
            with pytest.raises(UserError, match=r"(?s)a stage is at work.*dvc repro extract@rgb") as found:
                plan(project)
        finally:
            other.kill()
    assert "wait for it" in str(found.value)
    assert "dvc status" not in str(found.value)
    assert plan(project).steps  # of one that was killed nothing is left


def test_a_database_of_dvc_that_cannot_be_used_is_infrastructure(project: Clone):
    plan(project)
    for file in dvc_scratch(project.root).rglob("cache.db"):
        file.write_bytes(b"no database" * 1000)
    with pytest.raises(InfrastructureError, match="make room"):
        plan(project)


def test_tracked_data_is_a_step_only_where_it_changed_and_refused_where_it_is_missing(project: Clone):
    subprocess.run(["dvc", "add", "-q", "source.txt"], cwd=project.root, check=True)
    repro(project)
    assert "source.txt.dvc" not in reasons(project)
    (project.root / "source.txt").write_text("other words ")
    told = reasons(project)
    assert told["source.txt.dvc"] == "changed: source.txt"
    assert list(told).index("source.txt.dvc") < list(told).index("ingest")
    (project.root / "source.txt").unlink()
    with pytest.raises(UserError, match=r"dvc pull source\.txt\.dvc"):
        plan(project)


def test_queue_and_phase_are_those_of_the_stages_meta(project: Clone):
    places = {step.name: (step.queue, step.phase) for step in plan(project).steps}
    assert places["ingest"] == ("cpu", "extract")
    assert places["extract@flow"] == ("gpu", "extract")
    assert places["aside"] == ("cpu", "")


def test_a_phase_is_its_stages_and_what_they_depend_on(project: Clone):
    assert list(plan(project, phase="extract").steps) == [
        step for step in plan(project).steps if step.phase == "extract"
    ]
    assert len(plan(project, phase="evaluate_calibration").steps) == 4
    with pytest.raises(UserError, match="no stage has the phase distill"):
        plan(project, phase="distill")


def test_a_queue_that_does_not_exist_is_refused(project: Clone):
    text = (project.root / "dvc.yaml").read_text()
    (project.root / "dvc.yaml").write_text(text.replace("queue: cpu", "queue: tpu"))
    with pytest.raises(UserError, match=r"ingest: meta.queue is 'tpu'"):
        plan(project)
