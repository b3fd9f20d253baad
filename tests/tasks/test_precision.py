"""A processor whose bfloat16 convolutions give garbage is found before hours of training on it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tasks.errors import UserError
from tasks.precision import refuse_garbage


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
        refuse_garbage(learner(Faulty(defect)))
    assert "precision: float32" in str(found.value)


def test_rounding_is_no_defect_and_float32_is_not_tried():
    refuse_garbage(learner(nn.Conv2d(2, 3, 3, stride=2, padding=1)))
    refuse_garbage(learner(Faulty(lambda y: y * torch.nan), precision="float32"))


def test_another_training_than_the_learners_own_may_be_meant():
    with pytest.raises(UserError, match="wrongly"):
        refuse_garbage(
            learner(Faulty(lambda y: y * torch.nan), precision="float32"),
            SimpleNamespace(precision="bfloat16"),  # type: ignore[arg-type]
        )
