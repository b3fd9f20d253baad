"""How sure an ECE is: a bootstrap over clips. An ECE is no mean over clips, as `models.metrics` resamples."""

import functools

import numpy as np
import torch

from models.calibration import inner_edges, reliability_of

_COUNTS_AT_ONCE = 4_000_000  # resampled clips held in memory, 32 MB


def ece_per_seed(confidence: np.ndarray, correct: np.ndarray, bins: int) -> np.ndarray:
    """The ECE of each seed, (seeds,), from confidence and correctness (seeds, clips)."""
    pairs = zip(torch.from_numpy(confidence), torch.from_numpy(correct), strict=True)
    return np.array([reliability_of(sure, right, bins).ece() for sure, right in pairs])


def resampled_ece(
    confidence: np.ndarray, correct: np.ndarray, bins: int, samples: int, seed: int
) -> np.ndarray:
    """ECE, mean over seeds, of data sets drawn with replacement, without the resampling's bias.

    A resample repeats clips, which makes bins noisier and ECE larger than that of the split itself; the mean
    of that surplus is taken off, so that the draws lie around the measured ECE. The same `seed` and number
    of clips draw the same clips, so draws of two models may be subtracted pairwise.

    Args:
        confidence: (seeds, clips), 0 to 1.
        correct: (seeds, clips), 0 or 1.
        bins: equal-width bins over 0 to 1.
        samples: resampled data sets.
        seed: of the resampling.

    Returns:
        (samples,), at least 0.
    """
    clips = confidence.shape[1]
    gaps = signed_gaps(confidence, correct, bins)
    counts = _counts(clips, samples, seed)
    at_once = max(1, _COUNTS_AT_ONCE // clips)
    means = [
        np.abs(counts[None, start : start + at_once].astype(float) @ gaps).sum(axis=2).mean(axis=0) / clips
        for start in range(0, samples, at_once)
    ]
    draws = np.concatenate(means)
    measured = np.abs(gaps.sum(axis=1)).sum(axis=1).mean() / clips
    return np.clip(draws - draws.mean() + measured, 0, None)


@functools.lru_cache(maxsize=1)
def _counts(clips: int, samples: int, seed: int) -> np.ndarray:
    """Those of `multinomial_counts`, kept for the next model, which has the same."""
    return multinomial_counts(np.random.default_rng(seed), clips, samples)


def multinomial_counts(generator: np.random.Generator, clips: int, samples: int) -> np.ndarray:
    """How often each of `clips` is among as many that are drawn with replacement, uint16 (samples, clips)."""
    counts = np.empty((samples, clips), np.uint16)
    at_once = max(1, _COUNTS_AT_ONCE // clips)
    for start in range(0, samples, at_once):
        some = counts[start : start + at_once]
        some[:] = generator.multinomial(clips, np.full(clips, 1 / clips), size=len(some))
    return counts


def signed_gaps(confidence: np.ndarray, correct: np.ndarray, bins: int) -> np.ndarray:
    """Correct − confidence of every clip in its bin, 0 in the others: (seeds, clips, bins).

    The ECE of a seed is the sum over bins of |sum over clips| over the number of clips.
    """
    # bins are (lower, upper], as in reliability_of
    places = np.searchsorted(inner_edges(bins), confidence, side="left")
    gaps = np.zeros((*confidence.shape, bins))
    np.put_along_axis(gaps, places[..., None], (correct - confidence)[..., None], axis=2)
    return gaps
