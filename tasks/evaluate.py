"""Stage `evaluate`: every teacher, ensemble and student on the test split, once, and the report of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from tasks.atomic import new_file, new_folder, write_json, write_text
from tasks.errors import UserError
from tasks.layout import Workspace
from tasks.params import ENSEMBLE, WEIGHTED_ENSEMBLE, Params
from tasks.progress import Progress
from tasks.report.comparison import compare, metrics, score_models, sweep
from tasks.report.data import describe, majority_accuracy
from tasks.report.figures import draw
from tasks.report.mixing import calibrate, mix, weigh
from tasks.report.page import render
from tasks.report.predictions import ACTION, Model, Prediction, TestSplit
from tasks.report.table import comparison_table
from tasks.report.tables import Tables, curves_table, prediction_table, reliability_table, views_table
from tasks.trained import Seeds, Trained


def run(params: Params, workspace: Workspace, item: str | None = None) -> None:
    """Score all models on the test split, write reports/ and print the comparison.

    Raises:
        UserError: no test clips, or a model that params names was not trained.
    """
    comparison = evaluate(Trained.of(params, workspace), workspace)
    console = Console()
    console.print(comparison_table(comparison, console.width))


def evaluate(trained: Trained, workspace: Workspace) -> dict[str, Any]:
    """Score `trained` on the test split and write reports/.

    Returns:
        what comparison.json holds.
    """
    params = trained.params
    test = test_split(trained, workspace)
    said, views = {}, {}
    models = len(params.students) + len(params.teachers) + len(params.fused)
    with Progress("evaluate", models, "models") as progress:
        for name in params.students:
            by_views = trained.ask_by_views(name, "test")  # as large as all else; so one student's at a time
            said[name], views[name] = by_views[trained.views], sweep(by_views, test, params.evaluate)
            progress.advance()
        for name in (*params.teachers, *params.fused):
            said[name] = trained.ask(name, "test")
            progress.advance()
    rows = [_row(trained, name, said[name]) for name in (*params.teachers, *params.fused)]
    teachers = {name: said[name] for name in params.teachers}
    mixes, weights = _ensembles(trained, teachers) if len(teachers) > 1 else ([], {})
    # baselines before students
    students = sorted(params.students, key=lambda name: trained.about[name]["role"])
    rows += mixes + [_row(trained, name, said[name]) for name in students]

    scored = score_models(rows, test)
    comparison = compare(params.data.name, rows, scored, test, params.evaluate)
    comparison |= {
        "views": {name: views[name] for name in students},
        "headline": headline(trained.about),
        "chosen": {name: trained.about[name]["chosen"] for name in students},
        "fused": {name: trained.about[name]["chosen"] for name in params.fused},
        "majority": majority_accuracy(
            trained.clips("train"), trained.clips("test"), params.data.heads, ACTION
        ),
        "ensemble_weights": weights,
        "data": describe(trained.all_clips, workspace.index, trained.shards, params.modalities),
    }
    tables = Tables(
        reliability=reliability_table(rows, scored, test, params.evaluate.bins),
        predictions=prediction_table(rows, test),
        curves=curves_table(trained.folders),
    )
    write(comparison, tables, test, students, workspace.reports)
    return comparison


def test_split(trained: Trained, workspace: Workspace) -> TestSplit:
    """What is known of the test clips before any model looks at them.

    Raises:
        UserError: there are none.
    """
    clips, data = trained.clips("test"), trained.params.data
    if not clips:
        raise UserError(
            "no clip is in the test split, so nothing can be evaluated",
            file=workspace.index / "clips.csv",
            remedy="give clips the split test in annotations.csv, or raise data.test_share in params.yaml",
        )
    return TestSplit(
        clip_ids=[clip.clip_id for clip in clips],
        classes=data.heads,
        labels=trained.labels("test"),
        slices={name: [clip.slices.get(name, "") for clip in clips] for name in data.slices},
    )


def _row(trained: Trained, name: str, predictions: Seeds) -> Model:
    about = trained.about[name]
    return Model(
        name=name,
        role=about["role"],
        method=about["method"],
        inference_modalities=about["inference_modalities"],
        params=about["params_count"],
        gmacs=about["gmacs"],
        views=trained.views[0] * trained.views[1],
        predictions=predictions,
    )


def _ensembles(
    trained: Trained, teachers: Mapping[str, Seeds]
) -> tuple[list[Model], dict[str, dict[str, float]]]:
    """The teachers mixed evenly and by validation loss, and the latter's weights: head → teacher → mean."""
    heads, unseen = list(trained.params.data.heads), trained.class_shares()
    asked = {seed: [seeds[seed] for seeds in teachers.values()] for seed in trained.params.seeds}
    held_out, labels = _held_out(trained, list(teachers)), trained.labels("val")

    def mixed(weights: Mapping[int, Mapping[str, Tensor]]) -> Seeds:
        found = {seed: mix(asked[seed], weights[seed], unseen) for seed in asked}
        return {
            seed: calibrate(found[seed], mix(held_out[seed], weights[seed], unseen), labels)
            if held_out
            else found[seed]
            for seed in found
        }

    even = {head: torch.ones(len(teachers)) for head in heads}
    rows = [_ensemble_row(trained, list(teachers), ENSEMBLE, "uniform", mixed(dict.fromkeys(asked, even)))]
    if not held_out:
        return rows, {}
    grid = trained.params.search.weights_temperature
    weights = {seed: weigh(said, labels, grid) for seed, said in held_out.items()}
    rows.append(_ensemble_row(trained, list(teachers), WEIGHTED_ENSEMBLE, "data_set", mixed(weights)))
    means = {head: torch.stack([found[head] for found in weights.values()]).mean(dim=0) for head in heads}
    return rows, {head: dict(zip(teachers, values.tolist(), strict=True)) for head, values in means.items()}


def _held_out(trained: Trained, teachers: Sequence[str]) -> dict[int, list[Prediction]]:
    """Seed → what each teacher says of the validation clips; empty where none of them sees any."""
    if not trained.clips("val"):
        return {}
    said = [trained.ask(name, "val") for name in teachers]
    if not any(prediction.seen.any() for seeds in said for prediction in seeds.values()):
        return {}
    return {seed: [seeds[seed] for seeds in said] for seed in trained.params.seeds}


def _ensemble_row(
    trained: Trained, teachers: Sequence[str], name: str, method: str, predictions: Seeds
) -> Model:
    members = [trained.about[teacher] for teacher in teachers]
    modalities = [modality for about in members for modality in about["inference_modalities"]]
    return Model(
        name=name,
        role="ensemble",
        method=method,
        inference_modalities=list(dict.fromkeys(modalities)),
        params=sum(about["params_count"] for about in members),
        gmacs=sum(about["gmacs"] for about in members),
        views=trained.views[0] * trained.views[1],
        predictions=predictions,
    )


def headline(about: Mapping[str, Mapping[str, Any]]) -> dict[str, str | None]:
    """The student that the report opens with, the best by validation NLL, and the baseline it is held to.

    Args:
        about: model → its teacher.json or student.json.
    """
    students = [name for name, facts in about.items() if facts["role"] == "student"]
    baselines = [name for name, facts in about.items() if facts["role"] == "baseline"]
    best = min(students, key=lambda name: _validation_nll(about[name]), default=None)
    return {"student": best, "baseline": next(iter(baselines), None)}


def _validation_nll(about: Mapping[str, Any]) -> float:
    """The NLL of the action on validation, mean over seeds."""
    return float(np.mean([heads[ACTION]["nll"] for heads in about["validation"].values()]))


def write(
    comparison: Mapping[str, Any], tables: Tables, test: TestSplit, students: Sequence[str], reports: Path
) -> None:
    """Write the whole report under `reports`; comparison.json, which others read, comes last."""
    drawings = draw(comparison, tables, test.classes)
    with new_folder(reports / "plots") as folder:
        tables.reliability.to_csv(folder / "reliability.csv", index=False)
        tables.curves.to_csv(folder / "curves.csv", index=False)
        views_table(comparison["views"]).to_csv(folder / "views.csv", index=False)
        (folder / "confusion").mkdir()
        for name in students:
            for head in test.classes:
                pairs = tables.predictions.query("name == @name and head == @head")[["true", "predicted"]]
                pairs.rename(columns={"true": "actual"}).to_csv(
                    folder / "confusion" / f"{name}-{head}.csv", index=False
                )
        (folder / "pictures").mkdir()
        for drawing in drawings:
            drawing.save(folder / "pictures" / f"{drawing.name}.png")
    with new_file(reports / "predictions.parquet") as temporary:
        tables.predictions.to_parquet(temporary, index=False)
    write_text(reports / "index.html", render(comparison, drawings))
    write_json(reports / "metrics.json", metrics(comparison))
    write_json(reports / "comparison.json", comparison)
