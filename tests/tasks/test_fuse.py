"""Fused teachers on drawn clips: three ways measured, fold by fold, and taught like any other."""

import json
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from models.fusion import FusedNetwork
from tasks import distill, evaluate, fuse, teach, teach_fused, train_teacher
from tasks.clips import read_clips
from tasks.fuse import fused_learner, joined, make
from tasks.layout import Workspace
from tasks.networks import Committee
from tasks.params import Params
from tasks.teach import Teachings, load_bank
from tasks.train_teacher import teacher_learner

CROSS_FITTED = ["eyes", "boxes", "both"]


@pytest.fixture(scope="module")
def params(small_params: dict[str, Any]) -> Params:
    """Two teachers, a fused one of both, a student of all three."""
    values = deepcopy(small_params)
    values["students"]["student"] = {
        **values["students"]["baseline"],
        "learns_from": "artifacts/teachings",
        "method": {
            "kind": "kd",
            "temperature": 1.0,
            "divergence": "forward_kl",
            "distillation_weight": 0.5,
            "ground_truth_weight": 0.5,
            "unlabelled_weight": 0.0,
            "head_weights": None,
        },
        "ensemble": {
            "teachers": CROSS_FITTED,
            "weights": "data_set",
            "weights_temperature": 1.0,
            "space": "probs",
            "views": "mean",
        },
    }
    return Params.model_validate(values)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, drawn_workspace: Any, params: Params) -> Workspace:
    """The workspace with all teachers trained."""
    root = tmp_path_factory.mktemp("fuse")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        workspace = drawn_workspace(root)
        for name in params.teachers:
            train_teacher.run(params, workspace, name)
            teach.run(params, workspace, name)
        for name in params.fused:
            fuse.run(params, workspace, name)
            teach_fused.run(params, workspace, name)
    return workspace


def about(workspace: Workspace) -> dict[str, Any]:
    return json.loads((workspace.fused("both") / "teacher.json").read_text())


def branches(workspace: Workspace) -> dict[str, Committee]:
    named = {"rgb": "eyes", "detections": "boxes"}
    return {modality: Committee.load(workspace.teacher(name) / "seed-0") for modality, name in named.items()}


def test_auto_measures_three_ways_and_takes_the_likeliest(workspace: Workspace):
    chosen = about(workspace)["chosen"]
    assert set(chosen["validation"]) == {"ume", "head", "umt"}
    least = min(chosen["validation"], key=lambda kind: chosen["validation"][kind]["nll"])
    assert chosen["kind"] == about(workspace)["method"] == least
    assert all(0 <= figures["top1"] <= 1 for figures in chosen["validation"].values())
    assert about(workspace)["inference_modalities"] == ["rgb", "detections"]


def test_what_is_saved_has_the_figures_that_were_measured(workspace: Workspace, params: Params):
    committee = Committee.load(workspace.fused("both") / "seed-0")
    learner = fused_learner(params, workspace, "both")
    logits, labels = learner.predictions(committee)
    nll = sum(
        torch.nn.functional.cross_entropy(values, labels[head]).item()
        for head, values in committee.calibrated(logits).items()
    )
    assert nll == pytest.approx(about(workspace)["validation"]["0"]["action"]["nll"], abs=1e-4)


def test_a_member_begins_as_the_members_of_the_same_fold(workspace: Workspace, params: Params):
    spec = fused_learner(params, workspace, "both").spec
    teachers = branches(workspace)
    for member in range(3):
        network = joined(spec, {name: teacher.alone(member) for name, teacher in teachers.items()}, member, 0)
        for modality, teacher in teachers.items():
            own = teacher.members[member].backbone.state_dict()
            for name, value in network.backbone.branch(modality).state_dict().items():
                assert torch.equal(value, own[name])


def test_a_member_learns_from_the_clips_of_other_folds_alone(
    workspace: Workspace, params: Params, monkeypatch: pytest.MonkeyPatch
):
    taught: dict[int, list[Any]] = {}
    learner = fused_learner(params, workspace, "both")

    def note(self: Any, clips: Any, lessons: Any, seed: int, member: int, begin: Any = None) -> Any:
        taught[member] = clips
        assert begin is not None
        return begin, []

    monkeypatch.setattr(type(learner), "train", note)
    train = read_clips(workspace.index, "train")
    make(learner, "umt", branches(workspace), train, 0)
    fold = train_teacher.fold_of(learner, train)
    for member, clips in taught.items():
        assert {clip.clip_id for clip in clips} == {
            clip.clip_id for clip, own in zip(train, fold, strict=True) if own != member
        }


@pytest.mark.parametrize("kind", ["head", "umt"])
def test_branches_stay_or_move_as_the_way_says(workspace: Workspace, params: Params, kind: Any):
    teachers = branches(workspace)
    learner = fused_learner(params, workspace, "both")
    found = make(learner, kind, teachers, read_clips(workspace.index, "train"), 0)
    backbone = found.committee.members[0].backbone
    assert isinstance(backbone, FusedNetwork)
    for modality, teacher in teachers.items():
        own = teacher.members[0].backbone.state_dict()
        same = [
            torch.equal(value, own[name]) for name, value in backbone.branch(modality).state_dict().items()
        ]
        assert all(same) if kind == "head" else not all(same)


def test_the_mean_is_that_of_the_calibrated_teachers(workspace: Workspace, params: Params):
    """Member by member, each over its own temperature, on a clip that has both modalities and one without boxes."""
    teachers = branches(workspace)
    learner = fused_learner(params, workspace, "both")
    committee = make(learner, "ume", teachers, read_clips(workspace.index, "train"), 0).committee
    network = committee.members[1]
    (batch,) = learner._batches(learner.validation[:2], 0, [[(0, 0), (1, 0)]])
    with torch.inference_mode():
        said = network(batch.inputs).logits
        alone = {
            modality: teacher.members[1](batch.inputs.inputs[modality]).logits
            for modality, teacher in teachers.items()
        }
    assert batch.inputs.present["detections"].tolist() == [False, True]
    own = {
        params.teachers[name].modality: teacher_learner(params, workspace, name)
        .finish([teachers[params.teachers[name].modality].members[1]])[0]
        .temperature
        for name in params.fused["both"].teachers
    }
    assert any(own[modality] != teacher.temperature for modality, teacher in teachers.items())
    for head in params.data.heads:
        probs = {
            modality: (logits[head] / own[modality][head]).softmax(-1) for modality, logits in alone.items()
        }
        torch.testing.assert_close(said[head][0].exp(), probs["rgb"][0])
        torch.testing.assert_close(said[head][1].exp(), (probs["rgb"][1] + probs["detections"][1]) / 2)


def test_its_teachings_are_those_of_the_member_that_did_not_see_the_clip(
    workspace: Workspace, params: Params
):
    learner = fused_learner(params, workspace, "both")
    train, validation = read_clips(workspace.index, "train"), read_clips(workspace.index, "val")
    said = load_bank(workspace.teachings, ["both"], 0, train, validation)["both"]
    committee = Committee.load(workspace.fused("both") / "seed-0")
    fold = train_teacher.fold_of(learner, train)
    (batch,) = learner._batches(train, 0, [[(0, 1)]])
    raw = committee.alone(fold[0]).logits(batch.inputs)["verb"][0].numpy()
    ratio = raw / said.train["verb"][0, 1]
    assert ratio == pytest.approx(np.full(2, ratio[0]), rel=1e-3)  # divided by one temperature
    assert said.train_present.all()  # a clip without boxes still has pictures
    assert not Teachings.load(workspace.teachings / "boxes" / "seed-0.safetensors").train_present.all()


def test_students_hear_it_and_the_report_tells_the_three_numbers(workspace: Workspace, params: Params):
    for name in params.students:
        distill.run(params, workspace, name)
    weights = json.loads((workspace.student("student") / "student.json").read_text())["chosen"]["0"]
    assert set(weights["teacher_weights"]["verb"]) == set(CROSS_FITTED)
    evaluate.run(params, workspace)
    comparison = json.loads((workspace.reports / "comparison.json").read_text())
    row = next(row for row in comparison["rows"] if row["name"] == "both")
    assert (row["role"], row["clips_seen"]) == ("teacher", 6)
    assert comparison["fused"]["both"] == about(workspace)["chosen"]
    page = (workspace.reports / "index.html").read_text()
    for figures in comparison["fused"]["both"]["validation"].values():
        assert f"<td>{figures['nll']:.3f}</td>" in page


def test_a_second_run_trains_nothing_anew(workspace: Workspace, params: Params):
    before = {file.name: file.read_bytes() for file in workspace.fused("both").rglob("*.safetensors")}
    fuse.run(params, workspace, "both")
    after = {file.name: file.read_bytes() for file in workspace.fused("both").rglob("*.safetensors")}
    assert before == after


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teachers": ["eyes", "box"]}, "did you mean 'boxes'"),
        ({"teachers": ["eyes", "eyes"]}, "two of them see the same modality"),
        ({"teachers": ["eyes"]}, "at least 2"),
    ],
)
def test_what_cannot_be_fused_is_refused(small_params: dict[str, Any], change: dict[str, Any], message: str):
    values = deepcopy(small_params)
    values["fused"]["both"] |= change
    with pytest.raises(ValueError, match=message):
        Params.model_validate(values)


def test_branches_of_other_folds_are_refused(small_params: dict[str, Any]):
    values = deepcopy(small_params)
    values["teachers"]["boxes"]["folds"] = 2
    with pytest.raises(ValueError, match="same number of folds"):
        Params.model_validate(values)


@pytest.mark.parametrize("name", ["both", "boxes"])
def test_a_student_may_not_be_named_as_a_teacher(small_params: dict[str, Any], name: str):
    """Said before anything is trained: the report, which could not tell them apart, comes last."""
    values = deepcopy(small_params)
    values["students"][name] = values["students"]["baseline"]
    with pytest.raises(ValueError, match=f"students.{name}: a teacher has that name already"):
        Params.model_validate(values)


@pytest.mark.parametrize("section", ["teachers", "fused", "students"])
@pytest.mark.parametrize("name", ["ensemble", "ensemble-weighted"])
def test_nobody_may_be_named_as_a_mix_of_the_teachers(small_params: dict[str, Any], section: str, name: str):
    values = deepcopy(small_params)
    values[section][name] = next(iter(values[section].values()))
    with pytest.raises(ValueError, match=f"{section}.{name}: a mix of the teachers has that name already"):
        Params.model_validate(values)
