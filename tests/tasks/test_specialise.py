"""MST-Distill on drawn clips: specialists fold by fold, a student of theirs, and where its gate sent the clips."""

import json
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from models.distill.mst import Specialists
from tasks import distill, fuse, specialise, train_teacher
from tasks.clips import read_clips
from tasks.layout import Workspace
from tasks.learner import Learner
from tasks.networks import Committee
from tasks.params import Params
from tasks.teach import load_bank

NAMES = ["both-moments", "both-features", "boxes-moments", "boxes-features"]


@pytest.fixture(scope="module")
def params(small_params: dict[str, Any]) -> Params:
    """A fused teacher, the boxes beside it, and a student of their specialists."""
    values = deepcopy(small_params)
    for learner in (*values["teachers"].values(), values["fused"]["both"]):
        learner["training"] = learner["training"] | {"epochs": 1}
    for teacher in values["teachers"].values():
        teacher["folds"] = 2
    values["fused"]["both"]["kind"] = "head"
    training = values["students"]["baseline"]["training"]
    values["specialists"] = {
        "mst": {
            "fused": "both",
            "auxiliaries": ["boxes"],
            "student": "eyes",
            "temperature": 4.0,
            "training": training,
            "masks": {"width": 6, "attention_heads": 3, "training": training},
        }
    }
    values["students"]["student"] = {
        **values["students"]["baseline"],
        "learns_from": "artifacts/specialists/mst",
        "method": {
            "kind": "mst",
            "temperature": 4.0,
            "top_k": 2,
            "distillation_weight": 1.0,
            "balance_weight": 1.0,
            "gate_weight": 1.0,
            "gate_temperature": 1.0,
            "gate_width": 8,
            "head_weights": None,
        },
    }
    return Params.model_validate(values)


@pytest.fixture(scope="module")
def trainings() -> list[dict[str, Any]]:
    """What was trained, as it was asked for."""
    return []


@pytest.fixture(scope="module")
def workspace(
    tmp_path_factory: pytest.TempPathFactory,
    drawn_workspace: Any,
    params: Params,
    trainings: list[dict[str, Any]],
) -> Workspace:
    """The workspace with the specialists' teachings and their student."""
    root = tmp_path_factory.mktemp("specialise")
    train = Learner.train

    def noted(
        self: Learner, clips: Any, lessons: Any, seed: int, member: int, *rest: Any, **more: Any
    ) -> Any:
        made = train(self, clips, lessons, seed, member, *rest, **more)
        told = {"method": self.method.kind, "member": member, "clips": clips, "made": made[0]}
        trainings.append(told | {"begin": more.get("begin")})
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(Learner, "train", noted)
        workspace = drawn_workspace(root)
        for name in params.teachers:
            train_teacher.run(params, workspace, name)
        fuse.run(params, workspace, "both")
        specialise.run(params, workspace, "mst")
        distill.run(params, workspace, "student")
    return workspace


def test_every_teacher_becomes_a_specialist_at_both_layers(workspace: Workspace, params: Params):
    assert params.specialists["mst"].names == NAMES
    folder = workspace.specialists("mst")
    assert sorted(file.name for file in folder.iterdir() if file.is_dir()) == sorted(NAMES)
    validated = json.loads((folder / "specialists.json").read_text())["validation"]
    assert all(validated[name]["0"]["action"]["nll"] > 0 for name in NAMES)


def test_no_training_of_a_fold_sees_the_fold(
    workspace: Workspace, params: Params, trainings: list[dict[str, Any]]
):
    train = read_clips(workspace.index, "train")
    fold = train_teacher.fold_of(fuse.fused_learner(params, workspace, "both"), train)
    own = {clip.clip_id: number for clip, number in zip(train, fold, strict=True)}
    staged = [t for t in trainings if t["method"] in ("mst_joint", "mst_masks")]
    assert [(t["method"], t["member"]) for t in staged] == [
        (method, member) for member in range(2) for method in ("mst_joint", "mst_masks")
    ]
    for training in staged:
        assert {own[clip.clip_id] for clip in training["clips"]} == {1 - training["member"]}


def test_all_begin_as_they_were_trained(workspace: Workspace, trainings: list[dict[str, Any]]):
    """The student too: as the RGB teacher's network of the same fold."""
    began = [t["begin"] for t in trainings if t["method"] == "mst_joint"]
    eyes = Committee.load(workspace.teacher("eyes") / "seed-0")
    both = Committee.load(workspace.fused("both") / "seed-0")
    for together, student, teacher in zip(began, eyes.members, both.members, strict=True):
        for network, trained in ((together, student), (together.teacher("both"), teacher)):
            for name, value in trained.state_dict().items():
                assert torch.equal(value, network.state_dict()[name])


def test_masks_were_trained_and_the_best_were_kept(trainings: list[dict[str, Any]], workspace: Workspace):
    joint, made = (
        next(t["made"] for t in trainings if t["method"] == method) for method in ("mst_joint", "mst_masks")
    )
    assert isinstance(made, Specialists)
    assert made.least.isfinite().all()
    for name, value in joint.state_dict().items():
        assert torch.equal(value, made.state_dict()[name]), f"{name} was to stay as stage 1 left it"


def test_other_attention_is_another_training_though_the_weights_are_alike(
    workspace: Workspace, params: Params
):
    """Attention of two heads has the weights of one with one, to the shape; only its layer says how many."""
    learner = fuse.fused_learner(params, workspace, "both")
    clips = read_clips(workspace.index, "train")
    one, two = (torch.nn.MultiheadAttention(6, heads) for heads in (1, 2))
    two.load_state_dict(one.state_dict())
    keys = [learner._key(clips, None, 0, 0, learner.training, begin) for begin in (one, two, one)]  # type: ignore[arg-type]
    assert keys[0] == keys[2] != keys[1]


def test_a_specialist_speaks_of_the_fold_that_it_did_not_see(
    workspace: Workspace, params: Params, trainings: list[dict[str, Any]]
):
    train, validation = read_clips(workspace.index, "train"), read_clips(workspace.index, "val")
    bank = load_bank(workspace.specialists("mst"), NAMES, 0, train, validation)
    made = [t["made"] for t in trainings if t["method"] == "mst_masks"]
    both = fuse.fused_learner(params, workspace, "both")
    fold = train_teacher.fold_of(both, train)
    for name in NAMES:
        learner = (
            both if name.startswith("both") else train_teacher.teacher_learner(params, workspace, "boxes")
        )
        row = int(np.flatnonzero(learner.seen(train))[0])
        (batch,) = learner._batches(train, 0, [[(row, 1)]])
        with torch.inference_mode():
            raw = made[fold[row]].specialist(name).eval()(batch.inputs).logits["noun"][0].numpy()
        said = bank[name].train["noun"][row, 1]
        assert raw / said == pytest.approx(np.full(3, raw[0] / said[0]), rel=1e-3)
    assert bank["both-moments"].train_present.all()
    assert bank["boxes-moments"].train_present.sum() == len(train) - 1


def test_of_clips_that_no_fold_saw_all_specialists_speak_together(
    workspace: Workspace, params: Params, trainings: list[dict[str, Any]]
):
    learner = fuse.fused_learner(params, workspace, "both")
    made = [t["made"].eval() for t in trainings if t["method"] == "mst_masks"]
    (batch,) = learner._batches(read_clips(workspace.index, "train"), 0, [[(0, 1), (2, 0)]])
    together = Committee(learner.spec, made, {}).output(batch.inputs).beside
    with torch.inference_mode():
        apart = [network(batch.inputs).beside for network in made]
    for name in NAMES:
        for head, said in together[name].logits.items():
            mean = (apart[0][name].logits[head] + apart[1][name].logits[head]) / 2
            assert torch.allclose(said, mean)
            assert not torch.allclose(said, apart[0][name].logits[head])


def test_the_student_tells_where_its_gate_sent_the_clips(workspace: Workspace):
    about = json.loads((workspace.student("student") / "student.json").read_text())
    assert (about["role"], about["method"], about["inference_modalities"]) == ("student", "mst", ["rgb"])
    routing = about["chosen"]["0"]["routing"]
    assert list(routing) == NAMES
    assert sum(route["probability"] for route in routing.values()) == pytest.approx(1, abs=1e-5)
    assert sum(route["share"] for route in routing.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fused": "boxes"}, "there is no 'boxes'"),
        ({"auxiliaries": ["box"]}, "did you mean 'boxes'"),
        (
            {"student": "boxes"},
            "specialists.mst.student: boxes does not see rgb, as a student does; teachers that do: eyes",
        ),
        ({"masks": {"width": 7, "attention_heads": 3}}, "divide width"),
    ],
)
def test_what_makes_no_specialists_is_refused(params: Params, change: dict[str, Any], message: str):
    values = params.model_dump(by_alias=True)
    entry = values["specialists"]["mst"]
    values["specialists"]["mst"] = entry | {
        name: entry[name] | value if isinstance(value, dict) else value for name, value in change.items()
    }
    with pytest.raises(ValueError, match=message):
        Params.model_validate(values)


def test_a_student_of_specialists_names_them(params: Params):
    values = params.model_dump(by_alias=True)
    values["students"]["student"]["learns_from"] = "artifacts/specialists/boxes"
    with pytest.raises(ValueError, match="learns_from: there is no 'boxes'"):
        Params.model_validate(values)
    for teachings in ("artifacts/teachings", "artifacts/teachings/mst"):
        values["students"]["student"]["learns_from"] = teachings
        with pytest.raises(
            ValueError, match="method mst learns from specialists: learns_from: artifacts/specia"
        ):
            Params.model_validate(values)


def test_no_other_method_learns_from_specialists(params: Params):
    values = params.model_dump(by_alias=True)
    values["students"]["baseline"]["learns_from"] = "artifacts/specialists/mst"
    with pytest.raises(ValueError, match="method supervised cannot learn from specialists"):
        Params.model_validate(values)
