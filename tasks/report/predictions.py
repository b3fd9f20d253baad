"""What the compared models said of the test split, and what it is worth clip by clip."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models.metrics import Scores, score_action
from models.network import Logits
from tasks.report import ACTION

Role = Literal["teacher", "ensemble", "baseline", "student"]


@dataclass(frozen=True)
class TestSplit:
    """What there is to know of the test clips before any model looks at them.

    Attributes:
        clip_ids: (clips,).
        classes: head → its classes, in the order of the logits.
        labels: head → (clips,), int64.
        slices: slice column → (clips,), its value on every clip.
    """

    __test__ = False  # pytest would take it for a test

    clip_ids: Sequence[str]
    classes: Mapping[str, Sequence[str]]
    labels: Mapping[str, Tensor]
    slices: Mapping[str, Sequence[str]]

    def __len__(self) -> int:
        return len(self.clip_ids)

    @property
    def heads(self) -> list[str]:
        """All heads that are scored: the action first, then those of the data."""
        return [ACTION, *(head for head in self.classes if head != ACTION)]

    def parts(self, head: str) -> list[str]:
        """The heads of the data that must be right for `head` to be right."""
        return [head] if head in self.classes else list(self.classes)


@dataclass(frozen=True)
class Prediction:
    """What a model trained with one seed said.

    Attributes:
        raw: head → (clips, classes), logits as the network gives them.
        calibrated: the same after the temperature that ships with the model.
        seen: (clips,), bool: the clip has what the model looks at.
    """

    raw: Logits
    calibrated: Logits
    seen: Tensor


@dataclass(frozen=True)
class Model:
    """One row of the comparison.

    Attributes:
        method: how it was trained, as "supervised" or "kd".
        inference_modalities: what it looks at when used.
        params: its weights and biases.
        gmacs: 10⁹ multiply-adds of one view.
        views: views of a clip that were averaged.
        predictions: seed → what it said.
    """

    name: str
    role: Role
    method: str
    inference_modalities: Sequence[str]
    params: int
    gmacs: float
    views: int
    predictions: Mapping[int, Prediction]


@dataclass(frozen=True)
class HeadScores:
    """The scores of one model in one head, clip by clip, every array (seeds, clips).

    `scaled` fields are after the shipped temperature, which changes no top-1.
    """

    top1: np.ndarray
    top5: np.ndarray
    nll: np.ndarray
    brier: np.ndarray
    confidence: np.ndarray
    nll_scaled: np.ndarray
    brier_scaled: np.ndarray
    confidence_scaled: np.ndarray


def score_head(predictions: Mapping[int, Prediction], test: TestSplit, head: str) -> HeadScores:
    """Score every seed of a model in one head of `test`, or in the action.

    Raises:
        ValueError: predictions of another number of clips or classes than the test split has.
    """
    for seed, prediction in predictions.items():
        _refuse_mismatch(seed, prediction, test)
    raw = [_score(prediction.raw, test, head) for prediction in predictions.values()]
    scaled = [_score(prediction.calibrated, test, head) for prediction in predictions.values()]

    def seeds(scores: list[Scores], field: str) -> np.ndarray:
        return torch.stack([getattr(score, field) for score in scores]).double().numpy()

    return HeadScores(
        *(seeds(raw, field) for field in ("top1", "top5", "nll", "brier", "confidence")),
        *(seeds(scaled, field) for field in ("nll", "brier", "confidence")),
    )


def _score(logits: Logits, test: TestSplit, head: str) -> Scores:
    parts = test.parts(head)
    return score_action({part: logits[part] for part in parts}, {part: test.labels[part] for part in parts})


def _refuse_mismatch(seed: int, prediction: Prediction, test: TestSplit) -> None:
    for head, classes in test.classes.items():
        for logits in (prediction.raw[head], prediction.calibrated[head]):
            if logits.shape != (len(test), len(classes)):
                raise ValueError(
                    f"seed {seed}, head {head}: logits {tuple(logits.shape)}, but the test split has "
                    f"{len(test)} clip(s) and {len(classes)} classes"
                )
