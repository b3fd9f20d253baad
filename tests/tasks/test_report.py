"""The report's arithmetic on values worked by hand, its sentences, table and page."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from tasks.clips import Clip
from tasks.params import Evaluate
from tasks.report.comparison import compare, metrics, score_models, sweep
from tasks.report.data import majority_accuracy
from tasks.report.ece_interval import ece_per_seed, resampled_ece
from tasks.report.figures import draw
from tasks.report.mixing import calibrate, mix, weigh
from tasks.report.nesting import nesting, view_places
from tasks.report.page import render
from tasks.report.predictions import Model, Prediction, TestSplit, score_head
from tasks.report.table import comparison_table
from tasks.report.tables import Tables, prediction_table, reliability_table
from tasks.report.verdict import verdict
from tasks.views import View, Views
from tasks.views import evaluation_views as interleaved_views

EVALUATE = Evaluate(clips=[1], crops=[1], bins=15, bootstrap=200)
HEADS = {"verb": ["cut", "wash"], "noun": ["cup", "pan", "pot"]}


def split(labels: Mapping[str, Sequence[int]], classes: Mapping[str, Sequence[str]] = HEADS) -> TestSplit:
    """A test split with these labels."""
    count = len(next(iter(labels.values())))
    return TestSplit(
        clip_ids=[f"clip{number}" for number in range(count)],
        classes=classes,
        labels={head: torch.tensor(values) for head, values in labels.items()},
        slices={},
    )


def said(temperature: float = 1.0, **probs: Sequence[Sequence[float]]) -> Prediction:
    """A prediction with these calibrated probabilities a head, seen on every clip."""
    logits = {head: torch.tensor(values).log() for head, values in probs.items()}
    count = len(next(iter(logits.values())))
    raw = {head: values * temperature for head, values in logits.items()}
    return Prediction(raw, logits, torch.ones(count, dtype=torch.bool))


def model(
    name: str, role: Any, predictions: Mapping[int, Prediction], sees: Sequence[str] = ("rgb",)
) -> Model:
    """A row of no particular cost."""
    return Model(name, role, "supervised", sees, 1_000_000, 0.5, 1, predictions)


FOUR = split({"verb": [0, 0, 1, 1], "noun": [0, 1, 2, 0]})
# Verb right on clips 0, 1, 3; noun right on clips 0, 2, 3: both on 0 and 3.
GOOD = said(
    verb=[[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]],
    noun=[[0.8, 0.1, 0.1], [0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.5, 0.3, 0.2]],
)


def test_action_is_right_when_all_heads_are():
    scores = score_head({0: GOOD}, FOUR, "action")
    assert scores.top1.tolist() == [[1, 0, 0, 1]]
    assert scores.confidence_scaled[0] == pytest.approx([0.72, 0.3, 0.49, 0.4], rel=1e-5)
    assert scores.nll_scaled[0] == pytest.approx(-np.log([0.72, 0.15, 0.21, 0.4]), rel=1e-5)


def test_a_single_head_named_action_is_the_action():
    test = split({"action": [0, 1]}, {"action": ["a", "b"]})
    assert test.heads == ["action"]
    assert score_head({0: said(action=[[0.9, 0.1], [0.9, 0.1]])}, test, "action").top1.tolist() == [[1, 0]]


def test_means_over_seeds_and_spread_beside_them():
    worse = said(verb=[[0.4, 0.6]] * 4, noun=[[0.8, 0.1, 0.1]] * 4)  # verb right on 2, 3; noun on 0, 3
    rows = [model("student", "student", {0: GOOD, 1: worse})]
    comparison = compare("four", rows, score_models(rows, FOUR), FOUR, EVALUATE)
    figures = comparison["rows"][0]["heads"]
    assert comparison["seeds"] == [0, 1]
    assert figures["action"]["top1"] == pytest.approx((0.5 + 0.25) / 2)
    assert figures["action"]["spread"]["top1"] == pytest.approx(0.25 / np.sqrt(2))
    assert figures["verb"]["top1"] == pytest.approx((0.75 + 0.5) / 2)
    low, high = figures["action"]["top1_ci95"]
    assert 0 <= low < figures["action"]["top1"] < high <= 1


def test_a_single_seed_has_no_spread():
    rows = [model("student", "student", {3: GOOD})]
    comparison = compare("four", rows, score_models(rows, FOUR), FOUR, EVALUATE)
    assert comparison["rows"][0]["heads"]["action"]["spread"]["top1"] is None


def test_ece_before_and_after_the_temperature():
    test = split({"action": [0, 1]}, {"action": ["a", "b"]})
    hot = said(temperature=2.0, action=[[0.75, 0.25], [0.75, 0.25]])  # one of two right
    rows = [model("student", "student", {0: hot})]
    figures = compare("two", rows, score_models(rows, test), test, EVALUATE)["rows"][0]["heads"]["action"]
    assert figures["ece_scaled"] == pytest.approx(0.25)
    assert figures["ece"] == pytest.approx(0.9 - 0.5)  # logits doubled: 0.75² / (0.75² + 0.25²) = 0.9
    assert figures["nll_scaled"] == pytest.approx((-np.log(0.75) - np.log(0.25)) / 2)
    assert figures["brier_scaled"] == pytest.approx((2 * 0.25**2 + 2 * 0.75**2) / 2)


def test_difference_of_a_model_and_itself_is_zero():
    rows = [model("baseline", "baseline", {0: GOOD}), model("student", "student", {0: GOOD})]
    found = compare("four", rows, score_models(rows, FOUR), FOUR, EVALUATE)["differences"]
    assert [(entry["name"], entry["against"]) for entry in found] == [("student", "baseline")]
    action = found[0]["heads"]["action"]
    assert action["top1"] == 0
    assert action["top1_ci95"] == [0, 0]
    assert action["top1_per_seed"] == {"0": 0}
    assert action["ece_scaled"] == 0
    assert action["ece_scaled_ci95"] == [0, 0]


def test_difference_counts_the_clips_that_changed():
    blind = said(verb=[[0.9, 0.1]] * 4, noun=[[0.8, 0.1, 0.1]] * 4)  # right on clip 0 alone
    rows = [
        model("baseline", "baseline", {0: blind, 1: blind}),
        model("student", "student", {0: GOOD, 1: blind}),
    ]
    action = compare("four", rows, score_models(rows, FOUR), FOUR, EVALUATE)["differences"][0]["heads"][
        "action"
    ]
    assert action["top1"] == pytest.approx(0.125)
    assert action["top1_per_seed"] == {"0": 0.25, "1": 0.0}


def test_classes_without_test_clips_are_left_out():
    test = split({"verb": [0, 0], "noun": [2, 2]})
    rows = [model("student", "student", {0: said(verb=[[0.9, 0.1]] * 2, noun=[[0.8, 0.1, 0.1]] * 2)})]
    classes = compare("two", rows, score_models(rows, test), test, EVALUATE)["classes"]
    assert classes == {
        "verb": {"cut": {"clips": 2, "top1": {"student": 1.0}}},
        "noun": {"pot": {"clips": 2, "top1": {"student": 0.0}}},
    }


def test_slices_divide_the_clips():
    test = TestSplit(FOUR.clip_ids, FOUR.classes, FOUR.labels, {"light": ["day", "dim", "dim", ""]})
    rows = [model("student", "student", {0: GOOD})]
    light = compare("four", rows, score_models(rows, test), test, EVALUATE)["slices"]["light"]
    assert {value: (entry["clips"], entry["top1"]["student"]) for value, entry in light.items()} == {
        "": (1, 1.0),
        "day": (1, 1.0),
        "dim": (2, 0.0),
    }


def test_one_clip_is_enough():
    test = split({"verb": [1], "noun": [0]})
    rows = [
        model(name, name, {0: said(verb=[[0.2, 0.8]], noun=[[0.6, 0.2, 0.2]])})
        for name in ("baseline", "student")
    ]
    comparison = compare("one", rows, score_models(rows, test), test, EVALUATE)
    figures = comparison["rows"][1]["heads"]["action"]
    assert figures["top1"] == 1
    assert figures["top1_ci95"] == [1, 1]
    assert figures["ece_scaled_ci95"] == pytest.approx([0.52, 0.52])
    json.dumps(comparison, allow_nan=False)


def test_predictions_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="seed 0, head noun"):
        score_head({0: said(verb=[[0.5, 0.5]] * 4, noun=[[0.5, 0.5]] * 4)}, FOUR, "action")


def test_resampled_ece_lies_around_the_measured_one():
    draw = np.random.default_rng(0)
    confidence = draw.uniform(0.3, 1, (2, 300))
    correct = (draw.random((2, 300)) < confidence - 0.1).astype(float)
    measured = ece_per_seed(confidence, correct, 15).mean()
    draws = resampled_ece(confidence, correct, 15, 500, seed=0)
    assert draws.mean() == pytest.approx(measured, abs=1e-6)
    assert draws.std() > 0.005


def test_resampled_ece_draws_the_same_clips_for_every_model():
    confidence, correct = np.full((1, 50), 0.5), (np.arange(50) % 2 == 0).astype(float)[None]
    once, again = (resampled_ece(confidence, correct, 15, 20, seed=4) for _ in range(2))
    assert (once == again).all()


def test_an_ensemble_hears_those_that_see_the_clip():
    first = Prediction({}, {"verb": torch.tensor([[0.8, 0.2]] * 3).log()}, torch.tensor([True, True, False]))
    second = Prediction(
        {}, {"verb": torch.tensor([[0.2, 0.8]] * 3).log()}, torch.tensor([True, False, False])
    )
    found = mix([first, second], {"verb": torch.ones(2)}, {"verb": torch.tensor([0.7, 0.3]).log()})
    expected = torch.tensor([[0.5, 0.5], [0.8, 0.2], [0.7, 0.3]])
    torch.testing.assert_close(found.calibrated["verb"].exp(), expected)
    assert found.seen.tolist() == [True, True, False]


def test_a_cautious_mix_is_calibrated_on_held_out_clips():
    cautious = said(verb=[[0.6, 0.4]] * 4000)
    right = {"verb": torch.tensor([0, 0, 0, 1]).repeat(1000)}
    found = calibrate(cautious, cautious, right)
    assert found.calibrated["verb"].exp()[0].tolist() == pytest.approx([0.75, 0.25], abs=1e-3)
    assert found.raw is cautious.raw


def test_the_better_teacher_weighs_more():
    right, wrong = said(verb=[[0.9, 0.1]] * 2), said(verb=[[0.3, 0.7]] * 2)
    weights = weigh([right, wrong], {"verb": torch.tensor([0, 0])}, [1.0])["verb"]
    assert weights.tolist() == pytest.approx([0.75, 0.25])  # softmax of log 0.9 and log 0.3


@pytest.mark.parametrize(
    ("counts", "sources"),
    [([1, 2, 5], {5: [5, 1], 2: [2]}), ([1], {1: [1]}), ([2, 6, 3], {6: [6, 2], 3: [3]})],
)
def test_nesting(counts: list[int], sources: dict[int, list[int]]):
    assert nesting(counts) == sources


@pytest.mark.parametrize(("source", "clips"), [(5, 1), (3, 1), (6, 2), (4, 4)])
@pytest.mark.parametrize("crops", [1, 3])
def test_nested_views_are_those_of_the_clip(views: Views, source: int, clips: int, crops: int):
    clip = Clip("a", "a.mp4", 1.0, 5.0, "g", "test", {}, {})
    many = interleaved_views(clip, views, source, 3)
    few = interleaved_views(clip, views, clips, crops)
    for place, view in zip(view_places(source, 3, clips, crops), few, strict=True):
        assert_same(many[place], view)


def assert_same(one: View, other: View):
    """Views that differ by rounding alone."""
    assert one.times_s == pytest.approx(other.times_s)
    assert (one.across, one.down, one.zoom) == pytest.approx((other.across, other.down, other.zoom))


@pytest.fixture
def views() -> Views:
    """Views of four frames."""
    jitter = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    return Views.model_validate(
        {
            "frames": 4,
            "size": 8,
            "per_clip": 1,
            "zoom": (1, 1),
            "test_zoom": 1,
            "flip": False,
            "jitter": jitter,
        }
    )


@pytest.mark.parametrize(("source", "most", "clips", "crops"), [(5, 3, 2, 1), (2, 3, 1, 1), (1, 1, 1, 3)])
def test_views_that_do_not_nest_are_refused(source: int, most: int, clips: int, crops: int):
    with pytest.raises(ValueError, match="not among"):
        view_places(source, most, clips, crops)


def test_majority_counts_tuples_for_the_action():
    def clip(verb: str, noun: str) -> Clip:
        return Clip("", "", 0, 1, "", "train", {"verb": verb, "noun": noun}, {})

    train = [
        clip("cut", "pan"),
        clip("cut", "pan"),
        clip("wash", "cup"),
        clip("wash", "pot"),
        clip("wash", "cup"),
    ]
    test = [clip("wash", "pan"), clip("cut", "pan")]
    assert majority_accuracy(train, test, HEADS, "action") == {"action": 0.5, "verb": 0.5, "noun": 0.0}


def test_every_prediction_is_kept():
    table = prediction_table([model("student", "student", {7: GOOD})], FOUR)
    action = table[table["head"] == "action"].set_index("clip_id")
    assert len(table) == 4 * 3
    assert action.loc["clip2", "true"] == "wash pot"
    assert action.loc["clip2", "predicted"] == "cut pot"
    assert action.loc["clip2", "confidence"] == pytest.approx(0.49)
    assert action.loc["clip2", "prob_true"] == pytest.approx(0.21)
    assert set(action["seed"]) == {7}


def full(
    student: Prediction, baseline: Prediction, test: TestSplit, extra: Sequence[Model] = ()
) -> dict[str, Any]:
    """A comparison with everything that the page shows."""
    rows = [*extra, model("baseline", "baseline", {0: baseline}), model("student", "student", {0: student})]
    return full_of(rows, test)


def full_of(rows: Sequence[Model], test: TestSplit) -> dict[str, Any]:
    """A comparison of these rows with everything that the page shows."""
    trained = [row for row in rows if row.role in ("student", "baseline")]
    missing = {
        "splits": {
            s: {"clips": 4, "groups": 1, "videos": 1, "hours": 0.1, "missing": {"rgb": 0}}
            for s in ("train", "val", "test")
        }
    }
    return compare("kitchen <&> co", rows, score_models(rows, test), test, EVALUATE) | {
        "views": {row.name: sweep({(1, 1): row.predictions}, test, EVALUATE) for row in trained},
        "headline": {
            role: next((row.name for row in rows if row.role == role), None)
            for role in ("student", "baseline")
        },
        "fused": {},
        "chosen": {row.name: {"0": {}} for row in trained},
        "majority": dict.fromkeys(test.heads, 0.3),
        "ensemble_weights": {},
        "data": missing | {"quarantined": 0, "problems": {"rgb": {}}},
    }


ALWAYS = split({"verb": [0] * 8, "noun": [0] * 8})
RIGHT = said(verb=[[0.9, 0.1]] * 8, noun=[[0.8, 0.1, 0.1]] * 8)
WRONG = said(verb=[[0.1, 0.9]] * 8, noun=[[0.8, 0.1, 0.1]] * 8)


def test_verdict_of_a_better_student():
    found = verdict(full(RIGHT, WRONG, ALWAYS))
    assert found.claim == (
        "With RGB alone, the student recognises 100.0 % of the test actions; "
        "the baseline, trained on labels alone, 0.0 %."
    )
    assert found.certainty.startswith("The student is better by 100.0 points")
    assert found.likelihood.startswith(
        "It gives the right action a higher probability: NLL 0.33 against 2.53 ("
    )
    assert found.calibration.startswith("It is better calibrated: ECE 0.280 against 0.720")


def test_verdict_of_a_worse_student():
    assert verdict(full(WRONG, RIGHT, ALWAYS)).certainty.startswith("The student is worse by 100.0 points")


def test_verdict_admits_what_may_be_chance():
    blind = said(verb=[[0.9, 0.1]] * 4, noun=[[0.8, 0.1, 0.1]] * 4)
    found = verdict(full(GOOD, blind, FOUR))
    assert "it may be chance" in found.certainty
    assert "+25.0 points" in found.certainty


@pytest.mark.parametrize(("temperature", "warned"), [(0.5, True), (2.0, False)])
def test_verdict_warns_of_a_temperature_that_does_not_hold(temperature: float, warned: bool):
    # Wrong on every clip and surer by temperatures below one, so that only the modest one helps.
    student = said(temperature, verb=[[0.1, 0.9]] * 8, noun=[[0.8, 0.1, 0.1]] * 8)
    comparison = full(student, student, ALWAYS)
    figures = comparison["rows"][-1]["heads"]["action"]
    moved = figures["nll_scaled"] - figures["nll"]
    assert figures["nll_moved_ci95"] == pytest.approx([moved, moved])  # all clips are alike
    found = verdict(comparison).temperature
    assert ("makes its probabilities worse" in found) is warned
    assert bool(found) is warned


def test_verdict_names_the_best_teacher_and_the_cost_of_all():
    teachers = [
        model("flow", "teacher", {0: RIGHT}, ["flow"]),
        model("audio", "teacher", {0: WRONG}, ["audio"]),
    ]
    together = model("ensemble", "ensemble", {0: WRONG}, ["flow", "audio"])
    better_on_test = model("ensemble-weighted", "ensemble", {0: RIGHT}, ["flow", "audio"])
    found = verdict(full(WRONG, WRONG, ALWAYS, [*teachers, together, better_on_test]))
    assert found.context == (
        "The best teacher alone, flow, reaches 100.0 %; all teachers together (flow + audio) 0.0 %, "
        "at 1.0 × the student's multiply-adds."
    )


def test_verdict_without_a_student():
    rows = [model("baseline", "baseline", {0: RIGHT})]
    assert (
        verdict(full_of(rows, ALWAYS)).claim
        == "With RGB alone, the baseline recognises 100.0 % of the test actions."
    )


def tables_of(rows: Sequence[Model], test: TestSplit) -> Tables:
    """The long tables of these rows, with a training of two epochs each."""
    curves = [
        {"name": row.name, "seed": 0, "member": 0, "epoch": epoch, "val_top1": 0.1 * epoch}
        for row in rows
        for epoch in range(2)
    ]
    reliability = reliability_table(rows, score_models(rows, test), test, EVALUATE.bins)
    return Tables(reliability, prediction_table(rows, test), pd.DataFrame(curves))


@pytest.fixture(scope="module")
def page() -> str:
    """The page of a student and a baseline on four clips, with a hostile class name and data set name."""
    classes = {"verb": ["<script>alert(1)</script>", "pay $_$ x"], "noun": HEADS["noun"]}
    test = split({"verb": [0, 0, 1, 1], "noun": [0, 1, 2, 0]}, classes)
    rows = [model("baseline", "baseline", {0: GOOD}), model("student", "student", {0: GOOD})]
    comparison = full_of(rows, test)
    return render(comparison, draw(comparison, tables_of(rows, test), classes))


def test_page_loads_nothing(page: str):
    assert not re.search(r"<(script|link|img|iframe|object)\b", page)
    assert not re.search(r"(src|href)=\"(?!#)(?!data/index\.html)", page)
    assert "url(http" not in page
    assert "@import" not in page


def test_page_escapes_names_from_the_data(page: str):
    assert "<script" not in page
    assert "kitchen &lt;&amp;&gt; co" in page
    assert "&lt;script&gt;alert(1)" in page
    assert re.search(r"<text[^>]*>pay \$_\$ x</text>", page)  # in the picture: no formula


def test_page_takes_the_readers_colours(page: str):
    assert "prefers-color-scheme: dark" in page
    assert "currentColor" in page


def test_the_same_figures_make_the_same_page(page: str):
    classes = {"verb": ["<script>alert(1)</script>", "pay $_$ x"], "noun": HEADS["noun"]}
    test = split({"verb": [0, 0, 1, 1], "noun": [0, 1, 2, 0]}, classes)
    rows = [model("baseline", "baseline", {0: GOOD}), model("student", "student", {0: GOOD})]
    comparison = full_of(rows, test)
    assert render(comparison, draw(comparison, tables_of(rows, test), classes)) == page


def test_page_of_one_head_one_clip_and_a_baseline_alone():
    test = split({"action": [0]}, {"action": ["a", "b"]})
    rows = [model("baseline", "baseline", {0: said(action=[[0.9, 0.1]])})]
    comparison = full_of(rows, test)
    found = render(comparison, draw(comparison, tables_of(rows, test), test.classes))
    assert "Each head" not in found
    assert "100.0 [" not in found


@pytest.mark.parametrize("width", [80, 140])
def test_table_fits_the_terminal(width: int):
    teachers = [model("flow", "teacher", {0: RIGHT}, ["flow"]), model("detections", "teacher", {0: RIGHT})]
    together = model("ensemble-weighted", "ensemble", {0: RIGHT}, ["rgb", "flow", "detections", "audio"])
    comparison = full(RIGHT, WRONG, ALWAYS, [*teachers, together])
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(comparison_table(comparison, width))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert len([line for line in text.splitlines() if "│" in line]) == 5
    assert "100.0" in text


def test_metrics_are_short():
    found = metrics(full(RIGHT, WRONG, ALWAYS))
    assert found["student"] == {"action": {"top1": 1.0, "ece_scaled": pytest.approx(0.28)}}
    assert list(found) == ["baseline", "student"]
