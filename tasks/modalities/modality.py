"""What a modality is: it takes rows out of a raw video once, and renders views from them ever after."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

from tasks.clips import Clip, Video
from tasks.section import Section
from tasks.shards import Row, Rows
from tasks.views import View

Span = tuple[float, float]


@dataclass(frozen=True)
class RawVideo:
    """One video of data/raw and what the index knows of it."""

    path: Path
    detections: Path
    """Its detections file, whether or not there is one (`video.detections` says)."""
    video: Video
    damaged: bool = False
    """Whether to leave out what cannot be decoded, in place of failing by it."""

    @property
    def aspect(self) -> float:
        """Width over height as displayed."""
        return self.video.width / self.video.height


class Modality(Section):
    """Params of one modality and how it is extracted and rendered. Subclasses add `kind` and their numbers."""

    shards: PositiveInt = Field(description="Files that the rows are spread over.")

    def reads(self, video: Video) -> dict[str, Any]:
        """What the rows of `video` are made of, by the fields of `Video`: where anything else changes, they stay."""
        return {
            name: value
            for name, value in asdict(video).items()
            if name not in ("detections", "detections_sha256")
        }

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of a rendered frame (values of a box), as the backbone needs them."""

    @abstractmethod
    def extract(self, raw: RawVideo, spans: Sequence[Span]) -> Iterator[Row]:
        """The rows of `raw` that cover the time spans (start_s, stop_s), rising; none where it lacks the modality."""

    @abstractmethod
    def render(self, rows: Rows, view: View, size: int) -> np.ndarray:
        """What a network sees of `view`, float32, frames first; shape per modality, see models/network.py."""

    def show(self, rows: Rows | None, clip: Clip, view: View, size: int) -> np.ndarray:
        """One view of `clip`, which has the modality."""
        assert rows is not None, f"{clip.clip_id} has no {type(self).__name__}"
        return self.render(rows, view, size)

    def shape(self, frames: int, size: int) -> tuple[int, ...]:
        """The shape that `render` gives for so many frames of this size."""
        return frames, self.channels, size, size

    @property
    def step_s(self) -> float:
        """Seconds from row to row, as `extract` takes them; 0 where the source decides."""
        return 0.0

    def covers(self, rows: Rows | None, clip: Clip) -> bool:
        """Whether `clip` has this modality: a row within it or, if it is shorter than a step, within a step of it."""
        if rows is None:
            return False
        reach_s = self.step_s if clip.duration_s < self.step_s else 0.0
        first = np.searchsorted(rows.times_s, clip.start_s - reach_s - 1e-9)
        return bool(first < len(rows.times_s) and rows.times_s[first] < clip.stop_s + reach_s)


def merge(spans: Sequence[Span]) -> list[Span]:
    """The union of `spans` as few spans, rising."""
    merged: list[Span] = []
    for start_s, stop_s in sorted(spans):
        if merged and start_s <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], stop_s)
        else:
            merged.append((start_s, stop_s))
    return merged
