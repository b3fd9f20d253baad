"""How far confidence can be trusted: calibration error, proper scores, and the temperature that mends it.

Sources: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv 1706.04599; Naeini et al.,
Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

COLDEST, HOTTEST = 0.05, 20.0
"""The range of temperatures that fitting may return."""


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: clips grouped in bins of equal width by their confidence.

    Attributes:
        confidence: (bins,), mean in each bin, 0 where it is empty.
        accuracy: (bins,), fraction right in each bin, 0 where it is empty.
        count: (bins,), int64, clips in each bin.
    """

    confidence: Tensor
    accuracy: Tensor
    count: Tensor

    def ece(self) -> float:
        """Return the expected calibration error: the mean gap of confidence and accuracy over clips."""
        gaps = (self.confidence - self.accuracy).abs()
        return ((gaps * self.count).sum() / self.count.sum()).item()


def reliability(probs: Tensor, labels: Tensor, bins: int = 15) -> Reliability:
    """Group predictions (clips, classes) by their top-1 probability; labels (clips,), int64.

    Raises:
        ValueError: no clips, or shapes differ.
    """
    confidence, predicted = probs.max(dim=-1)
    return reliability_of(confidence, predicted == labels, bins)


def reliability_of(confidence: Tensor, correct: Tensor, bins: int = 15) -> Reliability:
    """Group decisions by their confidence, for decisions that are no class of one head (as actions).

    Args:
        confidence: (clips,), 0 to 1.
        correct: (clips,), bool.
        bins: number of bins (lower, upper] of equal width over 0 to 1.

    Raises:
        ValueError: no clips, or shapes differ.
    """
    if confidence.shape != correct.shape or confidence.ndim != 1 or not len(confidence):
        raise ValueError(f"confidence {tuple(confidence.shape)} and correct {tuple(correct.shape)} of clips")
    confidence = confidence.double()
    place = torch.bucketize(confidence, torch.from_numpy(inner_edges(bins)).to(confidence.device))
    count = torch.bincount(place, minlength=bins)

    def mean(values: Tensor) -> Tensor:
        return torch.bincount(place, weights=values, minlength=bins) / count.clamp(min=1)

    return Reliability(mean(confidence), mean(correct.double()), count)


def inner_edges(bins: int) -> np.ndarray:
    """Where bins of equal width over 0 to 1 meet, (bins - 1,) float64; torch's linspace differs in the last digit."""
    return np.linspace(0, 1, bins + 1)[1:-1]


def ece(probs: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error of predictions (clips, classes), 0 to 1.

    Raises:
        ValueError: no clips, or shapes differ.
    """
    return reliability(probs, labels, bins).ece()


def nll(logits: Tensor, labels: Tensor) -> float:
    """Return the mean negative log-likelihood in nats of logits or log-probabilities (clips, classes)."""
    return functional.cross_entropy(logits.double(), labels).item()


def action_confidence(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return confidence and correctness of the action, which is right when every head is.

    Args:
        logits: (clips, classes) of each head.
        labels: (clips,) of the same heads, int64.

    Returns:
        The product of the heads' top-1 probabilities, (clips,) float64; whether all are right, (clips,).

    Raises:
        ValueError: the heads of logits and labels differ.
    """
    if logits.keys() != labels.keys():
        raise ValueError(f"logits of heads {sorted(logits)}, but labels of {sorted(labels)}")
    tops = {head: values.double().softmax(dim=-1).max(dim=-1) for head, values in logits.items()}
    confidence = torch.stack([top.values for top in tops.values()]).prod(dim=0)
    correct = torch.stack([top.indices == labels[head] for head, top in tops.items()]).all(dim=0)
    return confidence, correct


def fit_temperature(logits: Tensor, labels: Tensor, views: int = 1) -> float:
    """Find the temperature T under which the labels are most likely, 1 / T being Gamma(2, 1) beforehand.

    argmin over T of sum_i NLL_i(T) + views (1 / T + log T)

    The prior, highest at T = 1, is worth one clip or so: of six clips all may be right, and likelihood alone would then
    make the network as good as certain. With 60 it is lost in the noise (docs/methods.md). The sum is convex in 1 / T,
    so a golden-section search over log T finds its valley, the same way every time.

    Args:
        logits: (clips · views, classes), on clips the network was not trained on.
        labels: (clips · views,), int64.
        views: rows of one clip, which tell no more than one.

    Returns:
        T in COLDEST to HOTTEST, such that softmax(logits / T) is calibrated; 1 where no T is better than 1.

    Raises:
        ValueError: no clips, or logits that are not finite.
    """
    if not len(logits):
        raise ValueError("no clips to fit a temperature on")
    if not logits.isfinite().all():
        raise ValueError("logits must be finite to fit a temperature")

    def loss(log_temperature: float) -> float:
        prior = math.exp(-log_temperature) + log_temperature
        return nll(apply(logits.double(), math.exp(log_temperature)), labels) + prior * views / len(labels)

    best = _golden_section(loss, math.log(COLDEST), math.log(HOTTEST))
    return math.exp(best) if loss(best) < loss(0.0) else 1.0


def apply(logits: Tensor, temperature: float) -> Tensor:
    """Return the logits at this temperature: above 1 less confident, below 1 more."""
    return logits / temperature


def _golden_section(
    function: Callable[[float], float], low: float, high: float, tolerance: float = 1e-6
) -> float:
    """Return where a function of one variable with a single valley is least between two bounds."""
    shrink = (math.sqrt(5) - 1) / 2
    left, right = high - shrink * (high - low), low + shrink * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > tolerance:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - shrink * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + shrink * (high - low)
            at_right = function(right)
    return min((low, high), key=function)
