"""Modalities: each renders the same view, boxes and flow and sound following its crop, flip and times."""

import json

import cv2
import numpy as np
import pytest

from tasks.clips import Clip, Video
from tasks.modalities.audio import Audio, mel_filters
from tasks.modalities.detections import Detections
from tasks.modalities.flow import Flow
from tasks.modalities.frames import crop, grid_indices, shrink
from tasks.modalities.modality import RawVideo, merge
from tasks.modalities.rgb import Rgb, colours
from tasks.shards import Rows
from tasks.views import View

RGB = Rgb(kind="rgb", shards=1, short_side=48, rate_hz=10, quality=98, change_s=None)
FLOW = Flow(kind="flow", shards=1, short_side=48, rate_hz=10, bound_per_s=2.0, quality=95)
AUDIO = Audio(kind="audio", shards=1, rate_hz=8000, n_fft=512, window=400, hop=80, mels=32, window_s=0.2)
BOXES = Detections(kind="detections", shards=1, max_boxes=3, visible=0.2, nearest_s=0.2, moments=1)


def rows_of(rows):
    """Rows as `Shards` gives them."""

    class Memory(Rows):
        def payload(self, number):
            return memoryview(rows[number].payload)

    return Memory(np.array([row.time_s for row in rows]), rows[0].aspect, [])


def raw(path, width=64, height=48, audio_rate_hz=0, detections=None):
    video = Video(
        path.name,
        "",
        1,
        "h264",
        width,
        height,
        0,
        10.0,
        2.0,
        "decord",
        audio_rate_hz,
        detections is not None,
        "",
    )
    return RawVideo(path, detections or path, video)


def view(**changes):
    values = {
        "times_s": (0.2, 0.8),
        "frame_step_s": 0.6,
        "zoom": 1.0,
        "across": 0.5,
        "down": 0.5,
        "flip": False,
    }
    return View(**(values | changes))


def moving_square(count, step=2, size=(64, 48)):
    """A textured square that goes right by `step` pixels a frame."""
    texture = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    frames = []
    for number in range(count):
        frame = np.full((size[1], size[0], 3), 100, np.uint8)
        frame[12:36, 4 + step * number : 28 + step * number] = texture
        frames.append(frame)
    return frames


def test_the_grid_takes_each_frame_once_and_covers_the_span():
    times_s = np.arange(60) / 30
    assert grid_indices(times_s, [(0.5, 1.0)], 10) == [15, 18, 21, 24, 27, 30]
    assert grid_indices(times_s, [(0.5, 0.7), (0.6, 1.0)], 10) == [15, 18, 21, 24, 27, 30]
    assert grid_indices(np.arange(10) / 5, [(0, 2)], 30) == list(range(10))  # a slow video gives what it has
    assert grid_indices(np.array([0.0]), [(0, 2)], 10) == [0]
    assert grid_indices(np.array([]), [(0, 2)], 10) == []


def test_shrinking_never_enlarges_and_keeps_the_aspect():
    assert shrink(np.zeros((100, 200, 3), np.uint8), 50).shape == (50, 100, 3)
    assert shrink(np.zeros((40, 60, 3), np.uint8), 50).shape == (40, 60, 3)


def test_cropping_takes_the_window():
    frame = np.zeros((10, 20), np.uint8)
    frame[5:, 10:] = 255
    assert crop(frame, (0.5, 0.5, 1.0, 1.0), 8).min() == 255
    assert crop(frame, (0.0, 0.0, 0.5, 0.5), 8).max() == 0


def test_rgb_shows_the_frames_of_the_views_times(films, tmp_path):
    path = films.write(tmp_path / "a.mp4", films.grey(20))
    rows = rows_of(list(RGB.extract(raw(path), [(0.0, 2.0)])))
    rendered = RGB.render(rows, view(times_s=(0.2, 0.81, 1.5)), 16)
    assert rendered.shape == (3, *RGB.shape(3, 16)[1:])
    assert [films.number(frame * 255) for frame in rendered] == [2, 8, 15]


@pytest.mark.parametrize("modality", [RGB, FLOW])
def test_a_clip_between_two_moments_of_the_grid_has_frames(films, tmp_path, modality):
    path = films.write(tmp_path / "a.mp4", moving_square(60, step=0), rate_hz=30)

    def clip(start_s, stop_s):
        return Clip("a", "a.mp4", start_s, stop_s, "", "train", {}, {})

    between, gone = clip(0.52, 0.58), clip(1.52, 1.58)
    rows = rows_of(list(modality.extract(raw(path), [(between.start_s, between.stop_s)])))
    assert not any(between.start_s <= time_s < between.stop_s for time_s in rows.times_s)
    assert modality.covers(rows, between)
    assert not modality.covers(rows, gone)
    assert not modality.covers(rows, clip(0.72, 0.95))  # longer than a step: nothing of it is there


def test_rgb_flips_after_the_crop(films, tmp_path):
    path = films.write(tmp_path / "a.mp4", moving_square(15))
    rows = rows_of(list(RGB.extract(raw(path), [(0.0, 1.4)])))
    plain, flipped = RGB.render(rows, view(across=0.0), 16), RGB.render(rows, view(across=0.0, flip=True), 16)
    assert np.array_equal(plain[..., ::-1], flipped)


def test_change_is_shown_beside_the_frame(films, tmp_path):
    path = films.write(tmp_path / "a.mp4", films.grey(20))
    rows = rows_of(list(RGB.extract(raw(path), [(0.0, 2.0)])))
    changing = RGB.model_copy(update={"change_s": 0.3})
    rendered = changing.render(rows, view(times_s=(0.2, 0.8)), 16)
    assert rendered.shape == changing.shape(2, 16)
    assert np.array_equal(rendered[:, :3], RGB.render(rows, view(times_s=(0.2, 0.8)), 16))
    assert rendered[:, 3:].mean() * 255 == pytest.approx(3 * 8, abs=1)  # three frames on, 8 levels each


def test_colours_that_change_nothing_are_the_identity():
    matrix, offset = colours(view())
    assert np.allclose(matrix, np.eye(3))
    assert not offset.any()


def test_colours_worked_by_hand():
    matrix, offset = colours(view(brightness=0.5))
    assert matrix @ [0.2, 0.4, 0.6] + offset == pytest.approx([0.1, 0.2, 0.3])
    matrix, offset = colours(view(contrast=0.0))
    assert matrix @ [0.2, 0.4, 0.6] + offset == pytest.approx([0.5, 0.5, 0.5])
    matrix, offset = colours(view(saturation=0.0))
    grey = 0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6
    assert matrix @ [0.2, 0.4, 0.6] + offset == pytest.approx([grey] * 3)
    matrix, offset = colours(view(hue=0.5, brightness=1.0))
    assert matrix @ [0.5, 0.5, 0.5] + offset == pytest.approx([0.5] * 3, abs=1e-3)  # grey has no hue


def test_flow_measures_speed_in_short_sides_a_second(films, tmp_path):
    path = films.write(tmp_path / "a.mp4", moving_square(15), options={"crf": "5"})
    rows = rows_of(list(FLOW.extract(raw(path), [(0.0, 1.4)])))
    rendered = FLOW.render(rows, view(times_s=(0.4,)), 48)
    square = rendered[0, :, 18:30, 10:20]  # inside the square in the middle crop
    assert np.median(square[0]) * FLOW.bound_per_s == pytest.approx(
        2 * 10 / 48, rel=0.1
    )  # 2 px a frame at 10 Hz
    assert abs(np.median(square[1])) < 0.02


def test_flow_grows_with_zoom_and_turns_with_a_flip(films, tmp_path):
    path = films.write(tmp_path / "a.mp4", moving_square(15), options={"crf": "5"})
    rows = rows_of(list(FLOW.extract(raw(path), [(0.0, 1.4)])))
    plain = FLOW.render(rows, view(times_s=(0.4,)), 32)
    flipped = FLOW.render(rows, view(times_s=(0.4,), flip=True), 32)
    assert np.array_equal(flipped[0, 0], -plain[0, 0][:, ::-1])
    assert np.array_equal(flipped[0, 1], plain[0, 1][:, ::-1])
    closer = FLOW.render(rows, view(times_s=(0.4,), zoom=1.5, across=0.3), 32)
    assert closer[0, 0].max() == pytest.approx(1.5 * plain[0, 0].max(), rel=0.15)


def test_a_video_slower_than_the_grid_has_flow(films, tmp_path):
    path = films.write(tmp_path / "a.mp4", moving_square(8), rate_hz=3)
    assert len(list(FLOW.extract(raw(path), [(0.0, 2.3)]))) == 7


def test_flow_is_not_measured_across_a_gap_between_spans(films, tmp_path):
    path = films.write(tmp_path / "a.mp4", moving_square(15))
    times = [row.time_s for row in FLOW.extract(raw(path), [(0.0, 0.2), (1.0, 1.2)])]
    assert times == pytest.approx([0.0, 0.1, 1.0, 1.1])


def test_a_tone_lights_its_mel_band_and_silence_has_no_sound(films, tmp_path):
    path = films.write(tmp_path / "a.mp4", films.grey(20), sound=films.tone(2.0, hertz=1000))
    rows = rows_of(list(AUDIO.extract(raw(path, audio_rate_hz=16000), [(0.0, 2.0)])))
    rendered = AUDIO.render(rows, view(times_s=(0.5, 1.0)), 16)
    assert rendered.shape == AUDIO.shape(2, 16)
    highest = 2595 * np.log10(1 + 4000 / 700)
    expected = 2595 * np.log10(1 + 1000 / 700) / highest * 33 - 1
    assert abs(rendered[0, 0].mean(axis=1).argmax() - expected) <= 1
    silent = films.write(tmp_path / "s.mp4", films.grey(20), sound=np.zeros((1, 32000), np.float32))
    assert list(AUDIO.extract(raw(silent, audio_rate_hz=16000), [(0.0, 2.0)])) == []


def test_the_papers_spectrograms(films, tmp_path):
    """1.116 s at 16 kHz, windows of 160 every 80 samples, 128 mels: 128 × 224, and no band is empty."""
    paper = Audio(
        kind="audio", shards=1, rate_hz=16000, n_fft=1024, window=160, hop=80, mels=128, window_s=1.116
    )
    assert paper.shape(16, 224) == (16, 1, 128, 224)
    assert (mel_filters(16000, 1024, 128).max(axis=1) > 0).all()
    path = films.write(tmp_path / "a.mp4", films.grey(20), sound=films.tone(2.0, hertz=1000))
    rows = rows_of(list(paper.extract(raw(path, audio_rate_hz=16000), [(0.0, 2.0)])))
    assert paper.render(rows, view(times_s=(0.8, 1.2)), 224).shape == (2, 1, 128, 224)


def test_sound_follows_the_views_times(films, tmp_path):
    sound = np.concatenate([films.tone(1.0, hertz=300), films.tone(1.0, hertz=3000)], axis=1)
    path = films.write(tmp_path / "a.mp4", films.grey(20), sound=sound)
    rows = rows_of(list(AUDIO.extract(raw(path, audio_rate_hz=16000), [(0.0, 2.0)])))
    rendered = AUDIO.render(rows, view(times_s=(0.5, 1.5)), 16)
    assert rendered[0, 0].mean(axis=1).argmax() < rendered[1, 0].mean(axis=1).argmax()


def test_a_clip_that_the_track_does_not_reach_has_no_sound(films, tmp_path):
    path = films.write(tmp_path / "a.mp4", films.grey(20), rate_hz=5, sound=films.tone(1.0))
    rows = rows_of(list(AUDIO.extract(raw(path, audio_rate_hz=16000), [(0.0, 4.0)])))
    there, beyond = (Clip("c", "a.mp4", start, start + 1, "g", "train", {}, {}) for start in (0.5, 2.0))
    assert AUDIO.covers(rows, there)
    assert not AUDIO.covers(rows, beyond)
    assert not AUDIO.covers(None, there)


def test_mel_filters_cover_every_frequency_between_the_corners():
    filters = mel_filters(16000, 1024, 40)
    assert filters.shape == (40, 513)
    assert (filters.max(axis=1) > 0).all()
    assert filters[:, 20:-20].sum(axis=0).min() > 0.5


def test_spans_merge():
    assert merge([(3, 4), (0, 1), (0.5, 2)]) == [(0, 2), (3, 4)]


def detection_rows(tmp_path, boxes, aspect=1.0):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"time_s": 0.2, "boxes": boxes}) + "\n")
    width, height = (64, 64) if aspect == 1 else (128, 64)
    return rows_of(list(BOXES.extract(raw(tmp_path / "a.mp4", width, height, detections=file), [(0.0, 1.0)])))


HAND = {"box": [0.5, 0.5, 0.75, 0.75], "category": "hand", "score": 0.9, "side": "left", "state": "contact"}
THING = {"box": [0.0, 0.0, 0.25, 0.25], "category": "object", "score": 0.8}


def test_boxes_follow_the_crop_worked_by_hand(tmp_path):
    rows = detection_rows(tmp_path, [HAND, THING])
    rendered = BOXES.render(rows, view(times_s=(0.2,), zoom=2.0, across=1.0, down=1.0), 16)
    assert rendered.shape == BOXES.shape(1, 16)
    assert rendered[0, 0] == pytest.approx([0, 0, 0.5, 0.5, 0.9, 1, 1, 2])
    assert not rendered[0, 1:].any()  # the thing lies outside the crop


def test_boxes_mirror_and_hands_change_sides(tmp_path):
    rows = detection_rows(tmp_path, [HAND])
    rendered = BOXES.render(rows, view(times_s=(0.2,), flip=True), 16)
    assert rendered[0, 0] == pytest.approx([0.25, 0.5, 0.5, 0.75, 0.9, 1, 2, 2])


def test_boxes_land_where_the_pixels_do(tmp_path):
    """One crop for all modalities: a white patch and its box end in the same place."""
    rows = detection_rows(tmp_path, [HAND], aspect=2.0)
    picture = np.zeros((64, 128), np.uint8)
    picture[32:48, 64:96] = 255
    chosen = view(times_s=(0.2,), zoom=1.3, across=0.7, down=0.4)
    x0, y0, x1, y1 = BOXES.render(rows, chosen, 64)[0, 0, :4]
    seen = cv2.findNonZero((crop(picture, chosen.window(2.0), 64) > 127).astype(np.uint8)).reshape(-1, 2)
    assert [x0, y0, x1, y1] == pytest.approx([*seen.min(0) / 64, *(seen.max(0) + 1) / 64], abs=0.03)


def test_boxes_far_from_the_views_times_are_not_shown(tmp_path):
    rows = detection_rows(tmp_path, [HAND])
    rendered = BOXES.render(rows, view(times_s=(0.2, 0.9)), 16)
    assert rendered[0].any()
    assert not rendered[1].any()


def test_only_the_best_boxes_stay(tmp_path):
    boxes = [{**THING, "box": [0.1 * n, 0.1, 0.1 * n + 0.1, 0.3], "score": 0.1 * n} for n in range(6)]
    rendered = BOXES.render(detection_rows(tmp_path, boxes), view(times_s=(0.2,)), 16)
    assert rendered[0, :, 4] == pytest.approx([0.5, 0.4, 0.3])


def test_boxes_are_looked_at_between_the_frames(tmp_path):
    file = tmp_path / "a.jsonl"
    frames = [{"time_s": 0.1 * n, "boxes": [{**THING, "score": 0.1 * n}]} for n in range(10)]
    file.write_text("".join(json.dumps(frame) + "\n" for frame in frames))
    rows = rows_of(list(BOXES.extract(raw(tmp_path / "a.mp4", detections=file), [(0.0, 1.0)])))
    finer = BOXES.model_copy(update={"moments": 2})
    rendered = finer.render(rows, view(times_s=(0.2, 0.6), frame_step_s=0.4), 16)
    assert rendered.shape == finer.shape(2, 16)
    assert rendered[:, 0, 4] == pytest.approx([0.1, 0.3, 0.5, 0.7])
