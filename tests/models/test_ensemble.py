"""Weights of teachers and their mix: laws for any numbers, values worked by hand, refusals."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.calibration import fit_temperature, nll
from models.ensemble import (
    _parts,
    choose_temperature,
    cross_entropies,
    data_set_weights,
    learn_weights,
    mix,
    normalise,
    weights,
)

KINDS = st.sampled_from(["uniform", "per_sample", "data_set"])
SPACES = st.sampled_from(["logits", "probs"])


@st.composite
def judged_clips(draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropies (clips, teachers) and which teachers saw which clips; at least one did."""
    clips, teachers = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    losses = torch.rand(clips, teachers, generator=generator) * draw(st.sampled_from([0.01, 1.0, 30.0]))
    present = torch.rand(clips, teachers, generator=generator) < 0.7
    present[draw(st.integers(0, clips - 1)), draw(st.integers(0, teachers - 1))] = True
    return losses, present


@given(kind=KINDS, clips=judged_clips(), temperature=st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_weights_add_up_to_one_and_absent_teachers_have_none(kind, clips, temperature):
    losses, present = clips
    found = weights(kind, losses, temperature, present)
    assert (found >= 0).all()
    assert (found[~present] == 0).all()
    torch.testing.assert_close(found.sum(dim=1), present.any(dim=1).float())


@given(kind=KINDS, clips=judged_clips())
@settings(deadline=None)
def test_a_hot_temperature_makes_weights_uniform(kind, clips):
    losses, present = clips
    uniform = weights("uniform", losses, 1.0, present)
    torch.testing.assert_close(weights(kind, losses, 1e6, present), uniform, atol=1e-3, rtol=0)


@given(clips=judged_clips())
@settings(deadline=None)
def test_a_cold_temperature_leaves_the_best_teacher_alone(clips):
    losses, present = clips
    found = weights("per_sample", losses, 1e-6, present)
    best = torch.where(present, losses, math.inf).argmin(dim=1)
    assert (found[torch.arange(len(losses)), best] > 0.99)[present.any(dim=1)].all()


@given(kind=KINDS, space=SPACES, clips=judged_clips())
@settings(deadline=None)
def test_a_mix_is_a_distribution_whatever_absent_teachers_hold(kind, space, clips):
    losses, present = clips
    logits = torch.randn(*losses.shape, 3, generator=torch.Generator().manual_seed(0))
    found = weights(kind, losses, 1.0, present)
    mixed = mix(logits, found, space)
    torch.testing.assert_close(mixed.exp().sum(dim=1), torch.ones(len(losses)))
    logits[~present] = math.nan
    assert torch.equal(mix(logits, found, space), mixed)
    assert torch.allclose(mixed[~present.any(dim=1)].exp(), torch.tensor(1 / 3))


def test_weights_by_hand():
    losses = torch.tensor([[0.0, math.log(3.0)]])
    both = torch.ones(1, 2, dtype=torch.bool)
    torch.testing.assert_close(weights("per_sample", losses, 1.0, both), torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(weights("uniform", losses, 1.0, both), torch.tensor([[0.5, 0.5]]))


def test_data_set_weights_average_over_the_clips_a_teacher_saw():
    losses = torch.tensor([[0.0, 9.0], [2 * math.log(3.0), 0.0]])
    present = torch.tensor([[True, False], [True, True]])  # means: log 3 and 0
    found = data_set_weights(losses, 1.0, present)
    torch.testing.assert_close(found, torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(normalise(found, present), torch.tensor([[1.0, 0.0], [0.25, 0.75]]))


def test_a_teacher_all_but_out_of_the_mix_speaks_alone_where_it_is_alone():
    weights = torch.tensor([1.0, 8e-40])  # below the smallest normal float32
    found = normalise(weights, torch.tensor([[False, True]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0]]))


def test_weights_of_absent_teachers_go_to_the_present():
    found = normalise(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([[False, True, True]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.5, 0.5]]))


def test_mixes_by_hand():
    logits = torch.tensor([[[0.8, 0.2], [0.2, 0.8]]]).log()
    shares = torch.tensor([[0.75, 0.25]])
    torch.testing.assert_close(mix(logits, shares, "probs").exp(), torch.tensor([[0.65, 0.35]]))
    odds = 4**0.75 * 0.25**0.25  # a weighted mean of logits multiplies the odds
    torch.testing.assert_close(
        mix(logits, shares, "logits").exp(), torch.tensor([[odds / (1 + odds), 1 / (1 + odds)]])
    )


def test_half_precision_mixes_in_single():
    logits = torch.tensor([[[30.0, -30.0]]], dtype=torch.bfloat16)
    assert mix(logits, torch.ones(1, 1), "probs").dtype == torch.float32


def test_cross_entropies_by_hand():
    logits = torch.tensor([[[0.8, 0.2], [0.5, 0.5]]]).log()
    found = cross_entropies(logits, torch.tensor([1]))
    torch.testing.assert_close(found, torch.tensor([[-math.log(0.2), -math.log(0.5)]]))


def a_good_teacher_and_noise() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels and presence of 200 clips."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    good = 3.0 * torch.nn.functional.one_hot(labels, 4) + torch.randn(200, 4, generator=generator)
    noise = 3.0 * torch.randn(200, 4, generator=generator)
    return torch.stack([good, noise], dim=1), labels, torch.ones(200, 2, dtype=torch.bool)


def test_a_useless_teacher_is_silenced_by_the_chosen_temperature():
    logits, labels, present = a_good_teacher_and_noise()
    losses = cross_entropies(logits, labels)
    chosen = choose_temperature(logits, labels, present, [0.01, 0.1, 1.0, 10.0], "probs", losses, present)
    assert data_set_weights(losses, chosen, present)[1] < 0.01


@pytest.mark.parametrize(("swapped", "chosen"), [(False, 0.01), (True, 100.0)])
def test_the_temperature_is_chosen_for_the_weights_of_the_mix(swapped: bool, chosen: float):
    """Those may come of other clips than the ones that judge the mix, and there the better teacher may be the other."""
    logits, labels, present = a_good_teacher_and_noise()
    losses = cross_entropies(logits.flip(1) if swapped else logits, labels)
    assert choose_temperature(logits, labels, present, [0.01, 100.0], "probs", losses, present) == chosen


def test_teachers_alike_are_weighed_alike():
    labels = torch.arange(40) % 2
    logits = torch.randn(40, 1, 2, generator=torch.Generator().manual_seed(0)).expand(-1, 2, -1)
    present = torch.ones(40, 2, dtype=torch.bool)
    losses = cross_entropies(logits, labels)
    assert choose_temperature(logits, labels, present, [0.1, 5.0], "logits", losses, present) == 5.0


def test_clips_without_teacher_do_not_choose():
    labels = torch.tensor([0, 1])
    logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[math.nan] * 2] * 2])
    present = torch.tensor([[True, True], [False, False]])
    losses = cross_entropies(logits, labels)
    assert choose_temperature(logits, labels, present, [0.01, 100.0], "probs", losses, present) == 0.01


def test_nonsense_is_refused():
    losses, present = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="above 0"):
        weights("per_sample", losses, 0.0, present)
    with pytest.raises(ValueError, match="disagree"):
        weights("uniform", losses, 1.0, present[:1])
    with pytest.raises(ValueError, match="disagree"):
        mix(torch.zeros(2, 3, 4), torch.zeros(2, 1), "probs")
    with pytest.raises(ValueError, match="no clip"):
        data_set_weights(losses, 1.0, ~present)
    with pytest.raises(ValueError, match="no candidate"):
        choose_temperature(torch.zeros(2, 3, 4), torch.zeros(2).long(), present, [], "probs", losses, present)


def judged(clips, skills, seed=0, classes=4):
    """Teachers whose logit of the truth is raised by their skill, all as noisy, and the truth."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (clips,), generator=generator)
    noise = torch.randn(clips, len(skills), classes, generator=generator)
    truth = torch.nn.functional.one_hot(labels, classes)[:, None]
    return torch.tensor(skills)[:, None] * truth + 1.5 * noise, labels


def everyone(logits):
    return torch.ones(logits.shape[:2], dtype=torch.bool)


spaces = pytest.mark.parametrize("space", ["logits", "probs"])


@spaces
def test_learned_weights_are_the_best_of_a_grid(space):
    """With many clips nothing is gained by a pull, and no other weights, calibrated, make the clips likelier."""
    logits, labels = judged(1500, [2.0, 1.0, -1.0])
    there = everyone(logits)

    def loss(shares):
        mixed = mix(logits, normalise(torch.tensor(shares), there), space)
        return nll(mixed / fit_temperature(mixed, labels), labels)

    found = learn_weights(logits, labels, there, space, apart(logits))
    assert found.sum() == pytest.approx(1)
    grid = [(a / 20, b / 20, (20 - a - b) / 20) for a in range(21) for b in range(21 - a)]
    assert loss(found.tolist()) < min(map(loss, grid)) + 1e-5


def test_at_a_temperature_of_one_learned_weights_are_those_of_em():
    """Labels drawn from a mix of two teachers: the mix needs no temperature, and EM finds its weights."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 2, 3, generator=generator)
    probs = logits.softmax(-1)
    drawn = torch.multinomial((torch.tensor([0.7, 0.3])[:, None] * probs).sum(1), 1, generator=generator)[
        :, 0
    ]
    of_truth = probs[torch.arange(4000), :, drawn]
    shares = torch.tensor([0.5, 0.5])
    for _ in range(500):
        responsible = shares * of_truth
        shares = (responsible / responsible.sum(1, keepdim=True)).mean(0)
    torch.testing.assert_close(
        learn_weights(logits, drawn, everyone(logits), "probs", apart(logits)), shares, atol=0.02, rtol=0
    )


def apart(logits: torch.Tensor) -> torch.Tensor:
    """Every clip in a group of its own."""
    return torch.arange(len(logits))


@pytest.mark.parametrize(("people", "expected"), [(12, 5), (4, 4), (2, 2)])
def test_the_parts_keep_groups_whole_however_few(people, expected):
    groups = torch.arange(60) % people
    parts = _parts(torch.arange(60) // 6, groups)
    assert len(parts) == expected
    assert sorted(torch.cat(parts).tolist()) == list(range(60))
    for one, two in itertools.combinations(parts, 2):
        assert not set(groups[one].tolist()) & set(groups[two].tolist())


def test_the_parts_of_one_person_deal_every_class():
    labels = torch.arange(60) // 6  # sorted by class, as annotations often are
    for part in _parts(labels, torch.zeros(60).long()):
        assert set(labels[part].tolist()) == set(range(10))
    assert _parts(labels[:1], torch.zeros(1).long()) == []


@spaces
@pytest.mark.parametrize("clips", [40, 400])
def test_a_harmful_teacher_is_dropped(space, clips):
    logits, labels = judged(clips, [2.0, 2.0, -2.0])
    found = learn_weights(logits, labels, everyone(logits), space, apart(logits))
    assert found[2] == 0
    assert (found[:2] > 0.2).all()


@spaces
def test_few_clips_leave_teachers_alike_more_even_than_no_pull(space):
    """Ten clips, four equal teachers: what differs between them is chance."""
    uneven = []
    for seed in range(8):
        logits, labels = judged(10, [1.5] * 4, seed)
        uneven.append(
            (learn_weights(logits, labels, everyone(logits), space, apart(logits)) - 0.25).abs().max().item()
        )
    assert sorted(uneven)[4] < 0.15


@spaces
def test_learned_weights_of_any_presence_are_a_distribution(space):
    logits, labels = judged(30, [2.0, 1.0, 0.5], seed=3)
    there = torch.rand(30, 3, generator=torch.Generator().manual_seed(0)) < 0.6
    there[:, 2] = False
    logits[~there] = math.nan
    found = learn_weights(logits, labels, there, space, apart(logits))
    assert found[2] == 0
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(1)
    assert torch.equal(found, learn_weights(logits, labels, there, space, apart(logits)))


def test_one_clip_teaches_no_weights():
    logits, labels = judged(1, [3.0, 0.0])
    found = learn_weights(logits, labels, everyone(logits), "probs", apart(logits))
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5]), atol=0.01, rtol=0)
    with pytest.raises(ValueError, match="no clip"):
        learn_weights(logits, labels, ~everyone(logits), "probs", apart(logits))
