"""How sure the figures of a study are: bootstrap over clips × seeds, paired tests, Holm's correction.

Pure arithmetic on arrays (seeds, clips). Every function that resamples draws the same clips and seeds for the same
shape and seed, so figures of two methods may be subtracted draw by draw.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from models.metrics import two_sided_p
from tasks.report.ece_interval import ece_per_seed, multinomial_counts, signed_gaps

_VALUES_AT_ONCE = 4_000_000  # 32 MB
_RESAMPLING_SEED = 0

Array = np.ndarray


@dataclass(frozen=True)
class Figure:
    """One figure of one method in one head.

    Attributes:
        per_seed: (seeds,), its value for every seed.
        draws: (samples,), mean over seeds in data sets resampled over clips and seeds.
    """

    per_seed: Array
    draws: Array

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(self.per_seed.mean())

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds (n − 1); None for one seed."""
        return float(self.per_seed.std(ddof=1)) if len(self.per_seed) > 1 else None

    @property
    def interval(self) -> list[float]:
        """95 % percentile interval of the draws."""
        return [float(bound) for bound in np.quantile(self.draws, [0.025, 0.975])]


@dataclass(frozen=True)
class Paired:
    """A method minus the baseline, in one figure of one head.

    Attributes:
        figure: the difference.
        p: two-sided, of the bootstrap over clips × seeds: how rarely a resample does not have its sign.
        t, t_p: of the paired t-test over seeds; None with fewer than two seeds, or where all differ by the same.
        higher, lower: seeds in which the method's figure is the higher or the lower one.
        sign_p: two-sided sign test over seeds, ties left out.
    """

    figure: Figure
    p: float
    t: float | None
    t_p: float | None
    higher: int
    lower: int
    sign_p: float


def mean_figure(values: Array, samples: int) -> Figure:
    """The figure that is a mean over clips, as accuracy, from its values (seeds, clips)."""
    draws = [((clips @ values.T) * seeds).sum(axis=1) for clips, seeds in _resamples(values.shape, samples)]
    return Figure(values.mean(axis=1), np.concatenate(draws))


def ece_figure(confidence: Array, correct: Array, bins: int, samples: int) -> Figure:
    """The expected calibration error from confidence and correctness (seeds, clips).

    Resampling repeats clips, which makes bins noisier and the ECE larger than that of the split itself. The mean of
    that surplus is taken off every seed, so that draws lie around the measured ECE; they are at least 0.
    """
    return figure_of_gaps(
        signed_gaps(confidence, correct, bins), ece_per_seed(confidence, correct, bins), samples
    )


def figure_of_gaps(gaps: Array, per_seed: Array, samples: int) -> Figure:
    """The same from signed gaps, so that what is resampled may be other than clips.

    Args:
        gaps: (seeds, units, bins), see `signed_gaps`: of clips, or their means over the clips of a participant.
        per_seed: (seeds,), the ECE of each seed.
        samples: number of resampled data sets.
    """
    found, weights = [], []
    for clips, seeds in _resamples(gaps.shape[:2], samples):
        found.append(np.abs(clips[None] @ gaps).sum(axis=2).T)
        weights.append(seeds)
    drawn = np.concatenate(found)
    centred = np.clip(drawn - drawn.mean(axis=0) + per_seed, 0, None)
    return Figure(per_seed, np.clip((centred * np.concatenate(weights)).sum(axis=1), 0, None))


def _resamples(shape: tuple[int, ...], samples: int) -> Iterator[tuple[Array, Array]]:
    """Weights of clips (draws, clips) and of seeds (draws, seeds), each row adding up to 1, in portions.

    Those of seeds may be a little below 0.
    """
    seeds, clips = shape
    of_clips, of_seeds = _counts(seeds, clips, samples)
    weights = of_seeds / seeds
    if seeds > 1:  # n seeds drawn from n have (n − 1) / n of the variance that new ones would have
        weights = 1 / seeds + (weights - 1 / seeds) * np.sqrt(seeds / (seeds - 1))
    at_once = max(1, _VALUES_AT_ONCE // clips)
    for start in range(0, samples, at_once):
        rows = slice(start, start + at_once)
        yield of_clips[rows] / clips, weights[rows]


@functools.lru_cache(maxsize=1)
def _counts(seeds: int, clips: int, samples: int) -> tuple[Array, Array]:
    """How often each clip (draws, clips) and each seed (draws, seeds) is drawn.

    Kept for the next figure, as all of a data set have the same: to draw them takes far longer than to use them. Two
    bytes a value, 200 MB for 10,000 draws of 10,000 clips.
    """
    generator = np.random.default_rng(_RESAMPLING_SEED)
    of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=samples)
    return multinomial_counts(generator, clips, samples), of_seeds


def paired(first: Figure, second: Figure) -> Paired:
    """`first` minus `second`, both of the same clips and seeds in the same order.

    Raises:
        ValueError: other seeds or another number of resamples.
    """
    if first.per_seed.shape != second.per_seed.shape or first.draws.shape != second.draws.shape:
        raise ValueError(f"paired figures of {first.per_seed.shape} and {second.per_seed.shape} seeds")
    figure = Figure(first.per_seed - second.per_seed, first.draws - second.draws)
    t, t_p = _t_test(figure.per_seed)
    higher, lower = int((figure.per_seed > 0).sum()), int((figure.per_seed < 0).sum())
    return Paired(figure, two_sided_p(figure.draws), t, t_p, higher, lower, _sign_test(higher, lower))


def _t_test(differences: Array) -> tuple[float | None, float | None]:
    count = len(differences)
    # equal differences leave a deviation of rounding errors
    if count < 2 or np.ptp(differences) <= 1e-12:
        return None, None
    t = float(differences.mean() / (differences.std(ddof=1) / np.sqrt(count)))
    return t, float(2 * scipy.stats.t.sf(abs(t), count - 1))


def _sign_test(higher: int, lower: int) -> float:
    if not higher + lower:
        return 1.0
    return float(scipy.stats.binomtest(higher, higher + lower, 0.5).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values of one family, adjusted by Holm (1979): the family-wise error stays at its level.

    The i-th smallest of m is multiplied by m − i + 1, and none is smaller than one before it, nor above 1. None, a
    test that could not be made, stays None and is not counted.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, place) in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p))
        adjusted[place] = least
    return adjusted
