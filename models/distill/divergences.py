"""How far a student's distribution over classes is from a teacher's: the f-divergences, computed exactly.

D_f(q‖p) = Σ_c p_c f(q_c / p_c), with q the teacher's distribution, p the student's and f convex, f(1) = 0. Over
classes the sum is finite, so nothing is sampled or bounded: every divergence comes from the log-probabilities, in a
form without the quotient q / p, which overflows.

Sources: Csiszár 1967; Wang et al., Uni-Instruct, NeurIPS 2025, arXiv 2505.20755, for the choice of f, the mixture and
the order of `reverse_then_forward`.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Divergence = Literal["forward_kl", "reverse_kl", "jeffreys", "jensen_shannon", "chi_squared", "mixture"]
"""Divergences that can be computed; `mixture` is 0.4 forward KL + 0.6 reverse KL."""

Curriculum = Literal[Divergence, "reverse_then_forward"]
"""What a training may go by: one divergence throughout, or reverse KL in its first half and forward KL after."""

STEEPEST = 20.0
"""log(1 + χ²) up to which χ² is exact; beyond it goes on along its tangent, so that no loss or gradient overflows."""


def divergence(kind: Divergence, teacher: Tensor, student: Tensor) -> Tensor:
    """Return D_f(q‖p) of each clip, in nats (chi_squared without a unit).

    Args:
        kind: forward_kl, r log r, covers what the teacher deems possible; reverse_kl, −log r, settles on what it
            deems likely; jeffreys, (r − 1) log r, is their sum; jensen_shannon, r log r − (1 + r) log((1 + r) / 2),
            is twice the mean KL to the midpoint and at most 2 log 2; chi_squared, (r − 1)², is hardest on classes
            that the student rules out; mixture, 0.4 forward_kl + 0.6 reverse_kl.
        teacher: log q, (batch, classes), finite, float32 or wider.
        student: log p, likewise.

    Returns:
        (batch,), at least 0 up to rounding, and 0 where both agree.
    """
    return _DIVERGENCES[kind](teacher, student)


def due(curriculum: Curriculum, progress: float) -> Divergence:
    """Return the divergence of a curriculum at a share `progress` of the training, 0 at its start to 1 at its end."""
    if curriculum == "reverse_then_forward":
        return "reverse_kl" if progress < 0.5 else "forward_kl"
    return curriculum


def _forward_kl(q: Tensor, p: Tensor) -> Tensor:
    return (q.exp() * (q - p)).sum(dim=-1)


def _reverse_kl(q: Tensor, p: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(dim=-1)


def _jeffreys(q: Tensor, p: Tensor) -> Tensor:
    return ((q.exp() - p.exp()) * (q - p)).sum(dim=-1)


def _jensen_shannon(q: Tensor, p: Tensor) -> Tensor:
    middle = torch.logaddexp(q, p) - math.log(2)
    return (q.exp() * (q - middle) + p.exp() * (p - middle)).sum(dim=-1)


def _chi_squared(q: Tensor, p: Tensor) -> Tensor:
    # Σ q²/p − 1: with p of 1e-40 the quotient is beyond float32, its logarithm is not.
    logarithm = (2 * q - p).logsumexp(dim=-1)
    # Either or, not a sum of both: in float32 the tangent's slope of e^20 swallows the exact part's gradient.
    exact = logarithm.clamp(max=STEEPEST).expm1()
    tangent = math.expm1(STEEPEST) + math.exp(STEEPEST) * (logarithm - STEEPEST)
    return torch.where(logarithm < STEEPEST, exact, tangent)


def _mixture(q: Tensor, p: Tensor) -> Tensor:
    return 0.4 * _forward_kl(q, p) + 0.6 * _reverse_kl(q, p)


_DIVERGENCES: dict[Divergence, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jeffreys": _jeffreys,
    "jensen_shannon": _jensen_shannon,
    "chi_squared": _chi_squared,
    "mixture": _mixture,
}
