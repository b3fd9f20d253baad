"""A surface to paint filled shapes on, in kitchen coordinates, with sub-pixel precision.

Knows nothing of kitchens. Colours are RGB, 0 to 255. Sub-pixel positions matter: optical flow of a slow movement
would otherwise see whole-pixel jumps.
"""

from collections.abc import Sequence

import cv2
import numpy as np

Colour = Sequence[float]
_SHIFT = 4  # fractional bits that OpenCV takes for polygon corners


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
        for a, b in zip(points[:-1], points[1:], strict=True):
            self.polygon(capsule(a, b, width / 2), colour)


def _channels(colour: Colour) -> tuple[float, float, float]:
    r, g, b = (float(np.clip(c, 0, 255)) for c in colour)
    return (r, g, b)


def shade(colour: Colour, factor: float) -> tuple[float, float, float]:
    """The colour made darker (factor below 1) or lighter (above 1)."""
    r, g, b = (min(255.0, c * factor) for c in colour)
    return (r, g, b)


def ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 2 * np.pi) -> np.ndarray:
    """Points (20, 2) along an ellipse, clockwise on screen from the angle `start` to `stop` (radians)."""
    angles = np.linspace(start, stop, 20)
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def capsule(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """Outline (20, 2) of the round-ended bar from `a` to `b`."""
    heading = np.arctan2(b[1] - a[1], b[0] - a[0])
    far = heading + np.linspace(-np.pi / 2, np.pi / 2, 10)
    near = far + np.pi
    return np.concatenate(
        [
            np.stack([b[0] + radius * np.cos(far), b[1] + radius * np.sin(far)], axis=1),
            np.stack([a[0] + radius * np.cos(near), a[1] + radius * np.sin(near)], axis=1),
        ]
    )
