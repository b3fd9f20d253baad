"""Groups are shared out whole, evenly over the classes, the same way every time."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.splitting import Member, split_groups

members_lists = st.lists(
    st.builds(Member, st.sampled_from([f"g{n}" for n in range(12)]), st.sampled_from("abc"), st.just("")),
    min_size=1,
)


def members(groups: int, split: str = "") -> list[Member]:
    return [Member(f"g{group}", label, split) for group in range(groups) for label in "ab"]


@given(members_lists, st.integers(0, 5))
def test_every_group_once_and_no_class_untaught(drawn: list[Member], seed: int):
    split_of = split_groups(drawn, 0.2, 0.2, seed)
    assert set(split_of) == {member.group for member in drawn}
    assert {member.label for member in drawn if split_of[member.group] == "train"} == {m.label for m in drawn}
    assert split_of == split_groups(list(reversed(drawn)), 0.2, 0.2, seed)


def test_equal_groups_give_the_shares():
    assert Counter(split_groups(members(10), 0.2, 0.3, 0).values()) == {"train": 5, "val": 2, "test": 3}


def test_another_seed_draws_other_groups():
    assert len({str(sorted(split_groups(members(10), 0.2, 0.3, seed).items())) for seed in range(5)}) > 1


def test_given_splits_stay_and_the_rest_is_drawn():
    given_members = [Member("fixed", "a", "test"), Member("fixed", "b", "test"), *members(9)]
    split_of = split_groups(given_members, 0.1, 0.1, 0)
    assert split_of["fixed"] == "test"
    assert Counter(split_of.values()) == {"train": 8, "val": 1, "test": 1}


def test_val_is_carved_from_train_alone():
    given_members = [*members(8, "train"), Member("t", "a", "test")]
    split_of = split_groups(given_members, 0.2, 0.2, 0)
    assert split_of["t"] == "test"
    assert Counter(split_of.values())["val"] == 2  # a quarter, as 0.2 is beside 0.6


@pytest.mark.parametrize("tested", [2, 10, 40, 100, 180])
def test_val_has_its_share_of_what_a_given_test_leaves(tested: int):
    """Of 200 groups; val is 0.1 and train 0.7 of the whole where nothing is given."""
    fixed = [Member(f"t{group}", label, "test") for group in range(tested) for label in "ab"]
    split_of = split_groups([*fixed, *members(200 - tested, "train")], 0.1, 0.2, 0)
    assert Counter(split_of.values())["val"] == pytest.approx((200 - tested) / 8, abs=1)


def test_what_a_small_test_lacks_is_drawn_where_the_rest_is_open_and_a_large_one_gets_no_more():
    few, many = ([Member(f"t{group}", "a", "test") for group in range(tested)] for tested in (5, 50))
    left = [Member(f"g{group}", "a", "") for group in range(50)]
    assert Counter(split_groups([*few, *left], 0.2, 0.2, 0).values()) == {"train": 33, "val": 11, "test": 11}
    assert Counter(split_groups([*many, *left], 0.2, 0.2, 0).values()) == {"train": 38, "val": 12, "test": 50}


def test_full_splits_are_left_alone():
    given_members = [Member("x", "a", "train"), Member("y", "a", "val"), Member("z", "a", "test")]
    assert split_groups(given_members, 0.3, 0.3, 0) == {"x": "train", "y": "val", "z": "test"}


def test_small_data_still_fills_every_split():
    assert set(split_groups(members(3), 0.1, 0.1, 0).values()) == {"train", "val", "test"}
