"""Something-Something V2 and Something-Else as published (Goyal et al. 2017; Materzynska et al., CVPR 2020).

The raw folder holds one split file whose name ends in train.json (entries with id and template), optionally
one in validation.json, the classes in a file that ends in labels.json (template → number), the videos as
<id>.webm below videos/ or 20bn-something-something-v2/, and optionally the boxes of Something-Else in files
whose name starts with annotations or bounding_box. A clip is a whole video; who filmed it is not published,
so a group is a video. The published validation split becomes `test`, and `val` is carved from training.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tasks.atomic import write_text
from tasks.datasets.annotations import AnnotatedClip, Dataset, safe_name
from tasks.errors import UserError

_HEAD = "action"
_BOX_FILES = ("annotations*.json", "bounding_box*.json")
_SPLITS = {"train.json": "train", "validation.json": "test"}


class SomethingElse(Dataset):
    """Head action: the template's text without brackets."""

    every_class_trains = False

    def recognises(self, raw: Path) -> bool:
        return any(raw.glob("*train.json")) and any(raw.glob("*labels.json"))

    def heads(self, raw: Path) -> dict[str, list[str]]:
        """The templates in the order of their published numbers."""
        file = _only(raw, "labels.json")
        numbers = _read_json(file)
        if not isinstance(numbers, dict):
            raise UserError("does not map templates to numbers", file=file)
        try:
            ranked = sorted((int(number), _plain(template)) for template, number in numbers.items())
        except (TypeError, ValueError):
            raise UserError("gives a template something other than a number", file=file) from None
        return {_HEAD: [template for _, template in ranked]}

    def slices(self, raw: Path) -> list[str]:
        return []

    def clips(self, raw: Path, heads: Iterable[str]) -> list[AnnotatedClip]:
        if list(heads) != [_HEAD]:
            raise UserError(
                "Something-Something has one head, action", remedy="set data.heads in params.yaml"
            )
        endings = [ending for ending in _SPLITS if any(raw.glob(f"*{ending}"))]
        files = {ending: _only(raw, ending) for ending in endings}
        return [
            _clip(file, number, entry, _SPLITS[ending] if len(files) == 2 else "")
            for ending, file in files.items()
            for number, entry in enumerate(_entries(file), start=1)
        ]

    def video_path(self, raw: Path, video: str) -> Path:
        folders = (raw / "videos", raw / "20bn-something-something-v2")
        places = [folder / f"{video}{suffix}" for folder in folders for suffix in (".webm", ".mp4")]
        return next((place for place in places if place.exists()), places[0])

    def has_detections(self, raw: Path, videos: Iterable[str]) -> bool:
        """Whether there are boxes of a video that is there, as published or already as detections.

        Raises:
            UserError: boxes are not as published; said here, before everything is copied to be taken in.
        """
        there = {video for video in videos if self.video_path(raw, video).is_file()}
        published = False
        for file, boxes in _boxes(raw):
            for video in sorted(there & boxes.keys()):
                _refuse_others(video, boxes[video], file)
                published = True
        return super().has_detections(raw, there) or published

    def take_in(self, raw: Path, kept: Path) -> None:
        """Write detections/<id>.jsonl from the published boxes of every video that is there."""
        from tasks.probing import probe_all  # a served model reads this module and probes nothing

        for file, boxes in _boxes(raw):
            there = {}
            for video, frames in boxes.items():
                path = self.video_path(raw, safe_name(video, "video", file, 1))
                if path.exists():
                    # before the probes, which take hours of a large data set
                    _refuse_others(video, frames, file)
                    there[video] = path
            # The moment that `ingest` asks for of a whole video: it finds the probe there.
            probes = probe_all([(path, [0.0]) for path in there.values()], kept)
            for video, (_, probe) in zip(there, probes, strict=True):
                if not isinstance(probe, str):  # else ingest will say so
                    lines = detection_lines(boxes[video], probe.width, probe.height, probe.rate_hz)
                    write_text(self.detections_path(raw, video), "\n".join(lines) + "\n")


def _refuse_others(video: str, frames: Any, file: Path) -> None:
    """Raise UserError where the boxes of a video are not as published."""
    try:
        for _ in detection_lines(frames, 1, 1, 1.0):
            pass
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the boxes of video {video} are not as published ({error!r})", file=file) from None


def detection_lines(frames: Iterable[Any], width: int, height: int, rate_hz: float) -> Iterator[str]:
    """The lines of a detections file from the published boxes of one video.

    Args:
        frames: entries with `name` (<id>/<frame, from 1>.jpg) and `labels`, each a `box2d` in pixels.
        width, height: of the video, in pixels.
        rate_hz: of the video; the boxes were drawn on every frame.
    """
    numbered = {int(Path(frame["name"]).stem): frame["labels"] for frame in frames}
    for number, labels in sorted(numbered.items()):
        boxes = [
            {
                "box": _corners(label["box2d"], width, height),
                "category": "hand" if label["standard_category"] == "hand" else "object",
                "score": 1.0,
            }
            for label in labels
        ]
        yield json.dumps({"time_s": round((number - 1) / rate_hz, 6), "boxes": boxes})


def _corners(box: dict[str, float], width: int, height: int) -> list[float]:
    sizes = {"x1": width, "y1": height, "x2": width, "y2": height}
    return [round(min(1.0, max(0.0, box[corner] / size)), 5) for corner, size in sizes.items()]


def _boxes(raw: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each file of boxes and what it holds, video → frames; one at a time, as they are large."""
    for file in (file for pattern in _BOX_FILES for file in sorted(raw.glob(pattern))):
        boxes = _read_json(file)
        if not isinstance(boxes, dict):
            raise UserError("does not map videos to their boxes", file=file)
        yield file, boxes


def _plain(template: str) -> str:
    return template.replace("[", "").replace("]", "")


def _only(raw: Path, ending: str) -> Path:
    files = sorted(raw.glob(f"*{ending}"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise UserError(f"needs exactly one file that ends in {ending}; there is {names}", file=raw)
    return files[0]


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"is not JSON: {error.msg}", file=file, row=error.lineno) from None
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text", file=file) from None


def _entries(file: Path) -> list[Any]:
    entries = _read_json(file)
    if not isinstance(entries, list):
        raise UserError("is not a list of clips", file=file)
    return entries


def _clip(file: Path, number: int, entry: Any, split: str) -> AnnotatedClip:
    """The clip of the entry `number`, which stands for its row: published files are one long line."""
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        raise UserError("the entry has no id", file=file, row=number)
    video = safe_name(entry["id"], "id", file, number)
    return AnnotatedClip(
        clip_id=video,
        video=video,
        start_s=0.0,
        stop_s=None,
        labels={_HEAD: _plain(str(entry.get("template", "")))},
        group=video,
        split=split,
        slices={},
        file=file,
        row=number,
    )
