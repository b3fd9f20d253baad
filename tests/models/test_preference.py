"""When validation prefers one training to another: errors over groups, few of them, several rivals."""

import numpy as np
import pytest
from scipy.stats import norm

from models.preference import errors_asked_for, is_preferred, standard_error


def test_where_every_clip_is_a_group_the_error_is_that_of_a_mean():
    gain = np.random.default_rng(0).normal(size=50)
    assert standard_error(gain, np.arange(50)) == pytest.approx(gain.std(ddof=1) / np.sqrt(50))


def test_clips_repeated_within_their_group_tell_nothing_new():
    gain = np.random.default_rng(0).normal(size=12)
    repeated, groups = np.repeat(gain, 7), np.repeat(np.arange(12), 7)
    assert standard_error(repeated, groups) == pytest.approx(standard_error(gain, np.arange(12)))


def test_of_one_group_nothing_is_known_about_others():
    gain = np.full(500, 9.0)
    assert standard_error(gain, np.zeros(500, int)) == np.inf
    assert not is_preferred(gain, np.zeros(500, int))
    assert not is_preferred(np.zeros(0), np.zeros(0, int))


@pytest.mark.parametrize(("groups", "rivals", "errors"), [(10_000, 1, 1.0), (10_000, 4, 1.73), (3, 1, 1.32)])
def test_few_groups_and_many_rivals_ask_for_more(groups, rivals, errors):
    assert errors_asked_for(groups, rivals) == pytest.approx(errors, abs=0.005)


@pytest.mark.parametrize("people", [2, 3, 6, 40])
@pytest.mark.parametrize("rivals", [1, 5])
def test_chance_between_people_moves_a_choice_as_rarely_however_few_they_are(people, rivals):
    """Gains differ by person, not by clip: judged by clips, of three people the first would yield half the time."""
    random, draws, clips = np.random.default_rng(people), 2_000, 8
    groups, kept = np.repeat(np.arange(people), clips), 0
    for _ in range(draws):
        of_people = random.normal(size=(rivals, people))
        gains = np.repeat(of_people, clips, axis=1) + random.normal(0, 0.1, (rivals, people * clips))
        kept += not is_preferred(gains[gains.mean(axis=1).argmax()], groups, rivals)
    assert kept / draws > norm.cdf(1.0) - 0.03
