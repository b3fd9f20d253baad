"""Two versions on the same test clips: what differs, and how sure that is. Pure arithmetic."""

from dataclasses import dataclass

import numpy as np

from models.metrics import Interval, bootstrap_difference
from tasks.params import Evaluate
from tasks.report.ece_interval import ece_per_seed, resampled_ece
from tasks.scorecard import Said

_RESAMPLING_SEED = 0


@dataclass(frozen=True)
class Paired:
    """One figure of two versions.

    Attributes:
        before, after: of the first and of the second version.
        interval: 95 % interval of after − before, clips resampled for both alike; None where the two were not scored
            on the same clips.
    """

    before: float
    after: float
    interval: Interval | None

    @property
    def change(self) -> float:
        """after − before."""
        return self.after - self.before


@dataclass(frozen=True)
class Part:
    """A part of the test clips: a class, or a slice.

    Attributes:
        name: of it.
        clips: how many.
        before, after: top-1 of the first and of the second version there.
    """

    name: str
    clips: int
    before: float
    after: float

    @property
    def change(self) -> float:
        """after − before."""
        return self.after - self.before


def paired(first: Said, second: Said, evaluate: Evaluate) -> dict[str, Paired]:
    """top1, ece and nll of two versions on the same clips, all after the shipped temperature.

    Raises:
        ValueError: not the same clips.
    """
    if not np.array_equal(first.true, second.true):
        raise ValueError("paired figures need the same clips with the same labels")
    return {
        "top1": _mean(first.top1, second.top1, evaluate),
        "ece": _ece(first, second, evaluate),
        "nll": _mean(first.nll, second.nll, evaluate),
    }


def unpaired(first: Said, second: Said, evaluate: Evaluate) -> dict[str, Paired]:
    """The same figures of two versions that were scored on different clips."""
    return {
        "top1": Paired(float(first.top1.mean()), float(second.top1.mean()), None),
        "ece": Paired(_measured_ece(first, evaluate), _measured_ece(second, evaluate), None),
        "nll": Paired(float(first.nll.mean()), float(second.nll.mean()), None),
    }


def by_class(first: Said, second: Said) -> list[Part]:
    """Every class among the clips, the largest loss first."""
    return sorted(_parts(first.true, first, second), key=lambda part: (part.change, part.name))


def by_slice(first: Said, second: Said) -> list[Part]:
    """Every value of every slice column, named `column: value`, the largest loss first."""
    found = [
        Part(f"{column}: {part.name or 'none'}", part.clips, part.before, part.after)
        for column, values in second.slices.items()
        for part in _parts(values, first, second)
    ]
    return sorted(found, key=lambda part: (part.change, part.name))


def _parts(values: np.ndarray, first: Said, second: Said) -> list[Part]:
    return [
        Part(str(value), int(here.sum()), float(first.top1[here].mean()), float(second.top1[here].mean()))
        for value in np.unique(values.astype(str))
        if (here := values.astype(str) == value).any()
    ]


def _mean(first: np.ndarray, second: np.ndarray, evaluate: Evaluate) -> Paired:
    found = bootstrap_difference(second, first, evaluate.bootstrap, _RESAMPLING_SEED)
    return Paired(float(first.mean()), float(second.mean()), found.interval)


def _ece(first: Said, second: Said, evaluate: Evaluate) -> Paired:
    before, after = (
        resampled_ece(
            said.confidence[None], said.top1[None], evaluate.bins, evaluate.bootstrap, _RESAMPLING_SEED
        )
        for said in (first, second)
    )
    low, high = np.quantile(after - before, [0.025, 0.975])
    interval = Interval(float(low), float(high))
    return Paired(_measured_ece(first, evaluate), _measured_ece(second, evaluate), interval)


def _measured_ece(said: Said, evaluate: Evaluate) -> float:
    return float(ece_per_seed(said.confidence[None], said.top1[None], evaluate.bins)[0])
