"""Scores of single clips, and how sure their mean is: top-k, scores of actions, bootstrap intervals."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from models.calibration import action_confidence

_DRAWS_AT_ONCE = 4_000_000  # resampled values held in memory, 32 MB
_ROUNDING = 1e-12


class Scores(NamedTuple):
    """What a prediction is worth, clip by clip; their means are the figures to report.

    Attributes:
        top1: (clips,), bool, the most probable class is right.
        top5: (clips,), bool, the right class is among the five most probable.
        confidence: (clips,), float64, probability of the most probable class.
        nll: (clips,), float64, negative log-likelihood in nats.
        brier: (clips,), float64, squared distance from the truth, 0 to 2.
    """

    top1: Tensor
    top5: Tensor
    confidence: Tensor
    nll: Tensor
    brier: Tensor


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Score the predictions of one head.

    Args:
        logits: (clips, classes), or log-probabilities.
        labels: (clips,), int64.
    """
    return score_action({"head": logits}, {"head": labels})


def score_action(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Scores:
    """Score actions: the joint prediction of all heads, taken as independent.

    The joint distribution is never built, so 97 verbs by 300 nouns cost no more than their sum.

    Args:
        logits: (clips, classes) of each head.
        labels: (clips,) of the same heads, int64.

    Raises:
        ValueError: the heads of logits and labels differ.
    """
    confidence, top1 = action_confidence(logits, labels)
    log_probs = {head: values.double().log_softmax(dim=-1) for head, values in logits.items()}
    nll = torch.stack(
        [functional.nll_loss(log_probs[head], labels[head], reduction="none") for head in logits]
    ).sum(dim=0)
    # Sum over tuples of (probability - truth)²: squares factor over heads, the cross term is the true tuple.
    squares = torch.stack([values.exp().square().sum(dim=-1) for values in log_probs.values()]).prod(dim=0)
    brier = (squares - 2 * torch.exp(-nll) + 1).clamp(min=0)
    return Scores(top1, _joint_top_k(log_probs, labels, 5), confidence, nll, brier)


def _joint_top_k(log_probs: Mapping[str, Tensor], labels: Mapping[str, Tensor], k: int) -> Tensor:
    """Return whether the true tuple of classes is among the k most probable, (clips,).

    The k best tuples are made of the k best classes of a head and the k best tuples of the heads before it.
    """
    total: Tensor | None = None
    for head, values in log_probs.items():
        best = values.topk(min(k, values.shape[-1]), dim=-1)
        hit = best.indices == labels[head][:, None]
        if total is None:
            total, right = best.values, hit
            continue
        pairs = (total[:, :, None] + best.values[:, None, :]).flatten(1)
        kept = pairs.topk(min(k, pairs.shape[-1]), dim=-1)
        total = kept.values
        right = (right[:, :, None] & hit[:, None, :]).flatten(1).gather(1, kept.indices)
    return right.any(dim=-1)


class Interval(NamedTuple):
    """A range that holds the true mean with the asked probability."""

    low: float
    high: float


class Difference(NamedTuple):
    """A paired comparison of two models on the same clips.

    Attributes:
        mean: of the first minus the second.
        interval: of that mean.
        p_value: two-sided, probability of so large a difference were there none.
    """

    mean: float
    interval: Interval
    p_value: float


def bootstrap_ci(values: ArrayLike, samples: int, seed: int, level: float = 0.95) -> Interval:
    """Return the percentile bootstrap interval of a mean over clips.

    Args:
        values: (clips,), one score a clip, as right or wrong.
        samples: number of resampled data sets.
        seed: of the resampling.
        level: probability that the interval is to hold, as 0.95.

    Raises:
        ValueError: no clips.
    """
    return _percentiles(_resampled_means(values, samples, seed), level)


def bootstrap_difference(
    first: ArrayLike, second: ArrayLike, samples: int, seed: int, level: float = 0.95
) -> Difference:
    """Compare the scores of two models on the same clips, resampling clips for both alike.

    Args:
        first: (clips,), scores of one model.
        second: (clips,), scores of the other, of the same clips in the same order.
        samples: number of resampled data sets.
        seed: of the resampling.
        level: probability that the interval is to hold.

    Raises:
        ValueError: no clips, or the models have different numbers of clips.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired scores of {first.shape} and {second.shape} clips")
    means = _resampled_means(first - second, samples, seed)
    return Difference(float((first - second).mean()), _percentiles(means, level), two_sided_p(means))


def two_sided_p(draws: NDArray[np.float64]) -> float:
    """Return how rarely a resampled difference, one of `draws` (samples,), does not have their sign.

    One sample is added on each side: no number of resamples proves that chance is impossible. A tie counts on both,
    and may be off zero by rounding.
    """
    beyond = min(np.count_nonzero(draws <= _ROUNDING), np.count_nonzero(draws >= -_ROUNDING))
    return min(1.0, 2 * (beyond + 1) / (len(draws) + 1))


def _resampled_means(values: ArrayLike, samples: int, seed: int) -> NDArray[np.float64]:
    """Return the means (samples,) of data sets drawn with replacement from the clips."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"bootstrap needs one value for each clip, not shape {values.shape}")
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // len(values))
    means = [
        values[generator.integers(len(values), size=(min(at_once, samples - start), len(values)))].mean(
            axis=1
        )
        for start in range(0, samples, at_once)
    ]
    return np.concatenate(means)


def _percentiles(means: NDArray[np.float64], level: float) -> Interval:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
