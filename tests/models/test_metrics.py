"""Scores of clips against the joint distribution built in full, and bootstrap intervals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import one_hot

from models.calibration import nll
from models.metrics import bootstrap_ci, bootstrap_difference, score, score_action, two_sided_p


def test_scores_of_a_head_by_hand():
    scores = score(torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([1]))
    assert not scores.top1
    assert scores.top5
    assert scores.confidence.item() == pytest.approx(0.7)
    assert scores.nll.item() == pytest.approx(-math.log(0.2))
    assert scores.brier.item() == pytest.approx(0.49 + 0.64 + 0.01)


@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    scale=st.sampled_from([0.5, 3.0]),
)
@settings(deadline=None)
def test_actions_are_scored_as_on_the_joint_distribution(seed, sizes, scale):
    generator = torch.Generator().manual_seed(seed)
    heads = {f"head{place}": size for place, size in enumerate(sizes)}
    logits = {
        head: scale * torch.randn(20, size, generator=generator).double() for head, size in heads.items()
    }
    labels = {head: torch.randint(size, (20,), generator=generator) for head, size in heads.items()}
    joint, truth = torch.zeros(20, 1).double(), torch.zeros(20).long()
    for head, size in heads.items():
        joint = (joint[:, :, None] + logits[head].log_softmax(-1)[:, None, :]).flatten(1)
        truth = truth * size + labels[head]

    scores = score_action(logits, labels)

    assert torch.equal(scores.top1, joint.argmax(dim=1) == truth)
    assert torch.equal(scores.top5, (joint.topk(min(5, joint.shape[1])).indices == truth[:, None]).any(dim=1))
    torch.testing.assert_close(scores.confidence, joint.exp().max(-1).values)
    assert scores.nll.mean().item() == pytest.approx(nll(joint, truth))
    assert scores.brier.mean().item() == pytest.approx(
        (joint.exp() - one_hot(truth, joint.shape[1])).square().sum(dim=1).mean().item()
    )


def test_many_classes_cost_little_memory():
    logits = {"verb": torch.zeros(500, 97), "noun": torch.zeros(500, 300)}
    labels = {"verb": torch.zeros(500).long(), "noun": torch.zeros(500).long()}
    scores = score_action(logits, labels)
    assert scores.nll[0].item() == pytest.approx(math.log(97 * 300))
    assert scores.brier[0].item() == pytest.approx(1 - 1 / (97 * 300))


def test_the_interval_of_a_fraction_is_near_the_normal_one():
    values = np.arange(400) % 4 == 0  # a quarter right, standard error sqrt(.25 · .75 / 400)
    low, high = bootstrap_ci(values, samples=4000, seed=0)
    error = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert (low, high) == pytest.approx((0.25 - error, 0.25 + error), abs=0.004)


def test_intervals_repeat_widen_with_level_and_close_on_certainty():
    values = np.random.default_rng(0).random(50)
    assert bootstrap_ci(values, 200, seed=1) == bootstrap_ci(values, 200, seed=1)
    narrow, wide = bootstrap_ci(values, 200, 1, level=0.5), bootstrap_ci(values, 200, 1, level=0.99)
    assert wide.low < narrow.low < values.mean() < narrow.high < wide.high
    assert bootstrap_ci([1.0], 10, seed=0) == (1.0, 1.0)


def test_large_sets_are_drawn_in_parts():
    values = np.random.default_rng(0).random(1_000_000)
    low, high = bootstrap_ci(values, samples=9, seed=0)
    assert low < high


def test_pairing_finds_a_difference_that_single_intervals_hide():
    second = np.random.default_rng(0).random(100)
    found = bootstrap_difference(second + 0.01, second, samples=999, seed=0)
    assert found.mean == pytest.approx(0.01)
    assert found.interval == pytest.approx((0.01, 0.01))
    assert found.p_value == pytest.approx(2 / 1000)
    assert bootstrap_difference(second, second, samples=999, seed=0).p_value == 1.0


@pytest.mark.parametrize("sign", [1, -1])
def test_a_tie_counts_on_both_sides_whatever_rounding_makes_of_it(sign):
    tie = 0.1 + 0.2 - 0.3  # 6e-17
    assert two_sided_p(sign * np.array([tie] + [1.0] * 98)) == pytest.approx(2 * (1 + 1) / 100)


def test_no_clips_and_unpaired_clips_are_refused():
    with pytest.raises(ValueError, match="one value for each clip"):
        bootstrap_ci([], 10, seed=0)
    with pytest.raises(ValueError, match="paired"):
        bootstrap_difference([1.0, 0.0], [1.0], 10, seed=0)
