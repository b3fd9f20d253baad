"""The stage on a small workspace of real shards and real, untrained networks."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from tasks import answers, evaluate, inference, views
from tasks.atomic import write_json
from tasks.clips import Clip, write_clips
from tasks.errors import UserError
from tasks.layout import Workspace
from tasks.networks import Committee, Spec
from tasks.params import Params
from tasks.shards import Row, write_shard

HEADS = {"verb": ["cut", "wash"], "noun": ["cup", "pan", "pot"]}
FRAMES = {
    "kind": "frames",
    "name": "test_vit",
    "pretrained": False,
    "temporal": "mean",
    "normalise": "none",
    "dropout": 0.0,
    "drop_path": 0.0,
}
STLT = {
    "kind": "stlt",
    "width": 8,
    "spatial_layers": 1,
    "temporal_layers": 1,
    "attention_heads": 2,
    "max_frames": 4,
    "dropout": 0.0,
}
TRAINING = {
    "epochs": 2,
    "batch": 2,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "warmup_epochs": 1,
    "decay": "linear",
    "clip_norm": 1.0,
    "ema": 0.0,
    "precision": "float32",
    "devices": 1,
}
SUPERVISED = {"kind": "supervised", "head_weights": None, "label_smoothing": 0.0}
PARAMS: dict[str, Any] = {
    "data": {
        "name": "small",
        "format": "folder",
        "heads": HEADS,
        "validation_share": 0.2,
        "test_share": 0.2,
        "split_seed": 0,
        "slices": ["light"],
    },
    "seeds": [0, 1],
    "threads": 1,
    "views": {
        "frames": 4,
        "size": 160,
        "per_clip": 1,
        "zoom": [1.0, 1.0],
        "test_zoom": 1.0,
        "flip": False,
        "jitter": {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0},
    },
    "modalities": {
        "rgb": {
            "kind": "rgb",
            "shards": 1,
            "short_side": 32,
            "rate_hz": 4.0,
            "quality": 90,
            "change_s": None,
        },
        "detections": {
            "kind": "detections",
            "shards": 1,
            "max_boxes": 2,
            "visible": 0.2,
            "nearest_s": 0.5,
            "moments": 1,
        },
    },
    "teachers": {
        "rgb": {"modality": "rgb", "folds": 1, "hints": False, "backbone": FRAMES, "training": TRAINING},
        "detections": {
            "modality": "detections",
            "folds": 2,
            "hints": False,
            "backbone": STLT,
            "training": TRAINING,
        },
    },
    "fused": {},
    "specialists": {},
    "students": {
        name: {
            "learns_from": "data/index",
            "backbone": FRAMES,
            "training": TRAINING,
            "method": SUPERVISED,
            "ensemble": None,
        }
        for name in ("student", "baseline")
    },
    "search": {
        "epochs": 1,
        "temperature": [1.0],
        "distillation_weight": [0.5],
        "divergence": ["forward_kl"],
        "weights_temperature": [1.0, 0.1],
    },
    "gate": {
        "min_top1_gain": 0.0,
        "max_ece_increase": 0.02,
        "max_nll_increase": 0.05,
        "max_worst_slice_drop": 0.1,
        "min_slice_clips": 2,
        "max_latency_ratio": 1.5,
        "max_size_mb": 200.0,
        "promote": "manual",
    },
    "evaluate": {"clips": [1, 2, 3], "crops": [1, 3], "bins": 15, "bootstrap": 50},
    "register": {"student": "auto", "head": "action", "parity": {"clips": 4, "tolerance": 1e-4}},
}
CHOSEN = {
    "temperature": 1.0,
    "divergence": "forward_kl",
    "distillation_weight": {"verb": 0.5, "noun": 0.0},
    "ground_truth_weight": 1.0,
    "unlabelled_weight": 0.0,
    "weights_temperature": {"verb": 0.2, "noun": 1},
    "mix_temperature": {"verb": 0.4, "noun": 0.6},
    "unlabelled_mix_temperature": {},
    "teacher_weights": {"verb": {"rgb": 1.0}, "noun": {"rgb": 1.0}},
    "refusal": {"lesson": 1.25, "labels": 1.5, "error": 0.125, "refused": False, "hints": 1.75},
}
BOXLESS = "test-2"
"""The clip without detections."""


def clips() -> list[Clip]:
    """Six of each split, with every class somewhere in train and no pot in test."""
    found = []
    for split in ("train", "val", "test"):
        for number in range(6):
            labels = {
                "verb": HEADS["verb"][number % 2],
                "noun": HEADS["noun"][number % (2 if split == "test" else 3)],
            }
            name = f"{split}-{number}"
            slices = {"light": "day" if number < 4 else "dim"}
            found.append(Clip(name, f"{name}.mp4", 0.0, 2.0, split, split, labels, slices))
    return found


def rgb_rows(clip: Clip) -> Iterator[tuple[str, Row]]:
    """A picture of its own for every quarter of a second."""
    draw = np.random.default_rng(len(clip.clip_id) + sum(clip.clip_id.encode()))
    for moment in range(9):
        _, jpeg = cv2.imencode(".jpg", draw.integers(0, 255, (32, 48, 3), dtype=np.uint8))
        yield clip.video, Row(moment / 4, 1.5, jpeg.tobytes())


def box_rows(clip: Clip) -> Iterator[tuple[str, Row]]:
    """One hand that moves."""
    for moment in range(9):
        boxes = np.array([[0.1 + moment / 20, 0.2, 0.4 + moment / 20, 0.6, 0.9, 1, 1, 2]], np.float32)
        yield clip.video, Row(moment / 4, 1.5, boxes.tobytes())


def save_model(folder: Path, params: Params, name: str, modality: str, backbone: Any, members: int) -> None:
    """Untrained networks with distinct weights, as training would leave them."""
    role = name if name in params.students else "teacher"
    for seed in params.seeds:
        torch.manual_seed(1000 * seed + sum(name.encode()) + members)
        spec = Spec(
            modality=modality,
            modality_params=params.modalities[modality],
            views=params.views,
            heads=HEADS,
            backbone=backbone,
        )
        (folder / f"seed-{seed}").mkdir(parents=True)
        networks = [spec.new_network() for _ in range(members)]
        Committee(spec, networks, {"verb": 2.0, "noun": 0.5}).save(folder / f"seed-{seed}")
    figures = {head: {"top1": 0.5, "nll": 1.0, "ece": 0.1} for head in ("action", *HEADS)}
    about = {
        "name": name,
        "role": role,
        "method": "kd" if role == "student" else "supervised",
        "inference_modalities": [modality],
        "seeds": params.seeds,
        "params_count": 1000,
        "gmacs": 0.5,
        "validation": {str(seed): figures for seed in params.seeds},
        "chosen": {str(seed): CHOSEN if role == "student" else {} for seed in params.seeds},
        "runs": {},
    }
    write_json(folder / ("teacher.json" if role == "teacher" else "student.json"), about)
    curve = [
        {"seed": seed, "member": member, "epoch": epoch, "val_top1": 0.1 * epoch}
        for seed in params.seeds
        for member in range(members)
        for epoch in range(2)
    ]
    pd.DataFrame(curve).to_csv(folder / "curves.csv", index=False)


def build(root: Path, params: Params) -> Workspace:
    """A workspace in which everything before `evaluate` was done."""
    workspace = Workspace(root)
    every = clips()
    write_clips(workspace.index / "clips.csv", every, HEADS, ["light"])
    with (workspace.index / "quarantine.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["clip_id", "reason"], ["broken", "not a video"]])
    boxes = [clip for clip in every if clip.clip_id != BOXLESS]
    for modality, rows in {
        "rgb": (row for clip in every for row in rgb_rows(clip)),
        "detections": (row for clip in boxes for row in box_rows(clip)),
    }.items():
        write_shard(workspace.modality(modality) / "shard-0.arrow", rows)
        write_json(
            workspace.modality(modality) / "manifest.json",
            {"shards": [{"file": "shard-0.arrow"}], "problems": {}},
        )
    for name, teacher in params.teachers.items():
        folder = workspace.teacher(name)
        save_model(folder, params, name, teacher.modality, teacher.backbone, teacher.folds)
    for name, student in params.students.items():
        save_model(workspace.student(name), params, name, "rgb", student.backbone, 1)
    return workspace


@pytest.fixture(scope="module")
def params() -> Params:
    """Two teachers, two students, two seeds."""
    return Params.model_validate(PARAMS)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Workspace:
    """A workspace that was evaluated."""
    workspace = build(tmp_path_factory.mktemp("workspace"), params)
    evaluate.run(params, workspace)
    return workspace


@pytest.fixture(scope="module")
def comparison(workspace: Workspace) -> dict[str, Any]:
    """Its comparison.json."""
    return json.loads((workspace.reports / "comparison.json").read_text())


def test_comparison_keeps_its_promised_form(comparison: dict[str, Any]):
    assert comparison["dataset"] == "small"
    assert comparison["split"] == "test"
    assert comparison["clips"] == 6
    assert comparison["seeds"] == [0, 1]
    assert [(row["name"], row["role"]) for row in comparison["rows"]] == [
        ("rgb", "teacher"),
        ("detections", "teacher"),
        ("ensemble", "ensemble"),
        ("ensemble-weighted", "ensemble"),
        ("baseline", "baseline"),
        ("student", "student"),
    ]
    for row in comparison["rows"]:
        assert {"method", "inference_modalities", "params", "gmacs", "views"} <= row.keys()
        assert list(row["heads"]) == ["action", "verb", "noun"]
        for values in row["heads"].values():
            assert {"top1", "top1_ci95", "top5", "ece", "ece_scaled", "nll", "brier"} <= values.keys()
            assert 0 <= values["top1"] <= values["top5"] <= 1


def test_an_ensemble_costs_what_its_members_cost(comparison: dict[str, Any]):
    row = comparison["rows"][2]
    assert row["params"] == 2000
    assert row["gmacs"] == 1.0
    assert row["inference_modalities"] == ["rgb", "detections"]


def test_rows_are_scored_on_one_central_view(workspace: Workspace, params: Params):
    """The student's stored predictions are those of its network on the middle view."""
    clip = next(clip for clip in clips() if clip.clip_id == "test-3")
    committee = Committee.load(workspace.student("student") / "seed-1")
    rows = evaluate.Trained.of(params, workspace).shards["rgb"].rows(clip.video)
    (view,) = views.evaluation_views(clip, params.views, 1, 1)
    rendered = params.modalities["rgb"].render(rows, view, params.views.size)
    logits = committee.logits(torch.from_numpy(rendered)[None])
    probs = {head: values[0].softmax(-1) for head, values in committee.calibrated(logits).items()}
    table = pd.read_parquet(workspace.reports / "predictions.parquet")
    found = table.query("clip_id == 'test-3' and name == 'student' and seed == 1").set_index("head")
    for head in HEADS:
        best = int(probs[head].argmax())
        assert found.loc[head, "predicted"] == HEADS[head][best]
        assert found.loc[head, "confidence"] == pytest.approx(float(probs[head][best]), abs=1e-5)
    assert found.loc["action", "true"] == "wash pan"
    assert found.loc["action", "prob_true"] == pytest.approx(
        float(probs["verb"][1] * probs["noun"][1]), abs=1e-5
    )


def test_a_teacher_guesses_class_shares_where_it_is_blind(workspace: Workspace, comparison: dict[str, Any]):
    table = pd.read_parquet(workspace.reports / "predictions.parquet")
    blind = table.query("clip_id == @BOXLESS and name == 'detections' and head == 'verb'")
    assert blind["prob_true"].tolist() == [0.5, 0.5]  # 3 + 1 of 6 + 2 training clips
    assert [row["clips_seen"] for row in comparison["rows"]] == [6, 5, 6, 6, 6, 6]
    assert "detections on 1 of 6 test clips" in (workspace.reports / "index.html").read_text()


def test_the_page_tells_what_was_settled_head_by_head(workspace: Workspace):
    page = (workspace.reports / "index.html").read_text()
    assert "<td>verb 0.5, noun 0</td><td>1</td>" in page
    assert "<td>verb 0.2, noun 1</td>" in page


def test_the_page_tells_what_was_refused(workspace: Workspace):
    page = (workspace.reports / "index.html").read_text()
    assert "With hints the action's NLL on validation was 1.750; they were refused" in page
    assert "is 1.250 by the lesson and 1.500 by labels alone" in page
    assert "0.125 of the difference: the lesson stays" in page


def test_a_blind_teacher_has_no_say_in_the_ensemble(workspace: Workspace):
    table = pd.read_parquet(workspace.reports / "predictions.parquet")
    found = table.query("clip_id == @BOXLESS and head == 'verb'").set_index(["name", "seed"])["prob_true"]
    odds = np.log(found / (1 - found))
    for seed in (0, 1):
        temperature = odds["rgb", seed] / odds["ensemble", seed]
        assert 0.05 <= temperature <= 20.01  # what rgb alone says, up to the temperature of the mix
        assert np.sign(odds["ensemble-weighted", seed]) == np.sign(odds["rgb", seed])


def test_views_sweep_holds_every_number(comparison: dict[str, Any]):
    for name in ("baseline", "student"):
        points = comparison["views"][name]
        assert [(point["clips"], point["crops"]) for point in points] == [
            (clips, crops) for clips in (1, 2, 3) for crops in (1, 3)
        ]
        row = next(row for row in comparison["rows"] if row["name"] == name)
        assert points[0]["top1"] == row["heads"]["action"]["top1"]


def test_derived_views_are_those_computed_alone(workspace: Workspace, params: Params):
    """One clip out of three interleaved gives the logits of one clip asked for alone."""
    trained = evaluate.Trained.of(params, workspace)
    derived = trained.ask_by_views("student", "test")[1, 1]
    alone = trained.ask("student", "test")
    for seed in params.seeds:
        for head in HEADS:
            torch.testing.assert_close(derived[seed].raw[head], alone[seed].raw[head], atol=1e-4, rtol=1e-4)


def test_classes_absent_from_test_are_not_scored(comparison: dict[str, Any]):
    assert list(comparison["classes"]["noun"]) == ["cup", "pan"]


def test_data_section_counts_what_is_missing(comparison: dict[str, Any]):
    data = comparison["data"]
    assert data["quarantined"] == 1
    assert data["problems"] == {"rgb": {}, "detections": {}}
    assert data["splits"]["test"] == {
        "clips": 6,
        "groups": 1,
        "videos": 6,
        "hours": pytest.approx(12 / 3600),
        "missing": {"rgb": 0, "detections": 1},
    }


def test_files_for_dvc(workspace: Workspace):
    plots = workspace.reports / "plots"
    assert sorted(file.name for file in (plots / "confusion").iterdir()) == [
        "baseline-noun.csv",
        "baseline-verb.csv",
        "student-noun.csv",
        "student-verb.csv",
    ]
    assert list(pd.read_csv(plots / "confusion" / "student-verb.csv").columns) == ["actual", "predicted"]
    assert len(pd.read_csv(plots / "views.csv")) == 2 * 6
    assert {"summary.png", "reliability.png", "views.png"} <= {f.name for f in (plots / "pictures").iterdir()}
    metrics = json.loads((workspace.reports / "metrics.json").read_text())
    assert set(metrics["student"]["action"]) == {"top1", "ece_scaled"}


def test_a_second_run_writes_the_same_bytes_and_says_how_far_it_is(
    workspace: Workspace, params: Params, capsys: pytest.CaptureFixture[str]
):
    def content() -> dict[str, bytes]:
        return {str(f): f.read_bytes() for f in sorted(workspace.reports.rglob("*")) if f.is_file()}

    before = content()
    evaluate.run(params, workspace)
    assert content() == before
    shutil.rmtree(workspace.root / ".understudy" / "answers")  # and where every network is asked again
    evaluate.run(params, workspace)
    assert content() == before
    models = len(params.students) + len(params.teachers) + len(params.fused)
    assert f"evaluate {models}/{models} models" in capsys.readouterr().out


def test_only_networks_that_changed_are_asked_again(
    tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch
):
    workspace, asked, ask = build(tmp_path, params), [], answers.view_logits

    def noted(committee: Committee, *arguments: Any) -> Any:
        asked.append(committee.temperature["verb"])
        return ask(committee, *arguments)

    monkeypatch.setattr(answers, "view_logits", noted)
    evaluate.run(params, workspace)
    assert len(asked) > len(params.seeds)
    asked.clear()
    evaluate.run(params, workspace)
    assert asked == []
    folder = workspace.student("student") / f"seed-{params.seeds[0]}"
    committee = Committee.load(folder)
    Committee(committee.spec, [committee.spec.new_network()], {"verb": 3.0, "noun": 0.5}).save(folder)
    evaluate.run(params, workspace)
    assert set(asked) == {3.0}
    asked.clear()
    monkeypatch.setattr(inference, "_ARITHMETIC", ("torch",))  # as if a library were another one
    evaluate.run(params, workspace)
    assert len(asked) > len(params.seeds)


def test_no_test_clips_is_an_error_with_a_remedy(tmp_path: Path, params: Params):
    workspace = build(tmp_path, params)
    kept = [clip for clip in clips() if clip.split != "test"]
    write_clips(workspace.index / "clips.csv", kept, HEADS, ["light"])
    with pytest.raises(UserError, match="no clip is in the test split") as error:
        evaluate.run(params, workspace)
    assert error.value.file == workspace.index / "clips.csv"


def test_an_untrained_model_is_named(tmp_path: Path, params: Params):
    workspace = build(tmp_path, params)
    (workspace.teacher("detections") / "teacher.json").unlink()
    with pytest.raises(UserError, match=r"detections/teacher\.json: this model was not trained"):
        evaluate.run(params, workspace)


def test_headline_is_the_student_with_the_least_validation_loss():
    def about(role: str, nll: float) -> dict[str, Any]:
        return {"role": role, "validation": {"0": {"action": {"nll": nll}}, "1": {"action": {"nll": 1.0}}}}

    found = evaluate.headline(
        {
            "flow": about("teacher", 0.1),
            "b": about("baseline", 0.5),
            "s": about("student", 3.0),
            "t": about("student", 2.0),
        }
    )
    assert found == {"student": "t", "baseline": "b"}
