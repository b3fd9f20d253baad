"""A detections file is read frame by frame; a value out of place is named with its row."""

import json
from pathlib import Path

import pytest

from tasks.datasets.detections_file import read_detections
from tasks.errors import UserError

_HAND = {"box": [0.1, 0.2, 0.3, 0.4], "category": "hand", "score": 0.5, "side": "left", "state": "contact"}


def test_frames_and_boxes(tmp_path: Path):
    thing = {"box": [0, 0, 1, 0.5], "category": "object", "score": 1, "track": 7}
    file = tmp_path / "v.jsonl"
    file.write_text(
        "\n".join(
            json.dumps(f) for f in [{"time_s": 0, "boxes": []}, {"time_s": 0.5, "boxes": [_HAND, thing]}]
        )
    )
    first, second = read_detections(file)
    assert (first.time_s, first.boxes) == (0.0, [])
    assert second.boxes[0].box == (0.1, 0.2, 0.3, 0.4)
    assert second.boxes[0].side == "left"
    assert second.boxes[1].category == "object"
    assert second.boxes[1].state is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Invalid JSON"),
        ("[]", "object"),
        ('{"boxes": []}', "time_s"),
        ('{"time_s": -1, "boxes": []}', "time_s"),
        ('{"time_s": NaN, "boxes": []}', "time_s"),
        ('{"time_s": 0.0, "boxes": []}', "does not rise"),
        (json.dumps({"time_s": 1, "boxes": [_HAND | {"box": [0.1, 0.2, 1.3, 0.4]}]}), "boxes.0.box.2"),
        (json.dumps({"time_s": 1, "boxes": [_HAND | {"box": [0.3, 0.2, 0.1, 0.4]}]}), "x1 <= x2"),
        (json.dumps({"time_s": 1, "boxes": [_HAND | {"category": "foot"}]}), "category"),
        (json.dumps({"time_s": 1, "boxes": [_HAND | {"side": "middle"}]}), "side"),
        (json.dumps({"time_s": 1, "boxes": [_HAND | {"score": 1.5}]}), "score"),
    ],
)
def test_what_is_wrong_is_named_with_its_row(tmp_path: Path, line: str, message: str):
    file = tmp_path / "v.jsonl"
    file.write_text('{"time_s": 0.0, "boxes": []}\n\n' + line + "\n")
    with pytest.raises(UserError, match=message) as caught:
        read_detections(file)
    assert caught.value.row == 3


def test_what_is_no_text_is_named(tmp_path: Path):
    file = tmp_path / "v.jsonl"
    file.write_bytes(b'{"time_s": 0.0, "boxes": []}\n\xff\xfe\n')
    with pytest.raises(UserError) as caught:
        read_detections(file)
    assert caught.value.row == 2
