"""From predictions to reports/comparison.json: rows, paired differences, slices, classes. Pure arithmetic.

Figures without a suffix are of the network's own probabilities; those ending in `_scaled` are after the
temperature that ships with the model. With several seeds a figure is the mean over seeds, `spread` beside it
is their standard deviation, and intervals resample the clips of the seeds' mean.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.metrics import bootstrap_ci, bootstrap_difference
from tasks.params import Evaluate
from tasks.report import ACTION
from tasks.report.ece_interval import ece_per_seed, resampled_ece
from tasks.report.predictions import HeadScores, Model, Prediction, TestSplit, score_head

MEANS = ("top1", "top5", "nll", "brier", "nll_scaled", "brier_scaled")
CALIBRATION = {"ece": "confidence", "ece_scaled": "confidence_scaled"}
"""Calibration figure → the field of `HeadScores` that holds its confidences."""

_RESAMPLING_SEED = 0  # one seed for all, so that every model is resampled on the same clips

Scored = dict[str, dict[str, HeadScores]]
"""Model name → head → scores."""


def score_models(models: Sequence[Model], test: TestSplit) -> Scored:
    """Score every model in every head of the test split."""
    return {m.name: {head: score_head(m.predictions, test, head) for head in test.heads} for m in models}


def compare(
    data_name: str, models: Sequence[Model], scored: Scored, test: TestSplit, evaluate: Evaluate
) -> dict[str, Any]:
    """Assemble what comparison.json says of the models on the test split.

    Args:
        data_name: name of the data set.
        models: rows, in the order they are shown.
        scored: their scores, from `score_models`.
        test: the split.
        evaluate: bins and resamples.

    Returns:
        JSON-able: dataset, split, clips, seeds, rows, differences, slices, classes.
    """
    return {
        "dataset": data_name,
        "split": "test",
        "clips": len(test),
        "seeds": sorted({seed for model in models for seed in model.predictions}),
        "rows": [_row(model, scored[model.name], evaluate) for model in models],
        "differences": differences(models, scored, evaluate),
        "slices": {column: _accuracy_by(values, scored, ACTION) for column, values in test.slices.items()},
        "classes": {
            head: _accuracy_by([classes[i] for i in test.labels[head].tolist()], scored, head)
            for head, classes in test.classes.items()
        },
    }


def _row(model: Model, scores: Mapping[str, HeadScores], evaluate: Evaluate) -> dict[str, Any]:
    seen = np.mean([prediction.seen.sum().item() for prediction in model.predictions.values()])
    return {
        "name": model.name,
        "role": model.role,
        "method": model.method,
        "inference_modalities": list(model.inference_modalities),
        "heads": {head: head_figures(values, evaluate) for head, values in scores.items()},
        "params": model.params,
        "gmacs": model.gmacs,
        "views": model.views,
        "clips_seen": int(seen),
    }


def head_figures(scores: HeadScores, evaluate: Evaluate) -> dict[str, Any]:
    """Each figure of one head with its 95 % interval, and the spread over seeds (None for a single seed).

    `nll_moved_ci95` is of what the temperature did to the NLL, clip by clip: below zero where it holds.
    """
    figures: dict[str, Any] = {}
    spread: dict[str, float | None] = {}
    for name in MEANS:
        values = getattr(scores, name)
        figures[name] = float(values.mean())
        figures[f"{name}_ci95"] = list(
            bootstrap_ci(values.mean(axis=0), evaluate.bootstrap, _RESAMPLING_SEED)
        )
        spread[name] = _spread(values.mean(axis=1))
    for name, field in CALIBRATION.items():
        per_seed = ece_per_seed(getattr(scores, field), scores.top1, evaluate.bins)
        figures[name] = float(per_seed.mean())
        figures[f"{name}_ci95"] = _interval(_ece_draws(scores, field, evaluate))
        spread[name] = _spread(per_seed)
    moved = bootstrap_ci((scores.nll_scaled - scores.nll).mean(axis=0), evaluate.bootstrap, _RESAMPLING_SEED)
    return {**figures, "nll_moved_ci95": list(moved), "spread": spread}


def differences(models: Sequence[Model], scored: Scored, evaluate: Evaluate) -> list[dict[str, Any]]:
    """Every student minus the first baseline, paired by clip; empty where there is no baseline.

    `top1_per_seed` is the difference of each seed alone, for the seeds that both were trained with.
    """
    baseline = next((model for model in models if model.role == "baseline"), None)
    students = [model for model in models if model.role == "student"]
    if baseline is None:
        return []
    return [
        {
            "name": student.name,
            "against": baseline.name,
            "heads": {
                head: {
                    **_difference(scored[student.name][head], scored[baseline.name][head], evaluate),
                    "top1_per_seed": _per_seed(student, baseline, scored, head),
                }
                for head in scored[student.name]
            },
        }
        for student in students
    ]


def _difference(first: HeadScores, second: HeadScores, evaluate: Evaluate) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name in ("top1", "nll", "nll_scaled"):
        one, other = (getattr(scores, name).mean(axis=0) for scores in (first, second))
        found = bootstrap_difference(one, other, evaluate.bootstrap, _RESAMPLING_SEED)
        figures |= {name: found.mean, f"{name}_ci95": list(found.interval), f"{name}_p": found.p_value}
    for name, field in CALIBRATION.items():
        one, other = (
            ece_per_seed(getattr(scores, field), scores.top1, evaluate.bins).mean()
            for scores in (first, second)
        )
        draws = _ece_draws(first, field, evaluate) - _ece_draws(second, field, evaluate)
        figures |= {name: float(one - other), f"{name}_ci95": _interval(draws)}
    return figures


def _per_seed(student: Model, baseline: Model, scored: Scored, head: str) -> dict[str, float]:
    def means(model: Model) -> dict[int, float]:
        return dict(zip(model.predictions, scored[model.name][head].top1.mean(axis=1), strict=True))

    ours, theirs = means(student), means(baseline)
    return {str(seed): float(ours[seed] - theirs[seed]) for seed in ours if seed in theirs}


def sweep(
    predictions: Mapping[tuple[int, int], Mapping[int, Prediction]], test: TestSplit, evaluate: Evaluate
) -> list[dict[str, Any]]:
    """Accuracy and calibration of the action against the number of views.

    Args:
        predictions: (clips, crops) → seed → what the model said with so many views averaged.
        test: the split.
        evaluate: bins and resamples.
    """
    points = []
    for (clips, crops), seeds in sorted(predictions.items()):
        figures = head_figures(score_head(seeds, test, ACTION), evaluate)
        points.append({"clips": clips, "crops": crops, "views": clips * crops, **figures})
    return points


def _accuracy_by(values: Sequence[str], scored: Scored, head: str) -> dict[str, Any]:
    """Value → its number of clips and each model's top-1 on them, sorted by value."""
    labels = np.array(values)
    return {
        str(value): {
            "clips": int((labels == value).sum()),
            "top1": {name: float(s[head].top1[:, labels == value].mean()) for name, s in scored.items()},
        }
        for value in np.unique(labels)
    }


def metrics(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """The few figures that `dvc metrics show` and `diff` are to list: row → action → metric."""
    head, names = ACTION, ("top1", "ece_scaled")
    return {
        row["name"]: {head: {name: round(row["heads"][head][name], 6) for name in names}}
        for row in comparison["rows"]
    }


def _ece_draws(scores: HeadScores, field: str, evaluate: Evaluate) -> np.ndarray:
    return resampled_ece(
        getattr(scores, field), scores.top1, evaluate.bins, evaluate.bootstrap, _RESAMPLING_SEED
    )


def _interval(draws: np.ndarray) -> list[float]:
    return [float(bound) for bound in np.quantile(draws, [0.025, 0.975])]


def _spread(per_seed: np.ndarray) -> float | None:
    return float(per_seed.std(ddof=1)) if len(per_seed) > 1 else None
