"""A surface to paint filled shapes on, in kitchen coordinates, with sub-pixel precision.

Knows nothing of kitchens. Colours are RGB, 0 to 255. Sub-pixel positions matter: optical flow of a slow
movement would otherwise see whole-pixel jumps.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np

Colour = Sequence[float] | np.ndarray
_SHIFT = 4  # fractional bits that OpenCV takes for polygon corners


def _arc(start: float, stop: float, count: int) -> np.ndarray:
    angles = np.linspace(start, stop, count)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


_CIRCLE = _arc(0.0, 2 * np.pi, 20)
_HALF_CIRCLE = _arc(-np.pi / 2, np.pi / 2, 6)


class Canvas:
    """An RGB image (height, width, 3; uint8) and the affine map from kitchen coordinates to its pixels."""

    def __init__(self, image: np.ndarray, to_pixels: np.ndarray) -> None:
        self.image = image
        self.to_pixels = to_pixels

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels (n, 2) of kitchen points (n, 2)."""
        return points @ self.to_pixels[:, :2].T + self.to_pixels[:, 2]

    def polygon(self, points: np.ndarray, colour: Colour) -> None:
        """Fill the polygon with corners `points` (n, 2)."""
        pixels = np.round(self.project(points) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(self.image, [pixels], _channels(colour), lineType=cv2.LINE_AA, shift=_SHIFT)

    def stroke(self, points: np.ndarray, width: float, colour: Colour) -> None:
        """Draw a round-ended line of `width` through `points` (n, 2)."""
        for a, b in pairwise(points):
            self.polygon(capsule(a, b, width / 2), colour)


def _channels(colour: Colour) -> tuple[float, float, float]:
    r, g, b = colour
    return (min(max(float(r), 0.0), 255.0), min(max(float(g), 0.0), 255.0), min(max(float(b), 0.0), 255.0))


def shade(colour: Colour, factor: float) -> tuple[float, float, float]:
    """The colour made darker (factor below 1) or lighter (above 1)."""
    r, g, b = colour
    return (min(255.0, r * factor), min(255.0, g * factor), min(255.0, b * factor))


def ellipse(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    """Points (20, 2) along an ellipse, clockwise on screen."""
    return _CIRCLE * (rx, ry) + (x, y)


def capsule(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """Outline (12, 2) of the round-ended bar from `a` to `b`."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = math.hypot(dx, dy) or 1.0
    c, s = radius * dx / length, radius * dy / length
    cap = _HALF_CIRCLE @ np.array([[c, s], [-s, c]])
    return np.concatenate([cap + b, a - cap])
