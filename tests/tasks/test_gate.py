"""The gate's checks, one threshold at a time, on figures worked by hand."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from tasks.gate import Contender, Verdict, judge, markdown
from tasks.params import Evaluate, Gate
from tasks.scorecard import Scorecard

EVALUATE = Evaluate(clips=[1], crops=[1], bins=10, bootstrap=200)
GATE = Gate(
    min_top1_gain=0.0,
    max_ece_increase=0.02,
    max_nll_increase=0.05,
    max_worst_slice_drop=0.1,
    min_slice_clips=4,
    max_latency_ratio=1.5,
    max_size_mb=10,
    promote="manual",
)
CLIPS = 20


def card(right, confidence=0.9, prob_true=0.5, clips=CLIPS):
    """A scorecard of head action; `right`: the numbers of the clips that are. Every fourth clip is of night."""
    right = set(right)
    return Scorecard(
        pd.DataFrame(
            {
                "clip_id": [f"c{n:02}" for n in range(clips)],
                "head": "action",
                "true": "a",
                "predicted": ["a" if n in right else "b" for n in range(clips)],
                "confidence": confidence,
                "prob_true": prob_true,
                "slice:light": ["night" if n % 4 == 0 else "day" for n in range(clips)],
            }
        )
    )


def contender(version, scorecard, **changes):
    return replace(Contender(version, scorecard=scorecard, size_mb=5.0, latency_ms=10.0), **changes)


CHAMPION = contender("1", card(range(10), confidence=0.5))
BETTER = contender("2", card(range(18)))
LOSES_NIGHT = contender("2", card((n for n in range(20) if n % 4), confidence=0.75))


def asked(challenger, champion=CHAMPION, head="action", **thresholds):
    return judge(challenger, champion, GATE.model_copy(update=thresholds), EVALUATE, head)


def failed(verdict):
    return [check.name for check in verdict.checks if not check.passed]


def test_a_better_one_passes_every_check():
    verdict = asked(BETTER)
    assert (verdict.outcome, failed(verdict)) == ("passed", [])
    assert [check.name for check in verdict.checks] == [
        "loads", "size", "same_test_clips", "top1", "wins", "ece", "nll", "worst_slice", "latency",
    ]  # fmt: skip
    assert verdict.summary.startswith(
        "version 2 passed against version 1: top-1 of the action 90.0 % against 50.0 %, +40.0 points"
    )


def test_the_same_again_is_not_better():
    verdict = asked(replace(CHAMPION, version="2"))
    assert (verdict.outcome, failed(verdict)) == ("failed", ["top1", "wins"])
    assert asked(replace(CHAMPION, version="2"), min_top1_gain=-0.02).outcome == "passed"


@pytest.mark.parametrize(
    ("challenger", "check", "value"),
    [
        (contender("2", card(range(10, 18), confidence=0.4)), "top1", None),
        (contender("2", card(range(18), confidence=0.5)), "ece", 0.4),
        (contender("2", card(range(18), prob_true=0.25)), "nll", 0.6931),
        (LOSES_NIGHT, "worst_slice", -0.6),
        (replace(BETTER, latency_ms=16.0), "latency", 1.6),
        (replace(BETTER, size_mb=10.1), "size", 10.1),
        (replace(BETTER, refused="it holds x.pkl, which may be a pickle"), "loads", None),
        (
            replace(BETTER, parity={"forms": {"pt2": {"max_abs_diff": 1e-3}}, "tolerance": 1e-4}),
            "export_parity",
            1e-3,
        ),
    ],
)
def test_one_reason_is_enough_to_fail(challenger, check, value):
    verdict = asked(challenger)
    assert verdict.outcome == "failed"
    assert check in failed(verdict)
    found = next(each for each in verdict.checks if each.name == check)
    if value is not None:
        assert found.value == pytest.approx(value, abs=1e-4)
    assert found.sentence in verdict.summary
    assert f"| {check} | **failed** | {found.sentence} |" in markdown(verdict)


@pytest.mark.parametrize(("clips", "won", "passes"), [(1, 1, False), (136, 4, False), (136, 6, True)])
def test_a_few_clips_won_are_luck(clips, won, passes):
    """Four won of 136, none lost: the bootstrap's interval lies above 0, though in one case of 16 equals do as well."""
    base = max(0, clips // 2)
    champion = contender("1", card(range(base), clips=clips))
    challenger = contender("2", card(range(base + won), clips=clips))
    verdict = asked(challenger, champion, max_ece_increase=1.0)
    assert "top1" not in failed(verdict)
    assert ("wins" not in failed(verdict)) == passes
    assert f"on {won} clips, wrong where it is right on 0" in next(
        check.sentence for check in verdict.checks if check.name == "wins"
    )
    assert "wins" not in failed(asked(challenger, champion, min_top1_gain=-0.02, max_ece_increase=1.0))


def test_on_the_threshold_is_within_it():
    assert failed(asked(replace(BETTER, latency_ms=15.0, size_mb=10.0))) == []


def test_small_slices_are_not_looked_at():
    assert "worst_slice" not in failed(asked(LOSES_NIGHT, min_slice_clips=6))
    assert "worst_slice" not in [check.name for check in asked(LOSES_NIGHT, min_slice_clips=16).checks]


def test_exports_within_the_tolerance_pass():
    parity = {"forms": {"pt2": {"max_abs_diff": 1e-7}, "onnx": {"max_abs_diff": 1e-4}}, "tolerance": 1e-4}
    assert failed(asked(replace(BETTER, parity=parity))) == []


@pytest.mark.parametrize(
    ("challenger", "champion", "words"),
    [
        (contender("2", card(range(18), clips=19)), CHAMPION, "other test clips, labels or heads: 19 clips and 20"),
        (BETTER, contender("1", None, unscored="its release holds none"), "version 1 has no scores"),
        (contender("2", None, unscored="its release holds none"), CHAMPION, "version 2 has no scores"),
    ],
)  # fmt: skip
def test_other_clips_are_not_judged(challenger, champion, words):
    verdict = asked(challenger, champion)
    assert verdict.outcome == "not comparable"
    assert words in verdict.summary
    assert not {"top1", "ece", "nll"} & {check.name for check in verdict.checks}


def test_a_head_that_nobody_scored_is_not_judged():
    verdict = asked(BETTER, head="verb")
    assert verdict.outcome == "not comparable"
    assert "there is no head verb; there is action" in verdict.summary


def test_the_first_version_has_nobody_to_beat():
    verdict = asked(BETTER, champion=None)
    assert (verdict.outcome, verdict.against) == ("first", None)
    assert "first" in verdict.summary
    assert asked(replace(BETTER, size_mb=11.0), champion=None).outcome == "failed"


def test_a_verdict_survives_the_registry():
    verdict = asked(BETTER)
    assert Verdict.of_json(json.loads(json.dumps(verdict.as_json()))) == verdict


def test_an_export_that_gives_no_number_does_not_pass():
    parity = {
        "forms": {"pt2": {"max_abs_diff": 1e-6}, "onnx": {"max_abs_diff": float("nan")}},
        "tolerance": 1e-4,
    }
    assert failed(asked(replace(BETTER, parity=parity))) == ["export_parity"]
