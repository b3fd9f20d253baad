"""Divergences of class distributions: against Σ p f(q/p), torch and SciPy, by hand, and where float32 ends."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from torch.distributions import Categorical, kl_divergence

from models.distill.divergences import STEEPEST, Divergence, divergence, due

KINDS: tuple[Divergence, ...] = get_args(Divergence)
GENERATORS = {
    "forward_kl": lambda r: r * np.log(r),
    "reverse_kl": lambda r: -np.log(r),
    "jeffreys": lambda r: (r - 1) * np.log(r),
    "jensen_shannon": lambda r: r * np.log(r) - (1 + r) * np.log((1 + r) / 2),
    "chi_squared": lambda r: (r - 1) ** 2,
    "mixture": lambda r: 0.4 * r * np.log(r) - 0.6 * np.log(r),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def log_probs(seed, scale=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(6, 5, generator=generator, dtype=torch.float64)).log_softmax(-1).to(dtype)


@kinds
def test_it_is_the_f_divergence_of_its_generator(kind):
    q, p = log_probs(0), log_probs(1)
    ratio = (q - p).exp().numpy()
    expected = (p.exp().numpy() * GENERATORS[kind](ratio)).sum(1)
    assert divergence(kind, q, p).numpy() == pytest.approx(expected)


def test_against_torch_and_scipy():
    q, p = log_probs(0), log_probs(1)
    forward = kl_divergence(Categorical(logits=q), Categorical(logits=p))
    reverse = kl_divergence(Categorical(logits=p), Categorical(logits=q))
    torch.testing.assert_close(divergence("forward_kl", q, p), forward)
    torch.testing.assert_close(divergence("reverse_kl", q, p), reverse)
    torch.testing.assert_close(divergence("jeffreys", q, p), forward + reverse)
    torch.testing.assert_close(divergence("mixture", q, p), 0.4 * forward + 0.6 * reverse)
    distance = jensenshannon(q.exp().numpy(), p.exp().numpy(), axis=1)  # the root of half of ours
    assert divergence("jensen_shannon", q, p).numpy() == pytest.approx(2 * distance**2)


def test_one_pair_by_hand():
    q, p = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    expected = {
        "forward_kl": 0.75 * math.log(1.5) + 0.25 * math.log(0.5),
        "reverse_kl": 0.5 * math.log(2 / 3) + 0.5 * math.log(2),
        "jeffreys": 0.25 * math.log(3),
        "chi_squared": 0.0625 / 0.5 + 0.0625 / 0.5,
    }
    for kind, value in expected.items():
        assert divergence(kind, q, p).item() == pytest.approx(value, rel=1e-5)


@kinds
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 20))
@settings(deadline=None)
def test_never_negative_and_zero_for_the_teacher_itself(kind, seed, scale):
    q, p = log_probs(seed, scale, torch.float32), log_probs(seed + 1, scale, torch.float32)
    assert (divergence(kind, q, p) > -1e-5).all()
    assert divergence(kind, q, q).abs().max() < 1e-5


@kinds
def test_gradients_are_those_of_the_value(kind):
    q, logits = log_probs(0), log_probs(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: divergence(kind, q, z.log_softmax(-1)), logits)


@kinds
@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 3.0, 10.0])
def test_gradients_in_float32_are_those_in_float64(kind, scale):
    """As trainings have them: χ² had none there, while it was a sum with a tangent of slope e^20 (until 2026-12-01)."""
    gradients = []
    for dtype in (torch.float64, torch.float32):
        q, logits = (log_probs(seed, scale).to(dtype) for seed in (0, 1))
        logits.requires_grad_()
        divergence(kind, q, logits.log_softmax(-1)).sum().backward()
        gradients.append(logits.grad.double())
    wide, narrow = gradients
    assert (narrow - wide).norm() < 1e-4 * wide.norm()


@kinds
def test_a_student_that_follows_its_gradient_comes_to_its_teacher(kind):
    q, logits = (log_probs(seed, scale=0.5, dtype=torch.float32) for seed in (0, 1))
    logits.requires_grad_()
    adam = torch.optim.Adam([logits], lr=0.05)
    for _ in range(400):
        adam.zero_grad()
        divergence(kind, q, logits.log_softmax(-1)).sum().backward()
        adam.step()
    torch.testing.assert_close(logits.detach().softmax(-1), q.exp(), atol=0.01, rtol=0)


@kinds
@pytest.mark.parametrize("sure", [30.0, 1e3, 1e5])
def test_a_student_that_is_surely_wrong_has_a_finite_loss_and_gradient(kind, sure):
    """At 30 the student's p is 1e-13, at 1e3 it is none in float32; logits come in half precision."""
    q = torch.tensor([[0.9, 0.1]]).log()
    logits = torch.tensor([[-sure, sure]], dtype=torch.bfloat16, requires_grad=True)
    found = divergence(kind, q, logits.float().log_softmax(-1))
    found.sum().backward()
    assert found.isfinite().all()
    assert logits.grad.isfinite().all()
    if kind not in ("reverse_kl", "jensen_shannon"):  # these two flatten where p is 0 or 1
        assert logits.grad[0, 0] < 0 < logits.grad[0, 1]


def test_chi_squared_is_exact_up_to_its_bound_and_a_tangent_beyond():
    p = torch.tensor([[STEEPEST - 1, STEEPEST, STEEPEST + 2]], dtype=torch.float64).T
    student = torch.cat([-p, torch.zeros_like(p)], 1)  # Σ q²/p is e^p where q is all on the first class
    teacher = torch.tensor([[0.0, -1e4]], dtype=torch.float64).expand(3, 2)
    expected = [math.expm1(STEEPEST - 1), math.expm1(STEEPEST), math.expm1(STEEPEST) + 2 * math.exp(STEEPEST)]
    assert divergence("chi_squared", teacher, student).tolist() == pytest.approx(expected)


def test_a_small_chi_squared_keeps_its_digits():
    q = torch.tensor([[0.5 + 1e-3, 0.5 - 1e-3]], dtype=torch.float64).log().float()
    p = torch.tensor([[0.5, 0.5]]).log()
    assert divergence("chi_squared", q, p).item() == pytest.approx(4e-6, rel=0.1)


def test_a_curriculum_goes_from_reverse_to_forward_at_half_time():
    found = [due("reverse_then_forward", progress) for progress in (0.0, 0.499, 0.5, 0.999)]
    assert found == ["reverse_kl", "reverse_kl", "forward_kl", "forward_kl"]
    assert {due(kind, progress) for kind in KINDS for progress in (0.0, 0.9)} == set(KINDS)
