"""Something-Something and Something-Else are read as published; boxes become detections."""

import json
import os
from pathlib import Path

import pytest

from tasks.datasets import dataset
from tasks.datasets.annotations import check
from tasks.datasets.detections_file import read_detections
from tasks.errors import UserError


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "labels.json").write_text(json.dumps({"Moving something up": 1, "Dropping something": 0}))
    (tmp_path / "train.json").write_text(
        json.dumps([{"id": "7", "template": "Moving [something] up", "label": "moving a cup up"}])
    )
    (tmp_path / "validation.json").write_text(json.dumps([{"id": "8", "template": "Dropping [something]"}]))
    return tmp_path


def test_clips_are_whole_videos_labelled_by_template(raw: Path):
    reader = dataset("something_else")
    assert reader.recognises(raw)
    assert reader.heads(raw) == {"action": ["Dropping something", "Moving something up"]}
    first, second = reader.clips(raw, ["action"])
    check([first, second], reader.heads(raw))
    assert (first.video, first.start_s, first.stop_s, first.group, first.split) == (
        "7",
        0.0,
        None,
        "7",
        "train",
    )
    assert (first.labels, second.split) == ({"action": "Moving something up"}, "test")


def test_boxes_become_detections_on_the_video_s_clock(raw: Path, films):
    films.write(raw / "videos" / "7.webm", films.grey(10), codec="libvpx-vp9")  # 64 × 48 at 10 Hz
    hand = {
        "box2d": {"x1": 16, "y1": 12, "x2": 32, "y2": 99},
        "standard_category": "hand",
        "category": "hand",
    }
    thing = {"box2d": {"x1": -1, "y1": 0, "x2": 64, "y2": 24}, "standard_category": "0000", "category": "cup"}
    frames = [{"name": "7/0003.jpg", "labels": [hand, thing]}, {"name": "7/0001.jpg", "labels": []}]
    (raw / "annotations_sample.json").write_text(json.dumps({"7": frames, "99": []}))
    reader = dataset("something_else")
    assert reader.has_detections(raw, ["7", "8"])
    assert not reader.has_detections(raw, ["8", "99"])  # of neither the video is there
    reader.take_in(raw, raw / "probes")
    assert len(list((raw / "probes").glob("*.json"))) == 1  # which `ingest` finds
    first, third = read_detections(reader.detections_path(raw, "7"))
    assert (first.time_s, first.boxes) == (0.0, [])
    assert third.time_s == pytest.approx(0.2, abs=1e-3)
    assert [box.category for box in third.boxes] == ["hand", "object"]
    assert third.boxes[0].box == (0.25, 0.25, 0.5, 1.0)
    assert third.boxes[1].box == (0.0, 0.0, 1.0, 0.5)
    assert not reader.detections_path(raw, "99").exists()


def test_boxes_of_another_form_are_named_before_anything_is_copied_or_probed(raw: Path, films):
    for video in ("7", "8"):
        films.write(raw / "videos" / f"{video}.mp4", films.grey(10))
    (raw / "annotations_sample.json").write_text(
        json.dumps({"7": [], "8": [{"name": "8/0001.jpg", "labels": [{}]}]})
    )
    with pytest.raises(
        UserError, match=r"annotations_sample\.json: the boxes of video 8 are not as published"
    ):
        dataset("something_else").take_in(raw, raw / "probes")
    with pytest.raises(UserError, match="the boxes of video 8 are not as published"):
        dataset("something_else").has_detections(raw, ["7", "8"])
    assert not (raw / "probes").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "row 1: is not JSON"),
        ("{}", "not a list"),
        ('[{"id": "../7"}]', "leaves its folder"),
        ("[3]", "has no id"),
    ],
)
def test_a_bad_split_file_is_named(raw: Path, content: str, message: str):
    (raw / "train.json").write_text(content)
    with pytest.raises(UserError, match=message):
        dataset("something_else").clips(raw, ["action"])


def test_two_split_files_are_ambiguous(raw: Path):
    (raw / "fewshot_train.json").write_text("[]")
    with pytest.raises(UserError, match="exactly one file"):
        dataset("something_else").clips(raw, ["action"])


def test_an_unknown_format_is_suggested():
    with pytest.raises(UserError, match="did you mean 'folder'"):
        dataset("foldr")


def test_boxes_that_are_no_mapping_are_refused(raw: Path, films):
    films.write(raw / "videos" / "7.mp4", films.grey(10))
    (raw / "annotations_sample.json").write_text("[]")
    with pytest.raises(UserError, match=r"annotations_sample\.json.*does not map videos"):
        dataset("something_else").has_detections(raw, ["7"])


@pytest.mark.skipif("UNDERSTUDY_SHARED_DATA" not in os.environ, reason="needs the official files")
def test_the_official_files(tmp_path: Path):
    official = Path(os.environ["UNDERSTUDY_SHARED_DATA"]) / "something_else"
    for name in ("compositional_labels.json", "compositional_oneobject_train.json"):
        (tmp_path / name).write_bytes((official / name).read_bytes())
    reader = dataset("something_else")
    heads = reader.heads(tmp_path)
    clips = reader.clips(tmp_path, heads)
    check(clips, heads)
    assert (len(heads["action"]), len(clips)) == (174, 6560)
