"""Object detections: boxes of hands and objects from the data set's files, following the view's crop."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from tasks.clips import Video
from tasks.datasets.detections_file import read_detections
from tasks.modalities.modality import Modality, RawVideo, Span
from tasks.shards import Row, Rows
from tasks.views import View

CATEGORIES = {"hand": 1, "object": 2}
SIDES = {"": 0, "left": 1, "right": 2}
STATES = {"": 0, "no-contact": 1, "contact": 2}
_FIELDS = 8
_SIDE = 6


class Detections(Modality):
    """Boxes of each frame. Rendered: (frames · moments, max_boxes, 8) as x1, y1, x2, y2, score, category, side, state.

    Category 0 is padding, 1 hand, 2 object; side 0 none, 1 left, 2 right; state 0 unknown, 1 no contact,
    2 contact. Coordinates in 0..1 of the view's crop.
    """

    kind: Literal["detections"]
    max_boxes: PositiveInt = Field(description="The best-scored boxes of a frame that are kept.")
    visible: float = Field(
        ge=0, le=1, description="Share of a box that must lie in the crop for it to be seen."
    )
    nearest_s: PositiveFloat = Field(description="A view's frame takes the detections at most this far away.")
    moments: PositiveInt = Field(
        description="Moments looked at for each frame of a view, evenly over the time to the next frame: boxes "
        "cost next to nothing, and movements repeat faster than a network can afford frames."
    )

    def reads(self, video: Video) -> dict[str, Any]:
        """The detections, and the shape of the frames they lie in; nothing of the pictures."""
        facts = asdict(video)
        return {name: facts[name] for name in ("video", "width", "height", "detections_sha256")}

    @property
    def channels(self) -> int:
        """Values of a box."""
        return _FIELDS

    def extract(self, raw: RawVideo, spans: Sequence[Span]) -> Iterator[Row]:
        """One row a frame of the detections file within the spans: float32 (boxes, 8)."""
        if not raw.video.detections:
            return
        for frame in read_detections(raw.detections):
            if any(
                start_s - self.nearest_s <= frame.time_s <= stop_s + self.nearest_s
                for start_s, stop_s in spans
            ):
                boxes = np.array(
                    [
                        [
                            *box.box,
                            box.score,
                            CATEGORIES[box.category],
                            SIDES[box.side or ""],
                            STATES[box.state or ""],
                        ]
                        for box in frame.boxes
                    ],
                    np.float32,
                )
                yield Row(frame.time_s, raw.aspect, boxes.tobytes())

    def shape(self, frames: int, size: int) -> tuple[int, ...]:
        """(frames · moments, max_boxes, 8); `size` plays no part."""
        return frames * self.moments, self.max_boxes, _FIELDS

    def render(self, rows: Rows, view: View, size: int) -> np.ndarray:
        """The boxes of the view's frames in the coordinates of its crop; `size` plays no part."""
        x0, y0, x1, y1 = view.window(rows.aspect)
        low, span = np.array([x0, y0, x0, y0]), np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
        between = ((np.arange(self.moments) + 0.5) / self.moments - 0.5) * view.frame_step_s
        times_s = (np.array(view.times_s)[:, None] + between).ravel()
        frames = np.zeros((len(times_s), self.max_boxes, _FIELDS), np.float32)
        for place, time_s in enumerate(times_s):
            row = rows.nearest(time_s)
            if abs(rows.times_s[row] - time_s) > self.nearest_s:
                continue
            boxes = np.frombuffer(rows.payload(row), np.float32).reshape(-1, _FIELDS).copy()
            whole = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            boxes[:, :4] = ((boxes[:, :4] - low) / span).clip(0, 1)
            seen = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) * span[0] * span[1]
            boxes = boxes[seen > np.maximum(self.visible * whole, 1e-9)]
            if view.flip:
                boxes[:, [0, 2]] = 1 - boxes[:, [2, 0]]
                boxes[:, _SIDE] = np.array([0, 2, 1], np.float32)[boxes[:, _SIDE].astype(int)]
            boxes = boxes[np.argsort(-boxes[:, 4], kind="stable")][: self.max_boxes]
            frames[place, : len(boxes)] = boxes
        return frames
