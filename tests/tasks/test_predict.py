"""Prediction from files, and what loading refuses. Networks are real and tiny; videos are written here."""

import json
import os
import signal
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from models.backbones.frames import Frames
from tasks import views as looks
from tasks.atomic import file_digest
from tasks.clips import Clip, Video
from tasks.errors import UserError
from tasks.extract import extract
from tasks.looking import Looker, extracted, in_memory, look_at_frames
from tasks.modalities.modality import RawVideo
from tasks.modalities.rgb import Rgb
from tasks.networks import Committee, Spec
from tasks.predict import identify, load, predict, refuse_pickles
from tasks.shards import Shards
from tasks.views import Jitter, Views

RGB = Rgb(kind="rgb", shards=1, short_side=48, rate_hz=7.0, quality=90, change_s=0.2)
VIEWS = Views(
    frames=4,
    size=32,
    per_clip=2,
    zoom=(1.0, 1.2),
    test_zoom=1.1,
    flip=False,
    jitter=Jitter(brightness=0, contrast=0, saturation=0, hue=0),
)
HEADS = {"verb": ["open", "cut", "stir"], "noun": ["pan", "tap"]}


def write_video(file, seconds=2.0, rate=30, size=(86, 64), options=None):
    """A colour gradient that changes over time, H.264."""
    width, height = size
    ramp = np.linspace(0, 255, width * height).reshape(height, width)
    with av.open(str(file), "w", options=options or {}) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(round(seconds * rate)):
            picture = np.stack([np.roll(ramp, 7 * number * (k + 1)) for k in range(3)], -1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file


@pytest.fixture(scope="module")
def committee():
    torch.manual_seed(0)
    backbone = Frames(
        kind="frames",
        name="test_convnext",
        pretrained=False,
        temporal="mean",
        normalise="none",
        dropout=0.0,
        drop_path=0.0,
    )
    spec = Spec(modality="rgb", modality_params=RGB, views=VIEWS, heads=HEADS, backbone=backbone)
    return Committee(spec, [spec.new_network()], {"verb": 2.0, "noun": 0.5})


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("videos") / "clip.mp4")


def raw_video(path, seconds=2.0, rate=30.0, width=86, height=64):
    return RawVideo(
        path,
        path,
        Video("clip.mp4", "0" * 64, 1, "h264", width, height, 0, rate, seconds, "decord", 0, False, ""),
    )


@pytest.mark.parametrize(
    ("rate", "span"), [(30, (0.0, 2.0)), (30, (0.31, 1.17)), (5, (0.0, 2.0)), (29, (1.9, 2.0))]
)
def test_prediction_sees_what_training_saw(tmp_path, rate, span):
    """The few rows that prediction decodes render to the same bits as the shard of the whole clip."""
    raw = raw_video(write_video(tmp_path / "clip.mp4", rate=rate), rate=float(rate))
    extract("rgb", RGB, {"clip.mp4": raw}, {"clip.mp4": [span]}, tmp_path / "rgb", tmp_path / "finished")
    rows = Shards(tmp_path / "rgb").rows("clip.mp4")
    clip = Clip("c", "clip.mp4", *span, "g", "test", {}, {})
    for view in looks.evaluation_views(clip, VIEWS, clips=3, crops=3):
        from_shard = RGB.render(rows, view, VIEWS.size)
        from_file = RGB.render(in_memory(extracted(RGB, raw, view.times_s)), view, VIEWS.size)
        assert np.array_equal(from_shard, from_file)


def test_probabilities_are_calibrated_and_ranked(committee, video):
    (found,) = predict([video], committee)
    assert found.error is None
    assert (found.start_s, found.stop_s) == (0.0, pytest.approx(2.0))
    assert {head: {name for name, _ in ranked} for head, ranked in found.heads.items()} == {
        head: set(classes) for head, classes in HEADS.items()
    }
    for ranked in found.heads.values():
        probs = [prob for _, prob in ranked]
        assert probs == sorted(probs, reverse=True)
        assert sum(probs) == pytest.approx(1, abs=1e-6)

    (view,) = looks.evaluation_views(Clip("c", "", 0.0, found.stop_s, "", "test", {}, {}), VIEWS)
    rendered = RGB.render(in_memory(extracted(RGB, raw_video(video), view.times_s)), view, VIEWS.size)
    logits = committee.logits(torch.from_numpy(rendered)[None])["verb"][0]
    expected = (logits / 2.0).softmax(-1)
    assert dict(found.heads["verb"]) == pytest.approx(
        dict(zip(HEADS["verb"], expected.tolist(), strict=True))
    )


@pytest.mark.parametrize("rate", [30, 5])
def test_a_decoded_clip_is_seen_as_its_video_is(tmp_path, rate):
    """Lossless, so that the frames of the file are those of the clip."""
    draw = np.random.default_rng(0)
    frames = draw.integers(0, 256, (2 * rate, 48, 64, 3), dtype=np.uint8)
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    with Looker(RGB, VIEWS, timeout_s=60, longest_s=None) as looker:
        from_file = looker.look(tmp_path / "clip.mkv", None)
    from_frames = look_at_frames(RGB, VIEWS, frames, rate)
    assert from_frames.stop_s == pytest.approx(from_file.stop_s, abs=0.01)  # Matroska counts in milliseconds
    assert np.array_equal(from_frames.shown, from_file.shown)


def test_a_looker_outlives_a_hang_and_a_death(video):
    with Looker(RGB, VIEWS, timeout_s=20, longest_s=None) as looker:
        first = looker.look(video, None)
        for blow in (signal.SIGKILL, signal.SIGSTOP):
            looker._timeout_s = 3
            process = looker._process
            os.kill(process.pid, blow)
            looker._timeout_s = 3 if blow == signal.SIGSTOP else 20
            assert np.array_equal(looker.look(video, None).shown, first.shown)
            assert process.poll() is not None


def test_strangers_videos_look_as_others_do(video):
    with (
        Looker(RGB, VIEWS, timeout_s=60, longest_s=None) as ours,
        Looker(RGB, VIEWS, timeout_s=60, longest_s=None, strangers=True) as theirs,
    ):
        assert np.array_equal(ours.look(video, None).shown, theirs.look(video, None).shown)


def test_batches_change_nothing_that_matters(committee, video, tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    videos = [video, text, video, video, text]
    alone, together = predict(videos, committee), predict(videos, committee, batch=4)
    assert [found.error for found in alone] == [found.error for found in together]
    for one, other in zip(alone, together, strict=True):
        for head, ranked in one.heads.items():
            assert dict(other.heads[head]) == pytest.approx(dict(ranked), abs=1e-6)


HOSTILE = [
    "two\nlines.mp4",
    "-rf.mp4",
    "$(touch gone).mp4",
    "ключ 鍋.mp4",
    "a;b|c&.mp4",
    "\x1b[31mred.mp4",
    "'\".mp4",
    os.fsdecode(b"no-utf-8-\xff.mp4"),
]


def test_a_name_is_a_name_whatever_it_holds(committee, video, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in HOSTILE:
        Path(name).write_bytes(video.read_bytes())
    before = set(tmp_path.iterdir())
    found = predict(list(map(Path, HOSTILE)), committee)
    assert [prediction.error for prediction in found] == [None] * len(HOSTILE)
    assert [prediction.video for prediction in found] == [*HOSTILE[:-1], "no-utf-8-\\xff.mp4"]
    assert "".join(prediction.video for prediction in found).encode()  # text that can be written
    assert set(tmp_path.iterdir()) == before


def test_a_relative_name_is_no_address(committee, video, tmp_path, monkeypatch):
    """FFmpeg takes http:/… and concat:… for addresses; a file of that name is the file."""
    monkeypatch.chdir(tmp_path)
    names = ["http:/127.0.0.1/a.mp4", "concat:a.mp4|b.mp4", "file:a.mp4", "pipe:0"]
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(video.read_bytes())
    assert [found.error for found in predict(list(map(Path, names)), committee)] == [None] * len(names)


def test_top_classes_and_a_span(committee, video):
    (found,) = predict([video], committee, top=1, span=(0.5, 1.0))
    assert [len(ranked) for ranked in found.heads.values()] == [1, 1]
    assert (found.start_s, found.stop_s) == (0.5, 1.0)


def test_bad_files_do_not_stop_the_others(committee, video, tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(video.read_bytes()[:300])
    found = predict([text, empty, cut, tmp_path / "missing.mp4", tmp_path, video], committee)
    assert [prediction.error is None for prediction in found] == [False] * 5 + [True]
    assert "no such file" in found[3].error
    assert found[4].error == "is a folder, not a video"
    assert all(not prediction.heads for prediction in found[:5])


def test_a_truncated_video_is_refused_unless_a_span_is_given(committee, tmp_path):
    whole = write_video(tmp_path / "whole.mp4", seconds=6, options={"movflags": "faststart"}).read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    (found,) = predict([cut], committee)
    assert "is truncated: it promises 6.000 s and holds" in found.error
    assert not found.heads
    (found,) = predict([cut], committee, span=(0.0, 0.5))
    assert found.error is None


def test_a_span_beyond_the_end_is_said(committee, video):
    (found,) = predict([video], committee, span=(1.0, 9.0))
    assert "ends at 2.00 s" in found.error


@pytest.mark.parametrize("span", [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0)])
def test_a_span_that_is_none_is_refused(committee, video, span):
    with pytest.raises(UserError, match="does not start before it stops"):
        predict([video], committee, span=span)


def test_networks_of_another_modality_are_refused(committee, video):
    from tasks.modalities.flow import Flow

    fields = dict.fromkeys(Flow.model_fields, 2) | {"kind": "flow"}
    spec = committee.spec.model_copy(
        update={"modality": "flow", "modality_params": Flow.model_construct(**fields)}
    )
    with pytest.raises(UserError, match="looks at flow"):
        predict([video], Committee(spec, [], {}))


def test_a_folder_gives_the_networks_that_were_saved(committee, video, tmp_path):
    committee.save(tmp_path)
    assert predict([video], load(str(tmp_path))) == predict([video], committee)


def test_a_model_says_which_it_is(committee, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    committee.save(folder)
    first = identify(str(folder))
    assert (first.name, first.version) == ("mine", "")
    (folder / "spec.json").write_text(
        (folder / "spec.json").read_text().replace('"verb": 2.0', '"verb": 2.5')
    )
    assert identify(str(folder)).digest != first.digest
    (folder / "release.json").write_text('{"name": "understudy-student"}')
    named = identify(str(folder))
    assert (named.name, named.digest) == ("understudy-student", file_digest(folder / "release.json"))
    assert named.title == f"understudy-student ({named.digest[:12]})"


def test_a_folder_without_a_network_is_refused(committee, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"is no trained student\n.*--model takes"):
            load(str(folder))
    committee.save(tmp_path)
    (tmp_path / "weights-0.safetensors").unlink()
    with pytest.raises(UserError, match="no usable network"):
        load(str(tmp_path))


@pytest.mark.parametrize("model", ["models:", "models:/a", "models:/a@", "models:/a/x", "models:/../a@b"])
def test_addresses_that_are_none_are_refused(model):
    with pytest.raises(UserError, match="no model of the registry"):
        load(model)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.pkl", b""),
        ("weights.PT", b""),
        ("weights.safetensors", b"\x80\x04\x95"),
        ("notes.txt", b"PK\x03\x04rest"),
    ],
)
def test_anything_that_may_be_a_pickle_is_refused(tmp_path, name, content):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / name).write_bytes(content)
    with pytest.raises(UserError, match="may be a pickle"):
        refuse_pickles(tmp_path, "models:/m@champion")


def test_what_a_network_is_saved_as_is_no_pickle(committee, tmp_path):
    committee.save(tmp_path)
    refuse_pickles(tmp_path, "release")
    assert json.loads(Path(tmp_path / "spec.json").read_text())["temperature"] == {"verb": 2.0, "noun": 0.5}
