"""A processor whose bfloat16 convolutions give garbage is found before hours of training on it."""

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tasks import distill, fuse, precision, specialise, train_teacher
from tasks.errors import UserError
from tasks.params import Params
from tasks.precision import try_bfloat16


class Faulty(nn.Conv2d):
    """Right in float32; in bfloat16 its last column is what a defect makes of it."""

    def __init__(self, defect: Any) -> None:
        super().__init__(2, 3, 3, stride=2, padding=1)
        self.defect = defect

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        if not torch.is_autocast_enabled("cpu"):
            return y
        return torch.cat([y[..., :-1], self.defect(y[..., -1:])], dim=-1)


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(_, y: torch.Tensor) -> torch.Tensor:
        return y.clone()

    @staticmethod
    def backward(_, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * torch.nan


def learner(layer: nn.Module, precision: str = "bfloat16") -> Any:
    network = nn.Sequential()
    network.add_module("stem", layer)
    spec = SimpleNamespace(empty_network=lambda: network, example=lambda: torch.zeros(4, 2, 5, 3))
    return SimpleNamespace(
        name="audio",
        spec=spec,
        training=SimpleNamespace(precision=precision),
        workspace=SimpleNamespace(params=Path("params.yaml")),
    )


@pytest.mark.parametrize(
    "defect",
    [
        lambda y: y * torch.nan,
        lambda y: y + 3e37,
        lambda y: y * -1,
        NoGradient.apply,  # the output is right, what it teaches the weights is not
    ],
    ids=["no number", "far off", "wrong", "gradient"],
)
def test_a_convolution_that_is_wrong_in_bfloat16_is_named(defect):
    with pytest.raises(
        UserError, match=r"params.yaml: audio: .*convolution stem of 2 × 5 × 3 .*wrongly"
    ) as found:
        try_bfloat16(learner(Faulty(defect)))
    assert "precision: float32" in str(found.value)


def test_rounding_is_no_defect_and_float32_is_not_tried():
    try_bfloat16(learner(nn.Conv2d(2, 3, 3, stride=2, padding=1)))
    try_bfloat16(learner(Faulty(lambda y: y * torch.nan), precision="float32"))


@pytest.mark.parametrize(("seconds", "told"), [(9.0, "take 9 times as long in bfloat16"), (0.5, "")])
def test_a_processor_whose_bfloat16_is_emulated_is_told_of(seconds, told, capsys, monkeypatch):
    tried = precision._tried

    def measured(layer: Any, x: Any, arithmetic: torch.dtype, like: Any) -> Any:
        return tried(layer, x, arithmetic, like)[0], seconds if arithmetic == torch.bfloat16 else 1.0

    monkeypatch.setattr(precision, "_tried", measured)
    try_bfloat16(learner(nn.Conv2d(2, 3, 3, stride=2, padding=1)))
    said = capsys.readouterr().out
    assert told in said
    assert ("audio" in said and "precision: float32" in said) == bool(told)


@pytest.mark.parametrize(("capability", "warned"), [((7, 5), True), ((8, 0), False), ((12, 0), False)])
def test_a_gpu_whose_bfloat16_is_emulated_is_told_of(capability, warned, capsys, monkeypatch):
    monkeypatch.setattr(precision, "device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda there: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda there: "Tesla T4")
    try_bfloat16(
        learner(Faulty(lambda y: y * torch.nan))
    )  # a defect of the processor, which has nothing to do
    try_bfloat16(learner(nn.Conv2d(2, 3, 3)), SimpleNamespace(precision="float32"))  # type: ignore[arg-type]
    told = "warning: audio: bfloat16 is emulated on this GPU (Tesla T4); precision: float32 in its training"
    assert capsys.readouterr().out.count(told) == warned


def test_another_training_than_the_learners_own_may_be_meant():
    with pytest.raises(UserError, match="wrongly"):
        try_bfloat16(
            learner(Faulty(lambda y: y * torch.nan), precision="float32"),
            SimpleNamespace(precision="bfloat16"),  # type: ignore[arg-type]
        )


@pytest.fixture
def in_bfloat16(small_params: dict[str, Any]) -> Params:
    """A teacher, a fused one, specialists and a baseline, all of whose trainings are in bfloat16."""
    values = deepcopy(small_params)
    training = values["teachers"]["eyes"]["training"] | {"precision": "bfloat16"}
    for section in ("teachers", "fused", "students"):
        for entry in values[section].values():
            entry["training"] = training
    values["specialists"]["mst"] = {
        "fused": "both",
        "auxiliaries": ["boxes"],
        "student": "eyes",
        "temperature": 4.0,
        "training": training,
        "masks": {"width": 6, "attention_heads": 3, "training": training},
    }
    return Params.model_validate(values)


@pytest.mark.parametrize(
    ("stage", "item"), [(train_teacher, "eyes"), (fuse, "both"), (specialise, "mst"), (distill, "baseline")]
)
def test_every_stage_that_trains_asks_before_it_does(
    stage: Any,
    item: str,
    in_bfloat16: Params,
    drawn_workspace: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tasks.precision._is_wrong", lambda *_: True)
    with pytest.raises(UserError, match=f"{item}: this processor computes the convolution backbone.*wrongly"):
        stage.run(in_bfloat16, drawn_workspace(tmp_path), item)
    assert not (tmp_path / ".understudy" / "trainings").exists()
