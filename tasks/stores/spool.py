"""What MLflow could not be told of a run, written down in the work folder until it answers again."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from uuid import uuid4

from tasks.atomic import write_json


@dataclass
class Story:
    """A run as far as MLflow was not told of it.

    Attributes:
        name, tags: of the run.
        params: flat.
        data: name and digest of the data.
        pipeline: name of the pipeline run that it is part of; empty if none.
        key: tells it apart from all others.
        run_id: of the run in MLflow; empty where MLflow never heard of it.
        metrics: key, value, time in ms and step of each that was not sent.
        started_ms, ended_ms, status: as MLflow has them.
    """

    name: str
    tags: dict[str, str]
    params: dict[str, str]
    data: tuple[str, str]
    pipeline: str
    started_ms: int
    key: str = field(default_factory=lambda: uuid4().hex)
    run_id: str = ""
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    ended_ms: int = 0
    status: str = ""


def keep(folder: Path, story: Story) -> None:
    """Write a story down, in the place of an older version of it."""
    write_json(folder / f"{story.key}.json", asdict(story))


def kept(folder: Path) -> Iterator[Story]:
    """The stories that were written down; one that cannot be read, as of another version, is set aside."""
    for file in sorted(folder.glob("*.json")):
        try:
            story = Story(**json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            file.rename(file.with_suffix(".unreadable"))
            continue
        yield story


def forget(folder: Path, story: Story) -> None:
    """Drop a story that was told."""
    (folder / f"{story.key}.json").unlink(missing_ok=True)
