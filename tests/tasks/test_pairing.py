"""Two scorecards on the same clips, with figures worked by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tasks.clips import Clip, Video
from tasks.pairing import by_class, by_slice, paired, unpaired
from tasks.params import Evaluate
from tasks.scorecard import Scorecard

EVALUATE = Evaluate(clips=[1], crops=[1], bins=10, bootstrap=500)


def card(predicted, true="aabb", confidence=0.75, prob_true=0.5, light="xyxy"):
    """Four clips c0..c3 of head verb, one letter each."""
    table = pd.DataFrame(
        {
            "clip_id": [f"c{n}" for n in range(len(true))],
            "head": "verb",
            "true": list(true),
            "predicted": list(predicted),
            "confidence": confidence,
            "prob_true": prob_true,
            "slice:light": list(light),
        }
    )
    return Scorecard(table)


def test_of_four_clips_one_more_is_right():
    first, second = card("abab").said("verb"), card("aabb", prob_true=0.25).said("verb")
    found = paired(first, second, EVALUATE)
    assert (found["top1"].before, found["top1"].after, found["top1"].change) == (0.5, 1.0, 0.5)
    assert found["nll"].change == pytest.approx(np.log(2))
    assert found["nll"].interval == pytest.approx((np.log(2), np.log(2)))  # the same on every clip
    assert found["ece"].before == pytest.approx(0.25)  # sure of 3 in 4, right in 2 of 4
    assert found["ece"].after == pytest.approx(0.25)
    low, high = found["top1"].interval
    assert 0 <= low < 0.5 < high <= 1


def test_a_version_against_itself_does_not_differ():
    said = card("abab").said("verb")
    for both in paired(said, said, EVALUATE).values():
        assert both.change == 0
        assert both.interval == (0, 0)


def test_classes_and_slices_stand_with_the_largest_loss_first():
    first, second = card("aaba").said("verb"), card("bbbb").said("verb")
    assert [(p.name, p.clips, p.before, p.after) for p in by_class(first, second)] == [
        ("a", 2, 1.0, 0.0),
        ("b", 2, 0.5, 1.0),
    ]
    assert [(p.name, p.change) for p in by_slice(first, second)] == [("light: x", -0.5), ("light: y", 0.0)]


def test_other_labels_are_not_paired():
    first, second = card("aabb").said("verb"), card("aabb", true="abab").said("verb")
    with pytest.raises(ValueError, match="same clips"):
        paired(first, second, EVALUATE)
    assert unpaired(first, second, EVALUATE)["top1"].interval is None


def test_the_digest_names_clips_and_labels_and_nothing_else():
    assert card("aabb").digest == card("bbaa", confidence=0.1, light="zzzz").digest
    assert card("aabb").digest != card("aabb", true="abab").digest


def test_an_action_is_right_where_its_heads_are_and_not_where_its_name_reads_the_same():
    """Names of an action are joined by spaces, which classes may hold too."""
    rows = [
        ("action", "put down cup", "put down cup"),
        ("noun", "down cup", "cup"),
        ("verb", "put", "put down"),
    ]  # by the alphabet, as a release has them
    table = pd.DataFrame(rows, columns=["head", "true", "predicted"])
    table = table.assign(clip_id="c0", confidence=[0.9 * 0.8, 0.9, 0.8], prob_true=0.5)
    assert Scorecard(table).said("action").top1.tolist() == [0.0]
    own = table.assign(confidence=[0.75, 0.9, 0.8])  # a head of the data's own, whose classes read the same
    assert Scorecard(own).said("action").top1.tolist() == [1.0]
    assert Scorecard(table[:1]).said("action").top1.tolist() == [1.0]  # a head of that name, not put together


def test_a_probability_that_underflowed_has_a_finite_nll():
    assert np.isfinite(card("aabb", prob_true=0.0).said("verb").nll).all()


def test_a_scorecard_takes_one_network_of_a_report_and_the_clips_slices(tmp_path):
    rows = [
        {"clip_id": clip, "name": name, "seed": seed, "head": "verb", "true": "a", "predicted": "a",
         "confidence": 0.5, "prob_true": 0.5, "confidence_trained": 0.4, "prob_true_trained": 0.4}
        for name in ("baseline", "student") for seed in (0, 1) for clip in ("c1", "c0")
    ]  # fmt: skip
    clips = [
        Clip("c0", "v", 0, 1, "g", "test", {"verb": "a"}, {"light": "day"}),
        Clip("c1", "v", 0, 1, "g", "test", {"verb": "a"}, {}),
    ]
    videos = {"v": Video("v", "0123", 1, "h264", 64, 48, 0, 10.0, 1.0, "decord", 0, False, "")}
    found = Scorecard.of(pd.DataFrame(rows), "student", 1, clips, videos)
    assert found.table[["clip_id", "slice:light"]].to_numpy().tolist() == [["c0", "day"], ["c1", ""]]
    assert Scorecard.of(pd.DataFrame(rows), "student", 2, clips, videos) is None
    moved = [replace(clips[0], stop_s=0.5), clips[1]]
    mended = {"v": replace(videos["v"], sha256="4567")}
    others = [
        Scorecard.of(pd.DataFrame(rows), "student", 1, moved, videos),
        Scorecard.of(pd.DataFrame(rows), "student", 1, clips, mended),
        Scorecard(found.table.drop(columns=["start_s", "stop_s", "video_sha256"])),  # before these were kept
    ]
    assert len({each.digest for each in [found, *others]}) == 4
    found.write(tmp_path)
    pd.testing.assert_frame_equal(Scorecard.read(tmp_path).table, found.table)
    assert Scorecard.read(tmp_path / "elsewhere") is None
