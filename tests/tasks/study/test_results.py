"""The result of a study over two workspaces whose reports the real writers made of made-up predictions."""

import json
import re
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tasks.clips import Clip, write_clips
from tasks.errors import UserError
from tasks.layout import Workspace
from tasks.params import Params, load
from tasks.report.comparison import compare, score_models, sweep
from tasks.report.predictions import Model, Prediction, TestSplit
from tasks.report.tables import prediction_table
from tasks.stores import tracking
from tasks.study import page, record
from tasks.study.cost import training_cost
from tasks.study.results import Finished, summarise
from tasks.study.spec import Study
from tasks.study.table import long_table, markdown

ROOT = Path(__file__).parents[3]
SEEDS = [0, 1, 2]
STUDY = Study(
    name="made-up",
    seeds=SEEDS,
    baseline="labels",
    data_sets={"kitchen": {"source": "clone"}, "digits": {"source": "clone"}},
    methods={"labels": {}, "kd": {}, "weak": {}},
)
EDGES = {
    "kitchen": {"labels": 0.0, "kd": 1.2, "weak": -0.6},
    "digits": {"labels": 0.0, "kd": 0.05, "weak": 0.0},
}
"""Data set → method → what it adds to the logit of the truth."""


def made(root: Path, name: str, classes: dict[str, list[str]], clips: int) -> Finished:
    """A workspace as the pipeline leaves it, as far as a study reads it."""
    base = load(ROOT / "params.yaml")
    baseline, student = base.students["baseline"], base.students["student"]
    ensemble = student.ensemble.model_copy(update={"teachers": ["audio"]})
    kd = student.model_copy(update={"ensemble": ensemble, "learns_from": "artifacts/teachings/audio"})
    params = base.model_copy(
        update={
            "data": base.data.model_copy(update={"heads": classes}),
            "seeds": SEEDS,
            "teachers": {"audio": base.teachers["audio"]},
            "students": {"labels": baseline, "kd": kd, "weak": kd},
            "evaluate": base.evaluate.model_copy(update={"bootstrap": 200}),
        }
    )
    workspace = Workspace(root)
    random = np.random.default_rng(clips)
    test = TestSplit(
        [f"clip{number}" for number in range(clips)],
        classes,
        {head: torch.from_numpy(random.integers(len(names), size=clips)) for head, names in classes.items()},
        {},
    )
    rows = [_model(method, test, random, edge) for method, edge in {**EDGES[name], "audio": 2.0}.items()]
    _write_report(workspace, params, test, rows)
    _write_models(workspace, params)
    train = [Clip(f"t{n}", "v.mp4", 0.0, 1.0, "g", "train", {}, {}) for n in range(30)]
    write_clips(workspace.index / "clips.csv", train, [], [])
    return Finished(name, workspace, params)


def _model(name: str, test: TestSplit, random: np.random.Generator, edge: float) -> Model:
    predictions = {}
    for seed in SEEDS:
        raw = {}
        for head, names in test.classes.items():
            logits = torch.from_numpy(random.normal(size=(len(test), len(names))))
            logits[torch.arange(len(test)), test.labels[head]] += 0.8 + edge
            raw[head] = 2 * logits
        predictions[seed] = Prediction(
            raw, {head: values / 2 for head, values in raw.items()}, torch.ones(len(test), dtype=torch.bool)
        )
    sees, role = (["audio"], "teacher") if name == "audio" else (["rgb"], "student")
    role = "baseline" if name == "labels" else role
    return Model(name, role, "kd", sees, 1_000_000, 0.5, 1, predictions)  # type: ignore[arg-type]


def _settled(place: int) -> dict[str, Any]:
    """What a student that was `auto` tells of a seed: its teachers' weights move by 0.1 from seed to seed."""
    return {
        "temperature": 1.5,
        "divergence": "reverse_kl",
        "distillation_weight": {"verb": 0.5, "noun": 0.0},
        "ground_truth_weight": 0.25,
        "unlabelled_weight": 1.0,
        "teacher_weights": {"verb": {"audio": 0.2 + place / 10, "boxes": 0.8 - place / 10}},
        "refusal": {"lesson": 1.25, "labels": 1.5, "error": 0.125, "refused": False},
    }


def _write_report(workspace: Workspace, params: Params, test: TestSplit, rows: Sequence[Model]) -> None:
    comparison = compare(params.data.name, rows, score_models(rows, test), test, params.evaluate)
    points = [(1, 1), (2, 1), (5, 1), (1, 3), (2, 3), (5, 3)]
    comparison |= {
        "views": {
            row.name: sweep(dict.fromkeys(points, row.predictions), test, params.evaluate) for row in rows
        },
        "chosen": {
            row.name: {
                str(seed): _settled(place) if row.name == "kd" else {} for place, seed in enumerate(SEEDS)
            }
            for row in rows
        },
        "data": {"splits": {"test": {"groups": 4}}},
    }
    workspace.reports.mkdir(parents=True)
    (workspace.reports / "comparison.json").write_text(json.dumps(comparison))
    prediction_table(rows, test).to_parquet(workspace.reports / "predictions.parquet", index=False)


def _write_models(workspace: Workspace, params: Params) -> None:
    folders = {workspace.student(name): ("student.json", 1) for name in params.students}
    folders |= {workspace.teacher(name): ("teacher.json", 3) for name in params.teachers}
    for folder, (file, members) in folders.items():
        folder.mkdir(parents=True)
        (folder / file).write_text(json.dumps({"members": members, "gmacs": 0.5 * members}))
        rows = [
            (seed, member, epoch, 2.0 + seed)
            for seed in SEEDS
            for member in range(members)
            for epoch in (0, 1)
        ]
        pd.DataFrame(rows, columns=["seed", "member", "epoch", "seconds"]).to_csv(
            folder / "curves.csv", index=False
        )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> list[Finished]:
    root = tmp_path_factory.mktemp("workspaces")
    return [
        made(
            root / "kitchen",
            "kitchen",
            {"verb": ["cut", "wash", "put down"], "noun": ["cup", "down cup"]},
            160,
        ),
        made(root / "digits", "digits", {"action": ["0", "1", "2"]}, 90),
    ]


@pytest.fixture(scope="module")
def study(finished: list[Finished]) -> dict[str, Any]:
    return summarise(STUDY, finished, {})


def rows_of(study: dict[str, Any], data_set: str) -> dict[str, dict[str, Any]]:
    data = next(data for data in study["data_sets"] if data["name"] == data_set)
    return {row["name"]: row for row in [*data["methods"], *data["references"]]}


def test_figures_agree_with_the_report_they_were_read_from(study: dict[str, Any], finished: list[Finished]):
    for data in finished:
        comparison = json.loads((data.workspace.reports / "comparison.json").read_text())
        found = rows_of(study, data.name)
        for row in comparison["rows"]:
            for head, figures in found[row["name"]]["heads"].items():
                for name, values in figures.items():
                    assert values["mean"] == pytest.approx(row["heads"][head][name], abs=1e-6)
                    assert values["sd"] == pytest.approx(row["heads"][head]["spread"][name], abs=1e-6)


def test_a_single_head_is_told_once_and_teachers_are_references(study: dict[str, Any]):
    kitchen, digits = study["data_sets"]
    assert kitchen["heads"] == ["action", "verb", "noun"]
    assert digits["heads"] == ["action"]
    assert [row["name"] for row in kitchen["methods"]] == ["labels", "kd", "weak"]
    assert [row["name"] for row in kitchen["references"]] == ["audio"]


def test_differences_are_paired_and_adjusted_within_a_data_set(study: dict[str, Any]):
    rows = rows_of(study, "kitchen")
    assert rows["labels"]["differences"] is None
    kd, weak = (rows[name]["differences"]["action"]["top1"] for name in ("kd", "weak"))
    ours, theirs = (rows[name]["heads"]["action"]["top1"]["per_seed"] for name in ("kd", "labels"))
    assert kd["per_seed"] == pytest.approx(np.subtract(ours, theirs))
    assert (kd["higher"], kd["lower"]) == (3, 0)
    low, high = kd["ci95"]
    assert 0 < low < kd["mean"] < high
    least, other = sorted([kd["p"], weak["p"]])
    assert sorted([kd["p_holm"], weak["p_holm"]]) == pytest.approx([2 * least, max(2 * least, other)])
    even = rows_of(study, "digits")["kd"]["differences"]["action"]["top1"]
    assert even["ci95"][0] < 0 < even["ci95"][1]


def test_the_cost_is_that_of_the_curves(study: dict[str, Any]):
    kd, audio = (rows_of(study, "kitchen")[name]["training"] for name in ("kd", "audio"))
    assert kd["seconds_per_seed"] == {"0": 4.0, "1": 6.0, "2": 8.0}
    assert kd["seconds"] == 18
    epochs = load(ROOT / "params.yaml").students["student"].training.epochs
    assert kd["clips"] == 3 * 30 * epochs
    assert kd["gmacs"] == pytest.approx(0.5 * kd["clips"])
    of_teacher = load(ROOT / "params.yaml").teachers["audio"].training.epochs
    assert audio["networks"] == 9
    assert audio["clips"] == pytest.approx(9 * 20 * of_teacher)  # each network without one fold of three
    assert audio["gmacs"] == pytest.approx(0.5 * audio["clips"])


def test_tables_for_a_paper_and_for_programs(study: dict[str, Any]):
    text = markdown(study)
    assert "| labels (baseline) |" in text
    kd = rows_of(study, "kitchen")["kd"]["heads"]["action"]["top1"]
    assert f"| kd | {100 * kd['mean']:.1f} ± {100 * kd['sd']:.1f} |" in text
    table = long_table(study)
    assert len(table) == 3 * 3 * 5 + 3 * 1 * 5  # methods × heads × figures
    row = table.query(
        "data_set == 'kitchen' and method == 'kd' and head == 'action' and figure == 'top1'"
    ).iloc[0]
    assert row["mean"] == pytest.approx(kd["mean"])
    assert row["seed_2"] == pytest.approx(kd["per_seed"][2])
    assert row["difference_higher"] == 3
    baselines = table[table["baseline"]]
    assert baselines["difference_mean"].isna().all()


def test_the_page_tells_what_auto_settled_on(study: dict[str, Any], tmp_path: Path):
    first = study["data_sets"][0]
    (row,) = (row for row in first["methods"] if row["name"] == "kd")
    expected = 0.2 + 0.1 * (len(SEEDS) - 1) / 2
    assert row["teacher_weights"]["verb"]["audio"] == pytest.approx(expected)
    page.write(study, tmp_path / "made-up")
    text = " ".join((tmp_path / "made-up" / "index.html").read_text().split())
    assert "τ 1.5, reverse_kl, λ of the teachers verb 0.5, noun 0, of the labels 0.25" in text
    assert f"verb audio {expected:.2f}, boxes {1 - expected:.2f}" in text
    told = "1.250 by the lesson, 1.500 by labels alone, with a standard error of 0.125 of the difference"
    assert f"{told}: the lesson stays" in text
    assert "With hints" not in text


def test_the_page_tells_of_refused_hints(study: dict[str, Any], tmp_path: Path):
    found = deepcopy(study)
    (row,) = (row for row in found["data_sets"][0]["methods"] if row["name"] == "kd")
    row["chosen"][str(SEEDS[0])]["refusal"]["hints"] = 1.625
    page.write(found, tmp_path / "made-up")
    text = (tmp_path / "made-up" / "index.html").read_text()
    assert "With hints NLL of the action on validation was 1.625; they were refused" in text


def test_the_folder_holds_a_page_that_loads_nothing_and_all_tables(study: dict[str, Any], tmp_path: Path):
    page.write({**study, "failed": {"lost": "distill@kd failed <script>"}}, tmp_path / "made-up")
    text = (tmp_path / "made-up" / "index.html").read_text()
    assert not re.search(r"<(script|link|img)\b|url\((?!#)|src=", text)
    assert "distill@kd failed &lt;script&gt;" in text
    assert re.search(r"kitchen, against labels, [^.]*0\.05[^.]*: more often right: kd \(\+", text)
    assert re.search(r"digits, against labels, [^.]*0\.05[^.]*: no method is told apart", text)
    assert text.count("<svg") == 8
    assert {file.name for file in (tmp_path / "made-up").iterdir()} == {
        "index.html", "study.json", "study.csv", "study.md", "plots",
    }  # fmt: skip
    assert len(list((tmp_path / "made-up" / "plots").glob("*.png"))) == 8
    assert json.loads((tmp_path / "made-up" / "study.json").read_text())["failed"]


def test_a_method_that_a_data_set_cannot_have_is_left_out(finished: list[Finished]):
    kitchen = finished[0]
    without = Finished("kitchen", kitchen.workspace, kitchen.params, {"weak": "no sound"})
    study = summarise(STUDY, [without], {})
    assert [row["name"] for row in study["data_sets"][0]["methods"]] == ["labels", "kd"]
    assert "Without weak: no sound." in markdown(study)


def test_the_page_of_several_data_sets_has_a_dash_for_a_method_that_one_cannot_have(
    finished: list[Finished], tmp_path: Path
):
    kitchen, *others = finished
    silent = Finished("kitchen", kitchen.workspace, kitchen.params, {"weak": "no sound"})
    page.write(summarise(STUDY, [silent, *others], {}), tmp_path / "made-up")
    text = (tmp_path / "made-up" / "index.html").read_text()
    assert text.count("<td>–</td><td>–</td>") == 1


def test_predictions_of_an_older_version_are_refused(finished: list[Finished], tmp_path: Path):
    old = made(tmp_path / "old", "digits", {"action": ["0", "1"]}, 12)
    file = old.workspace.reports / "predictions.parquet"
    pd.read_parquet(file).drop(columns="confidence_trained").to_parquet(file)
    with pytest.raises(UserError, match="holds no predictions of labels that a study can use"):
        summarise(STUDY, [old], {})


def test_branches_that_are_trained_beside_the_students_own_cost_too(tmp_path: Path):
    curves = tmp_path / "curves.csv"
    curves.write_text("seed,member,epoch,seconds\n0,0,0,1.0\n0,0,1,2.0\n")
    own, ear = {"members": 1, "gmacs": 0.5}, {"members": 3, "gmacs": 0.75}
    assert training_cost(curves, own, 2, 10)["gmacs"] == pytest.approx(20 * 0.5)
    assert training_cost(curves, own, 2, 10, [ear])["gmacs"] == pytest.approx(20 * (0.5 + 0.25))


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("UNDERSTUDY_WORK", "work")
    return Workspace(tmp_path)


def refuse(*_: Any) -> None:
    raise MlflowException("away")


def replaced(data: dict[str, Any], method: str) -> dict[str, Any]:
    """A data set of study.json in which one method has other settings."""
    rows = [
        row | {"settings": row["settings"] | {"new": 1}} if row["name"] == method else row
        for row in data["methods"]
    ]
    return data | {"methods": rows}


def test_mlflow_has_a_run_a_seed_and_recording_again_adds_none(
    study: dict[str, Any], clone: Workspace, monkeypatch: pytest.MonkeyPatch
):
    def runs() -> dict[str, Any]:
        experiment = client.get_experiment_by_name("study/made-up")
        return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}

    report = Path("reports/study/made-up")
    assert record.record(study, report, clone).endswith("study/made-up: 20 runs, 20 of them new")
    client = tracking.client(clone)
    first = runs()
    run, whole = first["kitchen/kd/1"], first["kitchen"]
    assert "mlflow.parentRunId" not in run.data.tags  # MLflow draws no chart of runs that are folded away
    assert run.data.tags["role"] == "method"
    assert first["kitchen/labels/1"].data.tags["role"] == "baseline"
    assert run.data.params["method.kind"] == "hints"
    assert run.data.params["teachers"] == "audio"
    assert run.data.params["chosen.temperature"] == "1.5"
    kd = rows_of(study, "kitchen")["kd"]
    assert run.data.metrics["action/top1"] == pytest.approx(kd["heads"]["action"]["top1"]["per_seed"][1])
    assert run.data.metrics["cost/training_seconds"] == 6.0
    assert run.info.status == "FINISHED"
    files = {file.path for file in client.list_artifacts(whole.info.run_id)}
    assert files == {"study.json", "study.md", "study.csv"}

    assert record.record(study, report, clone).endswith("20 runs, 0 of them new")
    assert {name: run.info.run_id for name, run in runs().items()} == {
        name: run.info.run_id for name, run in first.items()
    }
    # cut off between the new run and the end of the old one: what is left over goes the next time
    kitchen = [replaced(study["data_sets"][0], "kd"), *study["data_sets"][1:]]
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "delete_run", refuse)
        with pytest.raises(MlflowException):
            record.record({**study, "data_sets": kitchen}, report, clone)
    again = record.record({**study, "data_sets": kitchen}, report, clone)
    experiment = client.get_experiment_by_name("study/made-up")
    named = [run.info.run_name for run in client.search_runs([experiment.experiment_id])]
    assert sorted(named) == sorted(first), again
    # a data set that failed keeps its runs; one that the study no longer has loses them
    record.record({**study, "data_sets": study["data_sets"][:1], "failed": {"digits": "disk"}}, report, clone)
    assert runs().keys() == first.keys()
    record.record({**study, "data_sets": study["data_sets"][:1]}, report, clone)
    assert runs().keys() == {name for name in first if name.startswith("kitchen")}
