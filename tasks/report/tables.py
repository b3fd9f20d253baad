"""The long tables behind the pictures, which `dvc plots` draws too and compares between commits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from models.calibration import reliability_of
from tasks.report.comparison import Scored
from tasks.report.predictions import Model, TestSplit


@dataclass(frozen=True)
class Tables:
    """What the functions below make."""

    reliability: pd.DataFrame
    predictions: pd.DataFrame
    curves: pd.DataFrame


def reliability_table(models: Sequence[Model], scored: Scored, test: TestSplit, bins: int) -> pd.DataFrame:
    """Reliability of every model in every head, its seeds pooled, before and after the temperature.

    Columns: name, role, head, temperature (before, after), confidence, accuracy, count; no empty bins.
    """
    tables = []
    for model in models:
        for head in test.heads:
            scores = scored[model.name][head]
            for when, confidence in (("before", scores.confidence), ("after", scores.confidence_scaled)):
                found = reliability_of(
                    torch.from_numpy(confidence.ravel()), torch.from_numpy(scores.top1.ravel()), bins
                )
                table = pd.DataFrame(
                    {"confidence": found.confidence, "accuracy": found.accuracy, "count": found.count}
                )
                table = table[table["count"] > 0]
                tables.append(table.assign(name=model.name, role=model.role, head=head, temperature=when))
    columns = ["name", "role", "head", "temperature", "confidence", "accuracy", "count"]
    return pd.concat(tables, ignore_index=True)[columns]


def views_table(views: Mapping[str, Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """The views sweep of comparison.json as rows: name, clips, crops, views, top1, ece, ece_scaled."""
    rows = [
        {
            "name": name,
            **{key: point[key] for key in ("clips", "crops", "views", "top1", "ece", "ece_scaled")},
        }
        for name, points in views.items()
        for point in points
    ]
    return pd.DataFrame(rows)


def prediction_table(models: Sequence[Model], test: TestSplit) -> pd.DataFrame:
    """What each model said of each test clip, so that later tests need no network.

    Columns: clip_id, name, seed, head, true, predicted (class names, of an action joined by a space),
    confidence and prob_true (both after the temperature), confidence_trained and prob_true_trained (before it).
    """
    tables = [
        _predictions_of(model, seed, head, test)
        for model in models
        for seed in model.predictions
        for head in test.heads
    ]
    return pd.concat(tables, ignore_index=True)


def _predictions_of(model: Model, seed: int, head: str, test: TestSplit) -> pd.DataFrame:
    true, predicted = [], []
    said = {"": model.predictions[seed].calibrated, "_trained": model.predictions[seed].raw}
    shares = {f"{kind}{when}": np.ones(len(test)) for when in said for kind in ("confidence", "prob_true")}
    for part in test.parts(head):
        labels, classes = test.labels[part].numpy(), np.array(test.classes[part])
        for when, logits in said.items():
            probs = logits[part].double().softmax(dim=-1).numpy()
            shares[f"confidence{when}"] *= probs.max(axis=1)
            shares[f"prob_true{when}"] *= probs[np.arange(len(test)), labels]
        true.append(classes[labels])
        predicted.append(classes[said[""][part].argmax(dim=-1).numpy()])
    return pd.DataFrame(
        {
            "clip_id": list(test.clip_ids),
            "name": model.name,
            "seed": seed,
            "head": head,
            "true": [" ".join(names) for names in zip(*true, strict=True)],
            "predicted": [" ".join(names) for names in zip(*predicted, strict=True)],
            **shares,
        }
    )


def curves_table(folders: Mapping[str, Path]) -> pd.DataFrame:
    """The training curves of all models, one row an epoch of a network, with the model's name in front.

    Args:
        folders: model name → its folder with curves.csv.
    """
    tables = [pd.read_csv(folder / "curves.csv").assign(name=name) for name, folder in folders.items()]
    table = pd.concat(tables, ignore_index=True)
    return table[["name", *(column for column in table.columns if column != "name")]]
