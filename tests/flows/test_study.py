"""A study's workspaces and what they tell of the time ahead; the pipeline in them is tests/end_to_end/test_study.py."""

import io
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from flows import study
from flows.clone import Clone
from flows.display import Ahead, Board
from flows.plan import Plan, Step
from tasks.clips import Clip, write_clips
from tasks.errors import UserError
from tasks.layout import Workspace
from tasks.params import load, parse
from tasks.study import spec
from tasks.study.cost import clips_shown, measured_rate

ROOT = Path(__file__).parents[2]
STUDY = """\
name: tiny
seeds: [0]
baseline: labels
data_sets:
  sample: {source: clone}
methods:
  labels: {like: baseline}
  kd: {like: student}
"""
GATED = """\
  gated:
    like: baseline
    learns_from: artifacts/specialists/mst
    method: {kind: mst, temperature: 4.0, top_k: 1, distillation_weight: 1.0, balance_weight: 1.0, gate_weight: 1.0,
      gate_temperature: 1.0, gate_width: 8, head_weights: null}
"""


def of_several(params: dict[str, Any]) -> dict[str, Any]:
    """Sections of a fused teacher of two and of specialists made from it."""
    budget = params["students"]["student"]["training"]
    umt = {
        "teachers": ["rgb", "audio"],
        "kind": "auto",
        "feature_weight": 10.0,
        "dropout": 0.2,
        "training": budget,
    }
    masks = {"width": 6, "attention_heads": 3, "training": budget}
    mst = {"fused": "umt", "auxiliaries": ["audio"], "student": "rgb", "temperature": 4.0}
    return {"fused": {"umt": umt}, "specialists": {"mst": mst | {"training": budget, "masks": masks}}}


@pytest.fixture
def clone(project: Clone, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """The tiny project with raw data, which DVC holds, and code to copy."""
    for name in ("tasks", "models", "mlflow"):
        (project.root / name).mkdir()
        (project.root / name / "code.py").write_text(f"{name} = 1\n")
    (project.root / "data" / "raw").mkdir(parents=True)
    (project.root / "data" / "raw" / "annotations.csv").write_text("clip_id\n" + "a\n" * 9)
    (project.root / "data.dvc").write_text("outs:\n- path: data/raw\n")
    subprocess.run(["dvc", "commit", "-q", "-f", "data.dvc"], cwd=project.root, check=True)
    monkeypatch.setenv("UNDERSTUDY_WORK", ".understudy")  # so that it is put back after the test
    study.share_work(project)
    return project


def source(clone: Clone, text: str = STUDY) -> spec.Source:
    (clone.root / "study.yaml").write_text(text)
    return spec.read(clone.root / "study.yaml")


@pytest.fixture
def no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workspaces are made, their graph is not asked for: the tiny pipeline needs files they have not."""
    monkeypatch.setattr(study, "plan", lambda *_: Plan(()))


@pytest.mark.usefixtures("no_plan")
def test_a_workspace_has_the_code_as_it_is_the_data_and_the_params(clone: Clone):
    (part,) = study.prepare(clone, source(clone), dry_run=False)
    root = part.clone.root
    assert root == clone.root / ".understudy" / "studies" / "tiny" / "sample"
    assert (root / "data" / "raw" / "annotations.csv").read_text().startswith("clip_id")
    assert list(load(root / "params.yaml").students) == ["labels", "kd"]
    assert str(clone.root / ".dvc" / "cache") in (root / ".dvc" / "config").read_text()
    assert part.clone.work == clone.work
    assert (
        part.clone.log("distill@kd") == clone.work / "logs" / "studies" / "tiny" / "sample" / "distill@kd.log"
    )

    (clone.root / "models" / "code.py").unlink()
    (clone.root / "models" / "new.py").write_text("nobody committed it\n")
    untouched = (root / "tasks" / "code.py").stat().st_mtime_ns
    study.prepare(clone, source(clone), dry_run=False)
    assert [file.name for file in (root / "models").iterdir()] == ["new.py"]
    assert (root / "tasks" / "code.py").stat().st_mtime_ns == untouched


@pytest.mark.usefixtures("no_plan")
def test_what_the_study_no_longer_names_is_taken_away_and_nothing_else(clone: Clone):
    """A stage that depends on a whole folder would run again for what others left there, or took away."""
    params = yaml.safe_load((clone.root / "params.yaml").read_text())
    params |= of_several(params)
    (clone.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (part,) = study.prepare(clone, source(clone, STUDY + GATED), dry_run=False)
    artifacts = part.clone.root / "artifacts"
    kept = {"students/kd", "teachers/rgb", "fused/umt", "teachings/rgb", "teachings/umt"}
    of_gated = {"students/gated", "specialists/mst"}
    for name in [*kept, *of_gated, "students/old", "teachers/old", "fused/old", "teachings/old"]:
        (artifacts / name).mkdir(parents=True)
    study.prepare(clone, source(clone, STUDY + GATED), dry_run=False)
    assert {str(folder.relative_to(artifacts)) for folder in artifacts.glob("*/*")} == kept | of_gated
    params_before = (part.clone.root / "params.yaml").read_text()
    study.prepare(clone, source(clone), dry_run=True)
    assert {str(folder.relative_to(artifacts)) for folder in artifacts.glob("*/*")} == kept | of_gated
    assert (part.clone.root / "params.yaml").read_text() == params_before
    study.prepare(clone, source(clone), dry_run=False)
    assert {str(folder.relative_to(artifacts)) for folder in artifacts.glob("*/*")} == kept


@pytest.mark.usefixtures("no_plan")
def test_a_source_that_is_no_folder_is_refused_with_its_row(clone: Clone):
    with pytest.raises(
        UserError, match=r"study.yaml, row 5: data_sets.sample.source: 'videos' is not a folder"
    ):
        study.prepare(clone, source(clone, STUDY.replace("source: clone", "source: videos")), dry_run=True)


@pytest.mark.usefixtures("no_plan")
def test_data_that_is_not_in_the_cache_is_refused_with_its_remedy(clone: Clone):
    pointer = clone.root / "data.dvc"
    pointer.write_text(pointer.read_text().replace("md5: ", "md5: 00"))
    with pytest.raises(UserError, match=r"fetch it: dvc pull data\.dvc"):
        study.prepare(clone, source(clone), dry_run=False)


def test_no_second_study_while_one_runs(clone: Clone, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flows.clone.ENDING_S", 0.3)
    with clone.only_run(), pytest.raises(UserError, match="is going on in this clone"):
        study.prepare(clone, source(clone), dry_run=True)


def test_what_trainings_will_show_is_counted_from_params():
    params = load(ROOT / "params.yaml").model_copy(update={"seeds": [0, 1]})
    student = params.students["student"]
    teacher = params.teachers["rgb"].model_copy(update={"folds": 3})
    params = params.model_copy(update={"teachers": {"rgb": teacher}})
    shown = clips_shown(params, 300)
    assert (
        shown["train_teacher@rgb"] == 2 * teacher.training.epochs * 3 * 200
    )  # each network has two folds of three
    assert shown["distill@student"] == 2 * student.training.epochs * 300  # nothing is auto
    method = student.method.model_copy(update={"temperature": "auto", "distillation_weight": "auto"})
    auto = params.model_copy(update={"students": {"student": student.model_copy(update={"method": method})}})
    trials = len(params.search.temperature) * len(params.search.distillation_weight)
    searched = clips_shown(auto, 300)["distill@student"] - shown["distill@student"]
    once = 2 * student.training.epochs  # by labels, which the lesson is held against, and without hints
    assert searched == (2 * (trials + 2) * params.search.epochs + 2 * once) * 300


def test_what_networks_of_several_branches_will_be_shown_is_counted_too():
    values = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"seeds": [0, 1]}
    params = parse(yaml.safe_dump(values | of_several(values)), ROOT / "params.yaml")
    epochs = params.students["student"].training.epochs
    shown = clips_shown(params, 300)
    assert (
        shown["fuse@umt"] == 3 * epochs * 2 * 300
    )  # two kinds of the first seed, one of the second; two branches
    assert (
        shown["specialise@mst"] == 2 * 2 * epochs * 4 * 300
    )  # together and masked; a student and three branches


def test_the_rate_is_that_of_the_trainings_there_are(tmp_path: Path):
    assert measured_rate([Workspace(tmp_path)]) is None
    (tmp_path / "data" / "index").mkdir(parents=True)
    clips = [Clip(f"c{n}", "v.mp4", 0.0, 1.0, "g", "train", {}, {}) for n in range(50)]
    write_clips(tmp_path / "data" / "index" / "clips.csv", clips, [], [])
    folder = tmp_path / "artifacts" / "students" / "kd"
    folder.mkdir(parents=True)
    (folder / "curves.csv").write_text("seed,member,epoch,seconds\n0,0,0,9\n0,0,1,2\n0,0,2,2\n")
    assert measured_rate([Workspace(tmp_path)]) == 25


def test_a_board_says_how_long_trainings_will_take(monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr("flows.display.time.monotonic", lambda: now)
    board = Board(Console(file=io.StringIO()), Ahead({"distill@a": 100, "distill@b": 300}, 200, None, 2))
    board.show(Plan(tuple(Step(name, "stale", "", ()) for name in ("extract@rgb", "distill@a", "distill@b"))))
    assert board.left_s() is None  # nothing was measured yet
    board.running("distill@a")
    now = 10.0
    board.ended("distill@a", "ran")
    assert board.left_s() == pytest.approx((300 + 200) / 10 / 2)  # ten a second, two at once
    board.running("distill@b")
    now = 20.0
    assert board.left_s() == pytest.approx((200 + 200) / 10 / 2)
    assert Board(Console(file=io.StringIO())).left_s() is None


def test_trainings_that_were_done_before_do_not_shorten_the_time_ahead(monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr("flows.display.time.monotonic", lambda: now)
    board = Board(Console(file=io.StringIO()), Ahead({"distill@a": 100, "distill@b": 300}, 0, 10, 1))
    board.show(Plan(tuple(Step(name, "stale", "", ()) for name in ("distill@a", "distill@b"))))
    board.running("distill@a")
    now = 1.0  # for a hundred, at ten a second
    board.ended("distill@a", "ran")
    assert board.left_s() == pytest.approx(300 / 10)


def test_a_board_says_why_a_stage_failed_when_it_fails():
    said = io.StringIO()
    board = Board(Console(file=said, width=40))
    board.show(Plan((Step("distill@a", "stale", "", ()),)))
    board.running("distill@a")
    board.ended("distill@a", "failed", "error: the loss is nan in epoch 1\n  → use precision float32")
    assert ": error: the loss is nan in epoch 1\n" in said.getvalue()
