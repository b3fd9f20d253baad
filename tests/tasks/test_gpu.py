"""What a GPU does differently: a training on it is resumed, losses are those of the CPU, two of them train as one."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from models.distill.method import Hint, Lesson, Method
from models.network import Output, Word
from tasks.clips import read_clips
from tasks.layout import Workspace
from tasks.learner import Learner
from tasks.params import Params
from tasks.train_teacher import teacher_learner
from tests.models.test_distill import LABELS, companion, examples, lesson, student

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


class Killed(Exception):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_killed_training_goes_on(
    precision: str,
    small_params: dict[str, Any],
    drawn_workspace: Callable[[Path], Workspace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERSTUDY_DEVICE", "cuda")
    params = deepcopy(small_params)
    params["teachers"]["eyes"]["training"] |= {"epochs": 4, "ema": 0.9, "precision": precision}
    learner = teacher_learner(Params.model_validate(params), drawn_workspace(tmp_path), "eyes")
    clips = read_clips(learner.workspace.index, "train")
    validate, epochs = Learner.validate, []

    def dying(self: Learner, network: Any) -> dict[str, float]:
        epochs.append(network)
        if len(epochs) == 3:
            raise Killed
        return validate(self, network)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "validate", dying)
        with pytest.raises(Killed):
            learner.train(clips, None, 0, 0)
    (checkpoint,) = tmp_path.glob(".understudy/trainings/*.pt")
    before = torch.load(checkpoint, weights_only=True)
    assert len(before["history"]) == 2
    network, history = learner.train(clips, None, 0, 0)
    assert history[:2] == before["history"]
    assert [epoch["epoch"] for epoch in history] == [0, 1, 2, 3]
    assert all(math.isfinite(value) for epoch in history for value in epoch.values())
    assert all(value.device.type == "cpu" and value.isfinite().all() for value in network.parameters())
    # A step counted on the GPU would be waited for in every step after a resume.
    steps = [
        state["step"] for state in torch.load(checkpoint, weights_only=True)["optimizer"]["state"].values()
    ]
    assert {step.device.type for step in steps} == {"cpu"}


def on_gpu(output: Output) -> Output:
    logits = {head: values.detach().cuda().requires_grad_() for head, values in output.logits.items()}
    return Output(output.features.detach().cuda(), output.moments.detach().cuda(), logits)


def told_on_gpu(told: Lesson) -> Lesson:
    def moved(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {head: value.cuda() for head, value in values.items()}

    return Lesson(
        moved(told.log_probs),
        told.present.cuda(),
        {name: Hint(*(value.cuda() for value in hint)) for name, hint in told.hints.items()},
        teachers={
            name: Word(moved(word.logits), word.present.cuda())
            for name, word in (told.teachers or {}).items()
        },
    )


@examples
def test_a_loss_is_that_of_the_cpu(method: Method):
    own, teachers = student(), lesson(present=(True, False, True))
    here = method.loss(own, teachers, LABELS, companion(method), 0.0).total
    labels = {head: values.cuda() for head, values in LABELS.items()}
    there = method.loss(on_gpu(own), told_on_gpu(teachers), labels, companion(method).cuda(), 0.0).total
    assert there.item() == pytest.approx(here.item(), rel=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_as_one(
    small_params: dict[str, Any], drawn_workspace: Callable[[Path], Workspace], tmp_path: Path
):
    workspace = drawn_workspace(tmp_path)
    params = deepcopy(small_params)
    boxes = params["teachers"]["boxes"]
    boxes |= {"folds": 1, "training": boxes["training"] | {"devices": 2}}
    params |= {"teachers": {"boxes": boxes}, "fused": {}}
    workspace.params.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tasks", "train_teacher", "boxes"],
        cwd=workspace.root,
        env=os.environ | {"PYTHONPATH": str(ROOT), "UNDERSTUDY_DEVICE": "cuda"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((workspace.teacher("boxes") / "teacher.json").read_text(encoding="utf-8"))
    assert math.isfinite(told["validation"]["0"]["action"]["nll"])
