"""From the reports of a study's workspaces to study.json: figures, paired tests, cost, views. Pure arithmetic on files.

Figures without a suffix are as trained; those ending in `_scaled` are after the temperature that ships.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd

from models.distill import Omnivorous
from tasks.clips import read_clips
from tasks.errors import UserError
from tasks.layout import Workspace
from tasks.params import Evaluate, Params
from tasks.report import ACTION
from tasks.study.cost import training_cost
from tasks.study.spec import Study
from tasks.study.statistics import Figure, Paired, ece_figure, holm, mean_figure, paired

FIGURES = ("top1", "nll", "nll_scaled", "ece", "ece_scaled")
"""Of every method in every head. NLL and ECE: less is better."""

SAMPLES = 10_000
"""Resamples at least: the smallest p-value, 2 / (SAMPLES + 1), has to survive Holm's correction over many methods."""

_COLUMNS = {
    "confidence_trained": "confidence",
    "confidence": "confidence_scaled",
    "prob_true_trained": "nll",
    "prob_true": "nll_scaled",
}
"""Column of predictions.parquet → what it becomes."""

Scores = dict[str, np.ndarray]
"""What is scored clip by clip → (seeds, clips)."""


@dataclass(frozen=True)
class Finished:
    """A data set whose pipeline is up to date.

    Attributes:
        name: of the data set in the study.
        workspace: that holds its reports.
        params: what they were made with.
        left_out: method → why the data set has no such row.
        notes: what the data made differ from the study.
    """

    name: str
    workspace: Workspace
    params: Params
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def summarise(study: Study, finished: Sequence[Finished], failed: Mapping[str, str]) -> dict[str, Any]:
    """What study.json holds.

    Args:
        study: what was asked.
        finished: the data sets that are done, in the study's order.
        failed: data set → why it has no figures.
    """
    return {
        "name": study.name,
        "baseline": study.baseline,
        "methods": list(study.methods),
        "seeds": study.seeds,
        "data_sets": [_data_set(study, data) for data in finished],
        "failed": dict(failed),
    }


def _data_set(study: Study, data: Finished) -> dict[str, Any]:
    comparison = json.loads((data.workspace.reports / "comparison.json").read_text(encoding="utf-8"))
    predictions = pd.read_parquet(data.workspace.reports / "predictions.parquet")
    rows = {row["name"]: row for row in comparison["rows"]}
    names = [name for name in study.methods if name not in data.left_out]
    heads = [ACTION, *(head for head in data.params.data.heads if head != ACTION)]
    if len(heads) == 2:  # the action is that head
        heads = [ACTION]
    asked = [*names, *(name for name in rows if name not in names)]  # methods, then teachers and ensembles
    figures = {
        name: method_figures(scores_of(predictions, name, data, heads), data.params.evaluate)
        for name in asked
    }
    train_clips = len(read_clips(data.workspace.index, "train"))
    costs = {name: _cost(data, name, train_clips) for name in [*names, *data.params.teachers]}
    differences = compare_all(figures, names, study.baseline)
    return {
        "name": data.name,
        "dataset": comparison["dataset"],
        "clips": comparison["clips"],
        "train_clips": train_clips,
        "groups": comparison["data"]["splits"]["test"]["groups"],
        "heads": heads,
        "samples": _samples(data.params.evaluate),
        "bins": data.params.evaluate.bins,
        "methods": [
            {
                "name": name,
                "kind": data.params.students[name].method.kind,
                "settings": data.params.students[name].model_dump(),
                "chosen": comparison["chosen"][name],
                "teacher_weights": _mean_weights(comparison["chosen"][name]),
                "teachers": data.params.heard_by(name),
                "heads": _told(figures[name]),
                "differences": differences.get(name),
                "inference": {key: rows[name][key] for key in ("params", "gmacs", "views")},
                "training": costs[name],
                "views": comparison["views"][name],
            }
            for name in names
        ],
        "references": [
            {"name": name, "role": row["role"], "sees": row["inference_modalities"], "gmacs": row["gmacs"]}
            | {"params": row["params"], "heads": _told(figures[name]), "training": costs.get(name)}
            for name, row in rows.items()
            if name not in names
        ],
        "left_out": dict(data.left_out),
        "notes": list(data.notes),
    }


def _mean_weights(chosen: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Head → teacher → its weight in the mix, mean over seeds; empty where nothing was mixed."""
    seeds = [settled["teacher_weights"] for settled in chosen.values() if "teacher_weights" in settled]
    if not seeds:
        return {}
    return {
        head: {teacher: mean(weights[head][teacher] for weights in seeds) for teacher in seeds[0][head]}
        for head in seeds[0]
    }


def scores_of(
    predictions: pd.DataFrame, name: str, data: Finished, heads: Sequence[str]
) -> dict[str, Scores]:
    """Head → scores of one row of the report, seeds in the order of the params, clips in that of the table.

    Raises:
        UserError: predictions.parquet is of an older version, or lacks a seed.
    """
    own = predictions[predictions["name"] == name]
    parts = list(data.params.data.heads)
    right: dict[str, np.ndarray] = {}
    found: dict[str, Scores] = {}
    for head in dict.fromkeys([*parts, *heads]):
        of_head = own[own["head"] == head]
        seeds = [of_head[of_head["seed"] == seed] for seed in data.params.seeds]
        if not set(_COLUMNS) <= set(own.columns) or any(seed.empty for seed in seeds):
            raise UserError(
                f"holds no predictions of {name} that a study can use",
                file=data.workspace.reports / "predictions.parquet",
                remedy="remove it and run the study again",
            )
        right[head] = np.stack([(seed["true"] == seed["predicted"]).to_numpy(np.float64) for seed in seeds])
        values = {
            name: np.stack([seed[column].to_numpy(np.float64) for seed in seeds])
            for column, name in _COLUMNS.items()
        }
        for nll in ("nll", "nll_scaled"):
            values[nll] = -np.log(np.maximum(values[nll], np.finfo(np.float64).tiny))
        found[head] = values
    for head, values in found.items():
        # The names of an action are joined by spaces, which names may hold too; those of its heads are not joined.
        joined = head == ACTION and ACTION not in parts
        values["top1"] = np.prod([right[part] for part in parts], axis=0) if joined else right[head]
    return {head: found[head] for head in heads}


def _samples(evaluate: Evaluate) -> int:
    return max(SAMPLES, evaluate.bootstrap)


def method_figures(heads: Mapping[str, Scores], evaluate: Evaluate) -> dict[str, dict[str, Figure]]:
    """Head → figure → its value a seed and its draws."""
    found: dict[str, dict[str, Figure]] = {}
    for head, scores in heads.items():
        figures = {
            name: mean_figure(scores[name], _samples(evaluate)) for name in ("top1", "nll", "nll_scaled")
        }
        for name, sure in (("ece", "confidence"), ("ece_scaled", "confidence_scaled")):
            figures[name] = ece_figure(scores[sure], scores["top1"], evaluate.bins, _samples(evaluate))
        found[head] = figures
    return found


def compare_all(
    figures: Mapping[str, Mapping[str, Mapping[str, Figure]]], names: Sequence[str], baseline: str
) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Method → head → figure → the paired difference to the baseline, p-values beside those adjusted by Holm.

    A family is the methods of one data set in one figure of one head.
    """
    methods = [name for name in names if name != baseline]
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
        name: {head: {} for head in figures[name]} for name in methods
    }
    for head, of_baseline in figures[baseline].items():
        for figure, theirs in of_baseline.items():
            tests = [paired(figures[name][head][figure], theirs) for name in methods]
            adjusted = zip(holm([test.p for test in tests]), holm([test.t_p for test in tests]), strict=True)
            for name, test, (p_holm, t_p_holm) in zip(methods, tests, adjusted, strict=True):
                found[name][head][figure] = _difference(test) | {"p_holm": p_holm, "t_p_holm": t_p_holm}
    return found


def _difference(test: Paired) -> dict[str, Any]:
    return _figure(test.figure) | {
        "p": test.p,
        "t": test.t,
        "t_p": test.t_p,
        "higher": test.higher,
        "lower": test.lower,
        "sign_p": test.sign_p,
    }


def _told(figures: Mapping[str, Mapping[str, Figure]]) -> dict[str, dict[str, Any]]:
    return {head: {name: _figure(figure) for name, figure in of.items()} for head, of in figures.items()}


def _figure(figure: Figure) -> dict[str, Any]:
    return {
        "mean": figure.mean,
        "sd": figure.sd,
        "ci95": figure.interval,
        "per_seed": figure.per_seed.tolist(),
    }


def _cost(data: Finished, name: str, train_clips: int) -> dict[str, Any]:
    """What the trainings of a method or teacher cost; see `training_cost`."""
    folder: Path
    if name in data.params.students:
        folder, epochs = data.workspace.student(name), data.params.students[name].training.epochs
        about = folder / "student.json"
    else:
        folder, epochs = data.workspace.teacher(name), data.params.teachers[name].training.epochs
        about = folder / "teacher.json"
    method = data.params.students[name].method if name in data.params.students else None
    beside = method.teachers if isinstance(method, Omnivorous) else []
    facts, *branches = (
        json.loads(file.read_text(encoding="utf-8"))
        for file in (about, *(data.workspace.teacher(teacher) / "teacher.json" for teacher in beside))
    )
    return training_cost(folder / "curves.csv", facts, epochs, train_clips, branches)
