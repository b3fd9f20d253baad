"""Tests and intervals of a study against values worked by hand."""

import itertools

import numpy as np
import pytest

from tasks.study.statistics import Figure, ece_figure, holm, mean_figure, paired


def figure(*per_seed: float, draws: tuple[float, ...] = (1.0,)) -> Figure:
    return Figure(np.array(per_seed), np.array(draws))


def test_holm_by_hand():
    # 0.01 × 4, 0.02 × 3, 0.03 × 2, 0.04 × 1 but none below the one before it
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02, None, 0.03]) == [0.04, None, 0.04]
    assert holm([]) == []


def test_t_test_by_hand():
    # differences 1, 2, 3: mean 2, deviation 1, t = 2 √3; with 2 degrees p = 1 − t / √(2 + t²)
    found = paired(figure(2, 4, 6), figure(1, 2, 3))
    assert found.figure.mean == 2
    assert found.figure.sd == 1
    assert found.t == pytest.approx(2 * np.sqrt(3))
    assert found.t_p == pytest.approx(1 - np.sqrt(12 / 14))


def test_sign_test_by_hand():
    found = paired(figure(1, 2, 3, 5, 0, 7), figure(0, 1, 2, 3, 0, 8))
    assert (found.higher, found.lower) == (4, 1)  # one tie
    assert found.sign_p == pytest.approx(2 * (1 + 5) / 32)


@pytest.mark.parametrize(("ours", "theirs"), [((1.0,), (0.5,)), ((0.5, 0.7), (0.4, 0.6))])
def test_one_seed_or_the_same_difference_in_all_leaves_no_t_test(ours: tuple, theirs: tuple):
    found = paired(figure(*ours), figure(*theirs))
    assert found.t is None
    assert found.t_p is None
    assert found.sign_p == pytest.approx(1.0 if len(ours) == 1 else 0.5)


def test_a_method_against_itself_differs_by_nothing():
    values = np.random.default_rng(0).random((3, 20))
    found = paired(mean_figure(values, 50), mean_figure(values, 50))
    assert (found.figure.mean, found.figure.interval, found.p, found.sign_p) == (0, [0, 0], 1, 1)


def test_bootstrap_p_counts_draws_beyond_zero():
    found = paired(figure(1.0, draws=(1.0,) * 98 + (-1.0,)), figure(0.0, draws=(0.0,) * 99))
    assert found.p == pytest.approx(2 * (1 + 1) / 100)


def test_other_seeds_cannot_be_paired():
    with pytest.raises(ValueError, match="paired figures"):
        paired(figure(1, 2), figure(1))


def test_draws_have_the_variance_of_resampled_clips_and_seeds():
    # Means of two-way resamples of a table a_s + b_c vary as var(a)/seeds + var(b)/clips; that of so few seeds is the
    # unbiased one, as of new seeds.
    of_seeds, of_clips = np.array([0.0, 1.0, 3.0]), np.linspace(-1, 1, 40) ** 3
    found = mean_figure(of_seeds[:, None] + of_clips[None], 40_000)
    assert found.per_seed == pytest.approx(of_seeds + of_clips.mean())
    assert found.draws.mean() == pytest.approx(found.mean, abs=0.02)
    assert found.draws.var() == pytest.approx(of_seeds.var(ddof=1) / 3 + of_clips.var() / 40, rel=0.03)


def test_one_seed_resamples_clips_alone():
    values = np.array([[0.0, 1.0, 1.0, 0.0, 1.0]])
    found = mean_figure(values, 20_000)
    assert found.sd is None
    assert found.draws.var() == pytest.approx(0.6 * 0.4 / 5, rel=0.05)


def test_draws_are_those_of_every_resample_of_two_clips_and_seeds():
    values = np.array([[0.0, 1.0], [1.0, 5.0]])
    pairs = list(itertools.product(range(2), repeat=2))
    weights = [0.5 + (np.bincount(seeds, minlength=2) / 2 - 0.5) * np.sqrt(2) for seeds in pairs]
    possible = {round(float(w @ values[:, clips].mean(axis=1)), 9) for w in weights for clips in pairs}
    assert set(np.unique(mean_figure(values, 2000).draws).round(9)) == possible


def test_ece_by_hand_and_its_draws_around_it():
    confidence = np.array([[0.75, 0.75, 0.55, 0.55], [0.9, 0.9, 0.9, 0.9]])
    correct = np.array([[1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]])
    found = ece_figure(confidence, correct, bins=10, samples=500)
    # seed 0: half the clips 0.25 too sure, half 0.45 too unsure; seed 1: 0.15 too sure
    assert found.per_seed == pytest.approx([0.35, 0.15])
    assert found.mean == pytest.approx(0.25)
    assert (found.draws >= 0).all()
    sure = ece_figure(np.full((2, 400), 0.8), (np.arange(400) < 200)[None].repeat(2, 0) * 1.0, 10, 400)
    assert sure.mean == pytest.approx(0.3)
    assert sure.draws.mean() == pytest.approx(0.3, abs=1e-6)
    assert sure.draws.std() == pytest.approx(np.sqrt(0.25 / 400), rel=0.15)


def test_portions_do_not_change_the_draws_of_seeds(monkeypatch: pytest.MonkeyPatch):
    values = np.array([[0.0] * 10, [1.0] * 10])  # clips do not matter
    whole = mean_figure(values, 100).draws
    monkeypatch.setattr("tasks.study.statistics._VALUES_AT_ONCE", 70)
    assert mean_figure(values, 100).draws == pytest.approx(whole)
