"""A student that was shown boxes in training: what is deployed is an RGB network at the cost of the baseline."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks import distill
from tasks.networks import Committee
from tasks.params import Params


@pytest.fixture
def values(small_params: dict[str, Any]) -> dict[str, Any]:
    """Params with a student of method omnivorous."""
    values = deepcopy(small_params)
    values["students"]["omnivore"] = {
        **values["students"]["baseline"],
        "learns_from": "artifacts/teachers",
        "method": {
            "kind": "omnivorous",
            "teachers": ["boxes"],
            "modality_dropout": 0.5,
            "head_weights": None,
        },
    }
    return values


def test_what_is_deployed_sees_rgb_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn_workspace: Any, values: dict[str, Any]
):
    monkeypatch.chdir(tmp_path)
    workspace, params = drawn_workspace(tmp_path), Params.model_validate(values)
    for name in params.students:
        distill.run(params, workspace, name)
    baseline, student = (
        json.loads((workspace.student(name) / "student.json").read_text())
        for name in ("baseline", "omnivore")
    )
    assert (student["role"], student["inference_modalities"]) == ("student", ["rgb"])
    assert student["params_count"] == baseline["params_count"]
    assert student["gmacs"] == baseline["gmacs"]
    committee = Committee.load(workspace.student("omnivore") / "seed-0")
    assert committee.spec.modality == "rgb"
    assert committee.logits(torch.zeros(1, 4, 3, 32, 32))["verb"].shape == (1, 2)
    curve = (workspace.student("omnivore") / "curves.csv").read_text().splitlines()
    assert len(curve) == 1 + params.students["omnivore"].training.epochs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learns_from": "data/index"}, "method omnivorous is shown what teachers see"),
        ({"method": {"teachers": ["eyes"]}}, "a modality is shown twice"),
        ({"method": {"teachers": ["box"]}}, "did you mean 'boxes'"),
    ],
)
def test_what_cannot_be_shown_is_refused(values: dict[str, Any], change: dict[str, Any], message: str):
    student = values["students"]["omnivore"]
    for name, value in change.items():
        student[name] = student[name] | value if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=message):
        Params.model_validate(values)
