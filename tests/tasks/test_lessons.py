"""From teachings to lessons: absent teachers have no say, useless ones little, and no clip teaches itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.calibration import fit_temperature
from tasks.clips import NO_LABEL, Clip, folds
from tasks.learner import Hints
from tasks.lessons import mixed
from tasks.params import Ensemble
from tasks.teach import Teachings, _knows
from tasks.train_teacher import NO_FOLD

LABELS = {"action": np.array([0, 1, 2, 0])}
VAL_LABELS = {"action": np.array([0, 1, 2])}
CANDIDATES = [0.05, 1.0, 5.0]


def teacher(sureness, present=(True,) * 4, views=2):
    """Says the truth with this logit (negative: a lie)."""
    train = np.zeros((4, views, 3), np.float32)
    train[np.arange(4), :, LABELS["action"]] = sureness
    val = np.repeat(np.eye(3, dtype=np.float32)[:, None] * sureness, views, axis=1)
    return Teachings({"action": train}, np.array(present), {"action": val}, np.ones(3, bool), None)


def mix(bank, weights="per_sample", gamma=1e9, space="probs", views="same", held_out=True):
    """Per-sample weights at a huge γ are uniform and leave the mix as it is, which hands can follow."""
    ensemble = Ensemble(
        teachers=list(bank), weights=weights, weights_temperature=gamma, space=space, views=views
    )
    return mixed(
        ensemble, bank, LABELS, VAL_LABELS, CANDIDATES, held_out, np.ones(4, bool), np.arange(4), np.arange(3)
    )


def test_a_mix_of_probabilities_worked_by_hand():
    lessons = mix({"sure": teacher(np.log(8)), "blind": teacher(0.0)}).lessons
    assert lessons.log_probs["action"].shape == (4, 2, 3)
    assert np.exp(lessons.log_probs["action"][0, 0]) == pytest.approx(
        [(0.8 + 1 / 3) / 2, *[(0.1 + 1 / 3) / 2] * 2]
    )


def test_the_mean_over_views_worked_by_hand():
    said = teacher(0.0)
    said.train["action"][:, 0] = np.log([8, 1, 1])
    lessons = mix({"one": said}, views="mean").lessons
    expected = (np.array([0.8, 0.1, 0.1]) + 1 / 3) / 2
    assert np.exp(lessons.log_probs["action"]) == pytest.approx(np.broadcast_to(expected, (4, 2, 3)))


@pytest.mark.parametrize("held_out", [True, False])
def test_a_cautious_mix_of_good_teachers_is_sharpened(held_out):
    found = mix({"a": teacher(2.0), "b": teacher(1.0)}, "uniform", 1.0, held_out=held_out)
    assert found.temperature["action"] < 0.6  # of four clips, with a prior worth one
    assert np.exp(found.lessons.log_probs["action"][0, 0]).max() > 0.85  # 0.68 before
    assert mix({"a": teacher(2.0), "b": teacher(1.0)}).temperature["action"] == 1.0  # has seen the label


def test_an_absent_teacher_has_no_say():
    sure = teacher(np.log(8), present=(True, False, True, False))
    lessons = mix({"sure": sure, "blind": teacher(0.0, present=(True, True, False, False))}).lessons
    assert np.exp(lessons.log_probs["action"][1, 0]) == pytest.approx([1 / 3] * 3)
    assert np.exp(lessons.log_probs["action"][2, 0]) == pytest.approx([0.1, 0.1, 0.8])
    assert lessons.present.tolist() == [True, True, True, False]


def test_auto_gamma_silences_a_liar():
    found = mix({"good": teacher(1.0), "liar": teacher(-3.0)}, "data_set", "auto")
    assert found.weights_temperature["action"] < 5
    assert found.weights["action"]["liar"] < 1e-6


@pytest.mark.parametrize("held_out", [True, False])
def test_learned_weights_leave_a_liar_out_where_it_has_company(held_out):
    """The second clip was seen by the liar alone, and somebody has to speak of it."""
    good, liar = teacher(1.0, present=(True, False, True, True)), teacher(-1.0)
    found = mix({"good": good, "liar": liar}, "learned", "auto", held_out=held_out)
    assert found.weights["action"] == pytest.approx({"good": 0.75, "liar": 0.25})
    said = np.exp(found.lessons.log_probs["action"][:, 0])
    assert said[0].argmax() == 0
    assert said[1].argmin() == 1
    assert found.weights_temperature == {"action": 1.0}


@pytest.mark.parametrize(("held_out", "heard"), [(True, "all_round"), (False, "of_validation")])
def test_learned_weights_come_from_clips_that_teachers_did_not_learn_from(held_out, heard):
    """Of cross-fitted teachers the student hears what they say out-of-fold, so that is what they are weighed by."""
    of_validation, all_round = teacher(-2.0), teacher(2.0)
    for said in (of_validation, all_round):
        said.val["action"][:] *= -1  # the other way round there
    found = mix({"of_validation": of_validation, "all_round": all_round}, "learned", held_out=held_out)
    assert found.weights["action"][heard] > 0.5
    if held_out:
        assert found.weights["action"] == pytest.approx({"all_round": 1.0, "of_validation": 0.0})


def test_the_digest_names_the_content():
    one, other = mix({"a": teacher(1.0)}).lessons, mix({"a": teacher(1.1)}).lessons
    assert one.digest != other.digest
    assert one.digest == mix({"a": teacher(1.0)}).lessons.digest


def test_who_never_saw_a_class_says_nothing_of_it():
    """Of folds a, b and c: only a holds `rare`, which its own network thus never saw, nor one of sound `dull`."""

    def clip(name, verb, group, split="train"):
        return Clip(name, "v", 0, 1, group, split, {"verb": verb, "noun": "cup"}, {})

    train = [
        clip("0", "cut", "a"),
        clip("1", "rare", "a"),
        clip("2", "cut", "b"),
        clip("3", "dull", "b"),
        clip("4", "dull", "c"),
        clip("5", "", "a", "unlabelled"),
        clip("6", "", "stranger", "unlabelled"),
    ]
    member = np.array([0, 0, 1, 1, 2, 0, NO_FOLD])
    pictures, sound = np.ones(7, bool), np.array([1, 1, 1, 1, 0, 1, 1], bool)
    assert np.flatnonzero(~_knows(train, pictures, member)).tolist() == [1]
    assert np.flatnonzero(~_knows(train, sound, member)).tolist() == [1, 3]
    assert _knows(
        train, pictures, np.where(member == NO_FOLD, NO_FOLD, 0)
    ).all()  # one fold: it learned from all


def test_teachings_come_back_from_disk(tmp_path):
    said = teacher(2.0, present=(True, False, True, True))
    said.save(tmp_path / "a.safetensors")
    back = Teachings.load(tmp_path / "a.safetensors")
    assert np.array_equal(back.train["action"], said.train["action"])
    assert np.array_equal(back.train_present, said.train_present)
    assert np.array_equal(back.val["action"], said.val["action"])


def test_hints_come_back_where_they_are_wanted(tmp_path):
    """They are far larger than all else, and a lesson without them is another lesson."""
    given = Hints(np.ones((4, 2, 3, 5), np.float16), np.array([0, 1, 0, NO_FOLD]), np.ones(4, bool))
    replace(teacher(2.0), hints=given).save(tmp_path / "a.safetensors")
    assert Teachings.load(tmp_path / "a.safetensors").hints is None
    back = Teachings.load(tmp_path / "a.safetensors", hints=True).hints
    assert back is not None
    assert np.array_equal(back.moments, given.moments)
    assert back.member.tolist() == given.member.tolist()
    assert back.present.tolist() == [True, True, True, False]


def clips(groups):
    return [Clip(str(n), "v", 0, 1, group, "train", {}, {}) for n, group in enumerate(groups)]


def test_folds_keep_groups_whole_and_even():
    found = folds(clips("aaaabbbccd"), 2)
    assert found == {"a": 0, "b": 1, "c": 1, "d": 0}


def test_more_folds_than_groups_are_refused():
    with pytest.raises(ValueError, match=r"2 group\(s\) cannot make 3 folds"):
        folds(clips("aab"), 3)


def test_clips_without_labels_are_mixed_by_the_data_set_and_calibrated_on_validation():
    bank = {"good": teacher(2.0), "bad": teacher(-2.0)}
    ensemble = Ensemble(
        teachers=["good", "bad"], weights="per_sample", weights_temperature=1.0, space="probs", views="same"
    )
    labels = {"action": np.array([0, 1, 2, NO_LABEL])}
    strangers = np.array([False, False, False, True])
    found = mixed(ensemble, bank, labels, VAL_LABELS, CANDIDATES, True, strangers, np.arange(4), np.arange(3))
    alone = mixed(
        Ensemble(teachers=["good"], weights="uniform", weights_temperature=1.0, space="probs", views="same"),
        {"good": bank["good"]},
        labels,
        VAL_LABELS,
        CANDIDATES,
        True,
        strangers,
        np.arange(4),
        np.arange(3),
    )
    assert found.temperature == {"action": 1.0}
    assert 0 < found.unlabelled_temperature["action"] < 1.0
    said = np.exp(found.lessons.log_probs["action"][3, 0])
    assert said.argmax() == 0  # what the good teacher says, though no label tells that it is good
    assert np.exp(alone.lessons.log_probs["action"][3, 0]).max() > 0.9
    assert mix(bank).unlabelled_temperature == {}


@pytest.mark.parametrize("weights", ["uniform", "per_sample"])
def test_in_a_group_with_labels_one_network_speaks_of_the_others_too(weights):
    """Its clips without a label are calibrated as those with one, out-of-fold, not as what all networks say."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 200)
    sure, unsure = (
        (scale * (np.eye(3)[truth][:, None] + random.normal(0.0, 0.5, (200, 1, 3)))).astype(np.float32)
        for scale in (9.0, 1.0)
    )
    seen = np.ones(200, bool)
    bank = {"one": Teachings({"action": unsure}, seen, {"action": sure}, seen, None)}
    ensemble = Ensemble(
        teachers=["one"], weights=weights, weights_temperature=1.0, space="probs", views="same"
    )
    told = np.where(np.arange(200) < 100, truth, NO_LABEL)
    strangers = np.arange(200) >= 150
    found = mixed(
        ensemble,
        bank,
        {"action": told},
        {"action": truth},
        CANDIDATES,
        True,
        strangers,
        *[np.arange(200)] * 2,
    )
    said = found.lessons.log_probs["action"][:, 0]
    divisor = [
        float((unsure[row, 0, 0] - unsure[row, 0, 1]) / (said[row, 0] - said[row, 1]))
        for row in (0, 120, 160)
    ]
    assert divisor[2] == pytest.approx(found.unlabelled_temperature["action"], rel=1e-3)
    assert divisor[1] < 0.5 * divisor[2]
    if weights == "uniform":
        assert divisor[1] == pytest.approx(divisor[0], rel=1e-3)


def test_the_mean_over_views_is_what_is_calibrated():
    """It is more cautious than any view, so a temperature of single views would leave the lesson too cautious."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 300)
    logits = 2.0 * np.eye(3)[truth][:, None] + random.normal(0.0, 2.0, (300, 8, 3))
    said, seen = logits.astype(np.float32), np.ones(300, bool)
    bank = {"one": Teachings({"action": said}, seen, {"action": said}, seen, None)}
    nobody, labels = {"action": np.full(300, NO_LABEL)}, {"action": truth}

    def found(views):
        ensemble = Ensemble(
            teachers=["one"], weights="uniform", weights_temperature=1.0, space="probs", views=views
        )
        return mixed(
            ensemble, bank, nobody, labels, CANDIDATES, False, np.ones(300, bool), *[np.arange(300)] * 2
        )

    mean, same = found("mean"), found("same")
    probs = torch.from_numpy(logits).softmax(-1)
    by_hand = fit_temperature(probs.mean(1).log(), torch.from_numpy(truth))
    assert mean.unlabelled_temperature["action"] == pytest.approx(by_hand, rel=1e-3)
    assert mean.unlabelled_temperature["action"] < same.unlabelled_temperature["action"]
    assert np.allclose(
        mean.lessons.log_probs["action"][:, 0],
        (probs.mean(1).log() / by_hand).log_softmax(-1),
        atol=1e-3,
    )
