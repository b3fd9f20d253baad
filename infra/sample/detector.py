"""A hand-object detector's output, with the faults of a real one: misses, false boxes, jitter, wrong states.

It names no noun: an object is an object. Its boxes give the paths of hands and things precisely.
"""

import json

import numpy as np

from infra.sample.scene import Truth

_MISS = {"hand": 0.05, "object": 0.12}
_FALSE_BOXES = 0.18  # mean number of false boxes a frame
_WRONG_SIDE = 0.03
_WRONG_STATE = 0.07
_OTHER_SIDE = {"left": "right", "right": "left"}
_JITTER = 0.03  # of the box's width and height
_DIM_FAULTS = 1.8  # how many times more faults when the light is low


class Detector:
    """Turns true boxes into detections; some of its false boxes come back at the same place."""

    def __init__(self, light: str, rng: np.random.Generator) -> None:
        self._faults = _DIM_FAULTS if light == "dim" else 1.0
        self._rng = rng
        self._ghosts = rng.uniform((0.05, 0.05, 0.06, 0.08), (0.8, 0.6, 0.2, 0.3), (3, 4))

    def line(self, time_s: float, truths: list[Truth]) -> str:
        """One line of the detections file: the boxes reported for the frame at `time_s`."""
        boxes = [box for truth in truths if (box := self._report(truth)) is not None]
        for _ in range(self._rng.poisson(_FALSE_BOXES * self._faults)):
            x, y, w, h = self._ghosts[int(self._rng.integers(len(self._ghosts)))]
            boxes.append(self._entry("object", (x, y, x + w, y + h), float(self._rng.beta(3, 4))))
        boxes.sort(key=lambda entry: -entry["score"])
        return json.dumps({"time_s": round(time_s, 3), "boxes": boxes}, separators=(",", ":"))

    def _report(self, truth: Truth) -> dict | None:
        seen = _visible_share(truth.box)
        if self._rng.random() < _MISS[truth.category] * self._faults or seen < 0.25:
            return None
        entry = self._entry(truth.category, truth.box, float(self._rng.beta(9, 1.6)) * (0.6 + 0.4 * seen))
        if truth.side is not None:
            wrong = self._rng.random() < _WRONG_SIDE
            entry["side"] = _OTHER_SIDE[truth.side] if wrong else truth.side
            touching = truth.touching != (self._rng.random() < _WRONG_STATE * self._faults)
            entry["state"] = "contact" if touching else "no-contact"
        return entry

    def _entry(self, category: str, box: tuple[float, float, float, float], score: float) -> dict:
        x1, y1, x2, y2 = box
        size = np.array([x2 - x1, y2 - y1, x2 - x1, y2 - y1])
        moved = np.array(box) + self._rng.normal(0, _JITTER, 4) * size
        clipped = [round(float(value), 3) for value in np.clip(moved, 0.0, 1.0)]
        return {"box": clipped, "category": category, "score": round(score, 2)}


def _visible_share(box: tuple[float, float, float, float]) -> float:
    x1, y1, x2, y2 = box
    inside = max(0.0, min(1.0, x2) - max(0.0, x1)) * max(0.0, min(1.0, y2) - max(0.0, y1))
    return inside / max(1e-9, (x2 - x1) * (y2 - y1))
