"""Views: pure functions of (clip, seed, number), inside the clip and the frame, golden sampling."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.clips import Clip
from tasks.views import Jitter, View, Views, evaluation_views, training_view

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden.json").read_text())
JITTER = Jitter(brightness=0.25, contrast=0.25, saturation=0.25, hue=0.1)
VIEWS = Views(frames=8, size=32, per_clip=3, zoom=(1.15, 1.43), test_zoom=1.0, flip=True, jitter=JITTER)


def clip(start_s=1.0, stop_s=3.0, clip_id="a"):
    return Clip(clip_id, "a.mp4", start_s, stop_s, "g", "train", {}, {})


def test_the_same_clip_seed_and_epoch_give_the_same_view():
    assert training_view(clip(), VIEWS, 1, 2) == training_view(clip(), VIEWS, 1, 2)


def test_epochs_cycle_through_the_views():
    assert training_view(clip(), VIEWS, 1, 2) == training_view(clip(), VIEWS, 1, 5)


@pytest.mark.parametrize("other", [(clip(clip_id="b"), 1, 2), (clip(), 2, 2), (clip(), 1, 1)])
def test_another_clip_seed_or_number_gives_another_view(other):
    name, seed, epoch = other
    assert training_view(name, VIEWS, seed, epoch).zoom != training_view(clip(), VIEWS, 1, 2).zoom


@given(st.integers(0, 1000), st.integers(0, 20), st.floats(0.3, 3.0))
def test_a_training_view_lies_in_its_clip_and_in_its_frame(seed, epoch, aspect):
    view = training_view(clip(), VIEWS, seed, epoch)
    assert all(1.0 <= time_s < 3.0 for time_s in view.times_s)
    assert list(view.times_s) == sorted(view.times_s)
    segments = np.floor((np.array(view.times_s) - 1.0) / 0.25)
    assert segments.tolist() == list(range(8))  # one moment of every segment
    x0, y0, x1, y1 = view.window(aspect)
    assert -1e-9 <= x0 < x1 <= 1 + 1e-9
    assert -1e-9 <= y0 < y1 <= 1 + 1e-9
    assert (x1 - x0) * aspect == pytest.approx(y1 - y0)  # square on the screen
    assert 1.15 <= view.zoom <= 1.43


def test_the_window_of_a_wide_frame_worked_by_hand():
    view = View(times_s=(0.0,), frame_step_s=1.0, zoom=2.0, across=0.5, down=1.0, flip=False)
    assert view.window(2.0) == pytest.approx((0.375, 0.5, 0.625, 1.0))


def test_a_single_view_at_test_takes_the_middle_of_each_segment():
    (view,) = evaluation_views(clip(0.0, 4.0), VIEWS)
    assert view.times_s == pytest.approx([0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75])
    assert (view.across, view.down, view.flip, view.brightness) == (0.5, 0.5, False, 1.0)


def test_clips_at_test_interleave():
    first, second = evaluation_views(clip(0.0, 4.0), VIEWS, clips=2)
    together = sorted([*first.times_s, *second.times_s])
    assert np.diff(together) == pytest.approx(np.full(15, 0.25))


def test_three_crops_lie_at_start_middle_and_end():
    views = evaluation_views(clip(), VIEWS, clips=2, crops=3)
    wide, high = 16 / 9, 9 / 16
    assert [view.window(wide)[0] for view in views[:3]] == pytest.approx([0, 0.21875, 0.4375])
    assert [view.window(wide)[1] for view in views[:3]] == pytest.approx([0, 0, 0])
    assert [view.window(high)[1] for view in views[:3]] == pytest.approx([0, 0.21875, 0.4375])


@pytest.mark.parametrize(
    "case",
    [case for case in GOLDEN["frame_sampling_at_test"] if case["kind"] == "uniform"],
    ids=lambda case: f"{case['length']}-frames-{case['frames']}",
)
def test_uniform_sampling_takes_the_released_codes_frames(case):
    """Ours in seconds, theirs in frames with edges rounded twice: never more than one frame apart."""
    rate_hz = 30.0
    views = VIEWS.model_copy(update={"frames": case["frames"]})
    (view,) = evaluation_views(clip(0.0, (case["length"] - 1) / rate_hz), views)
    nearest = np.rint(np.array(view.times_s) * rate_hz)
    assert np.abs(nearest - np.array(case["indices"])).max() <= 1
    assert np.abs(np.array(view.times_s) * rate_hz - np.array(case["indices"])).mean() < 0.8
