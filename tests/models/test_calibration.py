"""Calibration error, proper scores and fitted temperatures: by hand, bounds, and hard cases."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.calibration import (
    COLDEST,
    HOTTEST,
    action_confidence,
    apply,
    ece,
    fit_temperature,
    nll,
    reliability,
    reliability_of,
)


@st.composite
def predictions(draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (clips, classes) and labels, from cautious to certain."""
    clips, classes = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    scale = draw(st.sampled_from([0.1, 1.0, 10.0, 1000.0]))
    logits = scale * torch.randn(clips, classes, generator=generator)
    return logits, torch.randint(classes, (clips,), generator=generator)


def test_two_clips_at_three_quarters_one_right():
    probs = torch.tensor([[0.75, 0.25], [0.75, 0.25]])
    assert ece(probs, torch.tensor([0, 1]), bins=10) == pytest.approx(0.25)


def test_reliability_by_hand():
    confidence = torch.tensor([0.6, 0.8, 0.9, 0.2])
    diagram = reliability_of(confidence, torch.tensor([True, False, True, False]), bins=2)
    assert diagram.count.tolist() == [1, 3]
    assert diagram.confidence.tolist() == pytest.approx([0.2, 2.3 / 3])
    assert diagram.accuracy.tolist() == pytest.approx([0.0, 2 / 3])
    assert diagram.ece() == pytest.approx((0.2 + 0.3) / 4)


def test_bins_hold_their_upper_edge_and_empty_ones_count_nothing():
    diagram = reliability_of(torch.tensor([0.5, 1.0, 0.0]).double(), torch.ones(3).bool(), bins=4)
    assert diagram.count.tolist() == [1, 1, 0, 1]
    assert diagram.accuracy.tolist() == [1, 1, 0, 1]


@given(predictions(), st.integers(1, 20))
@settings(deadline=None)
def test_calibration_error_is_a_fraction_and_every_clip_in_one_bin(prediction, bins):
    logits, labels = prediction
    probs = logits.softmax(-1)
    assert 0 <= ece(probs, labels, bins) <= 1
    assert reliability(probs, labels, bins).count.sum() == len(labels)


@given(predictions())
@settings(deadline=None)
def test_one_bin_compares_mean_confidence_with_accuracy(prediction):
    logits, labels = prediction
    probs = logits.double().softmax(-1)
    gap = probs.max(-1).values.mean() - (probs.argmax(-1) == labels).double().mean()
    assert ece(probs, labels, bins=1) == pytest.approx(gap.abs().item())


def test_the_likelihood_by_hand():
    probs, labels = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]]), torch.tensor([0, 2])
    assert nll(probs.log(), labels) == pytest.approx(-(math.log(0.7) + math.log(0.25)) / 2)


@given(predictions(), st.floats(COLDEST, HOTTEST))
@settings(deadline=None)
def test_a_temperature_keeps_the_most_likely_class(prediction, temperature):
    logits = prediction[0].double()
    assert torch.equal(apply(logits, temperature).argmax(-1), logits.argmax(-1))


@given(predictions())
@settings(deadline=None)
def test_a_fitted_temperature_is_in_range_and_never_less_likely(prediction):
    logits, labels = prediction
    temperature = fit_temperature(logits, labels)
    assert COLDEST <= temperature <= HOTTEST
    assert nll(apply(logits.double(), temperature), labels) <= nll(logits, labels)


def test_the_fitted_temperature_by_hand():
    # Three of four right at logits (4, 0): likeliest where the probability is 3/4, so 4 / T = log 3, if clips are many.
    logits, labels = torch.tensor([[4.0, 0.0]]).expand(40_000, 2), torch.tensor([0, 0, 0, 1]).repeat(10_000)
    assert fit_temperature(logits, labels) == pytest.approx(4 / math.log(3), rel=1e-3)
    # Of four the prior has a say: d/du of (4u + log(1 + e^-4u) − 3u) + (u − log u) / 4 is 0 at u = 1 / T.
    u = 1 / fit_temperature(logits[:4], labels[:4])
    assert 4 / (1 + math.exp(-4 * u)) - 3 + (1 - 1 / u) / 4 == pytest.approx(0, abs=1e-4)


def test_views_of_a_clip_count_as_one_against_the_prior():
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0]]), torch.tensor([0, 1, 1])
    of_views = fit_temperature(logits.repeat_interleave(8, 0), labels.repeat_interleave(8), views=8)
    assert of_views == pytest.approx(fit_temperature(logits, labels), rel=1e-4)


def test_a_few_clips_that_all_are_right_make_nobody_certain():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    assert 0.3 < fit_temperature(logits, torch.tensor([0, 1])) < 1.0
    assert 1.0 < fit_temperature(logits, torch.tensor([1, 0])) < 6.0


def test_hard_cases_end_at_the_bounds_or_at_one():
    logits, many = torch.tensor([[2.0, 0.0], [0.0, 2.0]]).repeat(10**6, 1), 10**6
    assert fit_temperature(logits, torch.tensor([0, 1]).repeat(many)) < 0.2
    assert fit_temperature(logits, torch.tensor([1, 0]).repeat(many)) == pytest.approx(HOTTEST, rel=1e-4)
    assert fit_temperature(torch.zeros(3, 2), torch.tensor([0, 1, 1])) == 1.0  # nothing to gain
    assert fit_temperature(torch.randn(3, 1), torch.zeros(3).long()) == 1.0  # one class
    assert fit_temperature(1e6 * logits[:2], torch.tensor([0, 1])) == 1.0  # certain and right already


def test_no_clips_or_broken_logits_are_refused():
    none = torch.zeros(0).long()
    with pytest.raises(ValueError, match="no clips"):
        fit_temperature(torch.zeros(0, 3), none)
    with pytest.raises(ValueError, match="of clips"):
        ece(torch.zeros(0, 3), none)
    with pytest.raises(ValueError, match="finite"):
        fit_temperature(torch.tensor([[math.nan, 0.0]]), torch.tensor([0]))
    with pytest.raises(ValueError, match="of clips"):
        reliability_of(torch.zeros(2), torch.zeros(2, 1).bool())


def test_an_action_is_right_when_all_heads_are():
    logits = {
        "verb": torch.tensor([[0.8, 0.2], [0.8, 0.2]]).log(),
        "noun": torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]).log(),
    }
    labels = {"verb": torch.tensor([0, 0]), "noun": torch.tensor([0, 1])}
    confidence, correct = action_confidence(logits, labels)
    assert confidence.tolist() == pytest.approx([0.4, 0.4])
    assert correct.tolist() == [True, False]
    with pytest.raises(ValueError, match="labels of"):
        action_confidence(logits, {"verb": labels["verb"]})
