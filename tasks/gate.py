"""The gate: does the challenger replace the champion? Figures and thresholds in, a verdict with reasons out.

Pure logic. Where the two versions come from, and who is told, is `tasks.promotion`'s.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import binomtest

from models.metrics import Interval
from tasks.pairing import Paired, by_slice, paired
from tasks.params import Evaluate, Gate
from tasks.scorecard import Scorecard

Outcome = Literal["first", "passed", "failed", "not comparable"]
_LUCK = 0.025
"""Odds that more clips were won than lost by chance alone, at which a challenger still passes."""


@dataclass(frozen=True)
class Contender:
    """One version, as the gate sees it.

    Attributes:
        version: its number in the registry.
        refused: why it cannot be loaded, as a pickle among its files; empty where it can.
        scorecard: what it said of the test clips; None where nobody knows.
        unscored: why not; empty where it was.
        left_out: test clips that nobody was judged by, as they are of groups that this one learned from.
        size_mb: of its weights, 10⁶ bytes.
        latency_ms: of one clip through the network on one CPU thread, both versions measured in turn; None where it
            cannot be loaded.
        parity: what parity.json of its release holds; None where it has none.
    """

    version: str
    refused: str = ""
    scorecard: Scorecard | None = None
    unscored: str = ""
    left_out: int = 0
    size_mb: float = 0.0
    latency_ms: float | None = None
    parity: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Check:
    """One question of the gate.

    Attributes:
        name: of the question.
        passed: the answer.
        value: the number that was held against the limit; None where the question is not about a number.
        limit: from params.yaml; likewise.
        sentence: all of it in words.
    """

    name: str
    passed: bool
    value: float | None
    limit: float | None
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a version.

    Attributes:
        version: the one that was judged.
        against: the champion's; None for the first version.
        outcome: first: nothing to compare with, and the checks of the version alone passed.
        head: that was looked at.
        clips: test clips.
        checks: every question that could be asked.
    """

    version: str
    against: str | None
    outcome: Outcome
    head: str
    clips: int
    checks: Sequence[Check]

    @property
    def summary(self) -> str:
        """One sentence: the outcome, and the reasons where it is not a plain yes."""
        if self.outcome == "first":
            return f"version {self.version} is the first, there is no champion to compare it with"
        against = f" against version {self.against}" if self.against else ""
        if self.outcome == "passed":
            gain = next(check.sentence for check in self.checks if check.name == "top1")
            return f"version {self.version} passed{against}: {gain}"
        reasons = "; ".join(check.sentence for check in self.checks if not check.passed)
        word = "failed" if self.outcome == "failed" else "is not comparable"
        return f"version {self.version} {word}{against}: {reasons}"

    def as_json(self) -> dict[str, Any]:
        """JSON-able; `of_json` reads it."""
        return asdict(self) | {"checks": [asdict(check) for check in self.checks]}

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> "Verdict":
        """What `as_json` gave."""
        return cls(**{**values, "checks": [Check(**check) for check in values["checks"]]})


def judge(
    challenger: Contender, champion: Contender | None, gate: Gate, evaluate: Evaluate, head: str
) -> Verdict:
    """Hold the challenger against the thresholds and the champion.

    Args:
        champion: None for the first version.
        gate: thresholds.
        evaluate: bins of the ECE and resamples of the intervals.
        head: that is looked at.
    """
    checks = list(_alone(challenger, gate))
    clips = challenger.scorecard.clips if challenger.scorecard else 0
    against = champion.version if champion else None
    outcome: Outcome
    if champion is None:
        outcome = "first"
    else:
        same = _same_clips(challenger, champion, head)
        checks.append(same)
        outcome = "passed" if same.passed else "not comparable"
        if same.passed:
            checks += _against(challenger, champion, gate, evaluate, head)
    if outcome != "not comparable" and not all(check.passed for check in checks):
        outcome = "failed"
    return Verdict(challenger.version, against, outcome, head, clips, checks)


def markdown(verdict: Verdict) -> str:
    """The verdict for people: MLflow's version page, Prefect's UI."""
    lines = [
        f"**Gate: {verdict.outcome}.** {verdict.summary[0].upper()}{verdict.summary[1:]}.",
        "",
        f"Head {verdict.head}, {verdict.clips} test clips; intervals are of 95 %, paired by clip.",
        "",
        "| check | | |",
        "|---|---|---|",
    ]
    for check in verdict.checks:
        lines.append(f"| {check.name} | {'passed' if check.passed else '**failed**'} | {check.sentence} |")
    return "\n".join(lines)


def _alone(challenger: Contender, gate: Gate) -> Iterator[Check]:
    """What needs no champion."""
    refused = challenger.refused
    yield Check(
        "loads",
        not refused,
        None,
        None,
        refused or "loads from the registry with the hashes that were registered and no pickle",
    )
    size = challenger.size_mb
    yield Check(
        "size",
        size <= gate.max_size_mb,
        size,
        gate.max_size_mb,
        f"weights of {size:.1f} MB; at most {gate.max_size_mb:g}",
    )
    if challenger.parity is not None:
        yield _parity(challenger.parity)


def _parity(parity: Mapping[str, Any]) -> Check:
    apart = {form: float(found["max_abs_diff"]) for form, found in parity["forms"].items()}
    tolerance = float(parity["tolerance"])
    told = ", ".join(f"{form} {value:.1e}" for form, value in apart.items())
    sentence = f"exports differ from the network by at most {told}; tolerance {tolerance:.1e}"
    close = all(value <= tolerance for value in apart.values())  # what is no number is not
    return Check("export_parity", close, max(apart.values(), default=0.0), tolerance, sentence)


def _same_clips(challenger: Contender, champion: Contender, head: str) -> Check:
    """Whether both were scored on the same test clips with the same labels, in a head that both have."""
    ours, theirs = challenger.scorecard, champion.scorecard
    if ours is None or theirs is None:
        unscored = challenger if ours is None else champion
        reason = f"version {unscored.version} has no scores of the test clips: {unscored.unscored}"
    elif ours.digest != theirs.digest:
        reason = f"other test clips, labels or heads: {ours.clips} clips and {theirs.clips}"
    elif head not in ours.heads:
        reason = f"there is no head {head}; there is {', '.join(ours.heads)}"
    else:
        told = f"both were scored on the same {ours.clips} clips"
        if champion.left_out:
            told += f"; {champion.left_out} more are of groups that version {champion.version} learned from"
        return Check("same_test_clips", True, None, None, told)
    return Check("same_test_clips", False, None, None, reason)


def _against(
    challenger: Contender, champion: Contender, gate: Gate, evaluate: Evaluate, head: str
) -> Iterator[Check]:
    """What compares the two, on the same test clips."""
    assert challenger.scorecard is not None
    assert champion.scorecard is not None
    before, after = champion.scorecard.said(head), challenger.scorecard.said(head)
    figures = paired(before, after, evaluate)
    top1, (low, high) = figures["top1"], _interval(figures["top1"])
    yield Check(
        "top1",
        low > gate.min_top1_gain,
        low,
        gate.min_top1_gain,
        f"top-1 of the {head} {100 * top1.after:.1f} % against {100 * top1.before:.1f} %, "
        f"{100 * top1.change:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]; "
        f"the interval must lie above {100 * gate.min_top1_gain:+.1f}",
    )
    if gate.min_top1_gain >= 0:
        yield _more_won(before.top1, after.top1)
    for name, words, limit in (
        ("ece", "ECE after temperature", gate.max_ece_increase),
        ("nll", "NLL after temperature", gate.max_nll_increase),
    ):
        figure, (low, high) = figures[name], _interval(figures[name])
        yield Check(
            name,
            figure.change <= limit,
            figure.change,
            limit,
            f"{words} {figure.after:.3f} against {figure.before:.3f}, {figure.change:+.3f} "
            f"[{low:+.3f}, {high:+.3f}]; at most {limit:+.3f}",
        )
    parts = [part for part in by_slice(before, after) if part.clips >= gate.min_slice_clips]
    if parts:
        worst = parts[0]
        yield Check(
            "worst_slice",
            worst.change >= -gate.max_worst_slice_drop,
            worst.change,
            -gate.max_worst_slice_drop,
            f"worst of {len(parts)} slices {worst.name} ({worst.clips} clips): {100 * worst.change:+.1f} points; "
            f"at least {-100 * gate.max_worst_slice_drop:+.1f}",
        )
    if challenger.latency_ms is not None and champion.latency_ms is not None:
        ratio = challenger.latency_ms / champion.latency_ms
        yield Check(
            "latency",
            ratio <= gate.max_latency_ratio,
            ratio,
            gate.max_latency_ratio,
            f"{challenger.latency_ms:.1f} ms a clip against {champion.latency_ms:.1f} ms measured in turn, "
            f"{ratio:.2f} times; at most {gate.max_latency_ratio:g}",
        )


def _more_won(before: np.ndarray, after: np.ndarray) -> Check:
    """McNemar's exact test, one-sided: whether more clips were won than lost, beyond chance.

    The bootstrap does not see how few they are: of four that differ, all won, its interval leaves zero out, and of two
    networks alike one in sixteen pairs comes to that.
    """
    won, lost = int((after > before).sum()), int((after < before).sum())
    chance = float(binomtest(won, won + lost, alternative="greater").pvalue) if won + lost else 1.0
    return Check(
        "wins",
        chance <= _LUCK,
        chance,
        _LUCK,
        f"right where the champion is wrong on {won} clips, wrong where it is right on {lost}: p {chance:.3f}; "
        f"at most {_LUCK:g}",
    )


def _interval(both: Paired) -> Interval:
    assert both.interval is not None  # of paired figures there is one
    return both.interval
