"""What the figures say, in sentences, no better than measured: the student against baseline and teachers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.params import ENSEMBLE
from tasks.report import ACTION

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """The head of the report.

    Attributes:
        claim: one sentence on accuracy.
        certainty: whether the difference is more than chance, with its interval.
        likelihood: one sentence on the probability that is given to what happened, empty without a baseline.
        calibration: one sentence on calibration, empty without a baseline.
        temperature: a warning where the fitted temperature makes the probabilities worse, else empty.
        context: what teachers and ensemble reach, and at what cost; empty without teachers.
    """

    claim: str
    certainty: str = ""
    likelihood: str = ""
    calibration: str = ""
    temperature: str = ""
    context: str = ""


def verdict(comparison: Row) -> Verdict:
    """Judge the headline's student against its baseline and the teachers, on the action."""
    rows = {row["name"]: row for row in comparison["rows"]}
    student, baseline = (rows.get(comparison["headline"][role]) for role in ("student", "baseline"))
    own = student or baseline
    if own is None:
        return Verdict("No student was evaluated.")
    sees = _modalities(own)
    claim = f"With {sees} alone, {_named(own)} recognises {_percent(own)} of the test actions"
    temperature, context = _temperature(own), _context(own, comparison["rows"])
    if student is None or baseline is None:
        return Verdict(f"{claim}.", temperature=temperature, context=context)
    claim += f"; {_named(baseline)}, trained on labels alone, {_percent(baseline)}."
    found = next(d for d in comparison["differences"] if d["name"] == student["name"])["heads"][ACTION]
    return Verdict(
        claim,
        _certainty(found, comparison),
        _likelihood(found, student, baseline),
        _calibration(found, student, baseline),
        temperature,
        context,
    )


def _certainty(found: Row, comparison: Row) -> str:
    difference, (low, high) = 100 * found["top1"], (100 * bound for bound in found["top1_ci95"])
    seeds = found["top1_per_seed"]
    paired = f"paired over {comparison['clips']} clips"
    if len(seeds) > 1:
        paired += f" with these {len(seeds)} seeds, not over others"
    interval = f"95 % interval {low:+.1f} to {high:+.1f}, {paired}"
    ahead = sum(value > 0 for value in seeds.values())
    beside = f" The student is ahead in {ahead} of {len(seeds)} seeds." if len(seeds) > 1 else ""
    if low > 0:
        return f"The student is better by {difference:.1f} points ({interval}).{beside}"
    if high < 0:
        return f"The student is worse by {-difference:.1f} points ({interval}).{beside}"
    return (
        f"The difference is {difference:+.1f} points ({interval}): it may be chance, "
        f"this test split cannot tell the two apart.{beside}"
    )


def _likelihood(found: Row, student: Row, baseline: Row) -> str:
    words = ("a higher", "about the same", "a lower")
    word, figures = _lower_is_better(found, student, baseline, "nll_scaled", 2, words)
    return f"It gives the right action {word} probability: NLL {figures}."


def _calibration(found: Row, student: Row, baseline: Row) -> str:
    words = ("better calibrated", "calibrated about as well", "worse calibrated")
    word, figures = _lower_is_better(found, student, baseline, "ece_scaled", 3, words)
    return f"It is {word}: ECE {figures}."


def _temperature(own: Row) -> str:
    figures = own["heads"][ACTION]
    low, high = figures["nll_moved_ci95"]
    if low <= 0:
        return ""
    return (
        f"The temperature that ships with {_named(own)} makes its probabilities worse here: NLL "
        f"{figures['nll_scaled']:.2f} with it, {figures['nll']:.2f} without (95 % interval of the difference "
        f"{low:+.2f} to {high:+.2f}). It was fitted on validation, which is not like these clips: "
        "validate on groups as new to the networks as those of deployment."
    )


def _lower_is_better(
    found: Row, student: Row, baseline: Row, figure: str, digits: int, words: tuple[str, str, str]
) -> tuple[str, str]:
    """Of `words` the one for lower beyond chance, neither, or higher; and both figures with their interval."""
    ours, theirs = (row["heads"][ACTION][figure] for row in (student, baseline))
    low, high = found[f"{figure}_ci95"]
    interval = f"95 % interval of the difference {low:+.{digits}f} to {high:+.{digits}f}"
    word = words[0 if high < 0 else 2 if low > 0 else 1]
    return word, f"{ours:.{digits}f} against {theirs:.{digits}f} ({interval})"


def _context(own: Row, rows: list[Row]) -> str:
    teachers = [row for row in rows if row["role"] == "teacher"]
    if not teachers:
        return ""
    best = max(teachers, key=lambda row: row["heads"][ACTION]["top1"])
    text = f"The best teacher alone, {best['name']}, reaches {_percent(best)}"
    # by name: the better of the mixes would be a choice made on test
    mix = next((row for row in rows if row["name"] == ENSEMBLE), None)
    if mix is None:
        return text + "."
    cost = f", at {mix['gmacs'] / own['gmacs']:.1f} × the student's multiply-adds" if own["gmacs"] else ""
    return f"{text}; all teachers together ({_modalities(mix)}) {_percent(mix)}{cost}."


def _named(row: Row) -> str:
    return f"the {row['role']}" if row["name"] == row["role"] else f"the {row['role']} {row['name']}"


def _modalities(row: Row) -> str:
    return " + ".join("RGB" if name == "rgb" else name for name in row["inference_modalities"])


def _percent(row: Row) -> str:
    return f"{100 * row['heads'][ACTION]['top1']:.1f} %"
