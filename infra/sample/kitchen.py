"""The room: wall, shelf, window, counter, sink and tap, and clutter; painted once a video."""

from dataclasses import dataclass

import cv2
import numpy as np

from infra.sample.canvas import Canvas, Colour, ellipse, shade
from infra.sample.motion import COUNTER_Y, SINK

SPAN = (-1.2, -0.3, 1.2, 1.35)  # what is painted: x and y of the corners, larger than any frame sees

_WALLS: dict[str, Colour] = {
    "tiles": (214, 222, 220),
    "brick": (164, 92, 72),
    "steel": (158, 164, 170),
    "wood": (150, 112, 74),
    "plaster": (222, 206, 176),
}
_COUNTERS: dict[str, Colour] = {
    "tiles": (176, 140, 100),
    "brick": (196, 190, 180),
    "steel": (120, 122, 126),
    "wood": (206, 200, 188),
    "plaster": (134, 96, 66),
}


@dataclass(frozen=True)
class Kitchen:
    """The painted room and the map from kitchen coordinates to its pixels."""

    image: np.ndarray
    to_pixels: np.ndarray
    ground: Colour


def paint_kitchen(style: str, pixels_per_height: int, rng: np.random.Generator) -> Kitchen:
    """Paint a kitchen of this style; two of one style differ in tint, pattern and clutter."""
    x0, y0, x1, y1 = SPAN
    scale = float(pixels_per_height)
    image = np.zeros((round((y1 - y0) * scale), round((x1 - x0) * scale), 3), np.uint8)
    to_pixels = np.array([[scale, 0.0, -x0 * scale], [0.0, scale, -y0 * scale]])
    canvas = Canvas(image, to_pixels)
    tint = rng.uniform(0.88, 1.1, 3)
    ground = tuple(np.array(_COUNTERS[style]) * rng.uniform(0.85, 1.1) * tint)
    _wall(canvas, style, np.array(_WALLS[style]) * tint, rng)
    _shelf(canvas, rng)
    if rng.random() < 0.5:
        _window(canvas, rng)
    _counter(canvas, style, ground, rng)
    _sink(canvas, ground)
    clutter = (_board, _plate, _bottle, _fruit, _pan)
    for _ in range(int(rng.integers(3, 6))):
        clutter[int(rng.integers(len(clutter)))](canvas, rng)
    grain = rng.normal(0, 5, (*image.shape[:2], 1))
    image[:] = np.clip(cv2.GaussianBlur(image, (3, 3), 0.7) + grain, 0, 255).astype(np.uint8)
    return Kitchen(image, to_pixels, ground)


def _box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _wall(canvas: Canvas, style: str, colour: Colour, rng: np.random.Generator) -> None:
    x0, y0, x1, _ = SPAN
    canvas.polygon(_box(x0, y0, x1, COUNTER_Y), colour)
    if style in ("tiles", "brick"):
        height = 0.13 if style == "tiles" else 0.06
        width = height * (1.0 if style == "tiles" else 2.2)
        for row, y in enumerate(np.arange(y0, COUNTER_Y, height)):
            for x in np.arange(x0 - (row % 2) * width / 2 * (style == "brick"), x1, width):
                tone = shade(colour, float(rng.uniform(0.9, 1.08)))
                canvas.polygon(
                    _box(x + 0.006, y + 0.006, x + width - 0.006, min(COUNTER_Y, y + height - 0.006)), tone
                )
            canvas.stroke(np.array([(x0, y), (x1, y)]), 0.008, shade(colour, 0.78))
    elif style in ("wood", "steel"):
        for x in np.arange(x0, x1, 0.17 if style == "wood" else 0.4):
            canvas.polygon(_box(x, y0, x + 0.16, COUNTER_Y), shade(colour, float(rng.uniform(0.9, 1.1))))
            canvas.stroke(np.array([(x, y0), (x, COUNTER_Y)]), 0.01, shade(colour, 0.65))


def _shelf(canvas: Canvas, rng: np.random.Generator) -> None:
    y = float(rng.uniform(0.05, 0.18))
    for x in np.arange(-1.0, 1.0, 0.13):
        if rng.random() < 0.55:
            tall, wide = rng.uniform(0.07, 0.2), rng.uniform(0.03, 0.05)
            colour = rng.uniform(40, 220, 3)
            canvas.polygon(_box(x - wide, y - tall, x + wide, y), colour)
            canvas.polygon(_box(x - wide, y - 0.6 * tall, x + wide, y - 0.3 * tall), rng.uniform(60, 240, 3))
    canvas.polygon(_box(-1.2, y, 1.2, y + 0.03), (112, 80, 54))


def _window(canvas: Canvas, rng: np.random.Generator) -> None:
    x = float(rng.uniform(-0.6, 0.4))
    canvas.polygon(_box(x, -0.3, x + 0.45, 0.26), (236, 232, 224))
    canvas.polygon(_box(x + 0.03, -0.3, x + 0.21, 0.22), (178, 208, 232))
    canvas.polygon(_box(x + 0.24, -0.3, x + 0.42, 0.22), (186, 214, 226))


def _counter(canvas: Canvas, style: str, colour: Colour, rng: np.random.Generator) -> None:
    x0, _, x1, y1 = SPAN
    canvas.polygon(_box(x0, COUNTER_Y, x1, y1), colour)
    canvas.polygon(_box(x0, COUNTER_Y, x1, COUNTER_Y + 0.012), shade(colour, 0.6))
    canvas.polygon(_box(x0, 1.12, x1, 1.16), shade(colour, 1.2))
    canvas.polygon(_box(x0, 1.16, x1, y1), shade(colour, 0.5))
    if style in ("tiles", "plaster"):  # wooden boards with grain
        for y in np.arange(COUNTER_Y + 0.02, 1.12, 0.045):
            xs = np.linspace(x0, x1, 18)
            line = np.stack([xs, y + 0.01 * np.sin(4 * xs + rng.uniform(0, 6))], axis=1)
            canvas.stroke(line, 0.005, shade(colour, float(rng.uniform(0.72, 0.92))))
    else:  # stone with specks
        for x, y in rng.uniform((x0, COUNTER_Y + 0.02), (x1, 1.1), (260, 2)):
            canvas.polygon(ellipse(x, y, 0.009, 0.006), shade(colour, float(rng.uniform(0.7, 1.15))))


def _sink(canvas: Canvas, ground: Colour) -> None:
    x, y = SINK
    canvas.polygon(_box(x - 0.23, y - 0.14, x + 0.25, y + 0.15), (186, 190, 194))
    canvas.polygon(_box(x - 0.2, y - 0.11, x + 0.22, y + 0.12), (132, 138, 144))
    canvas.polygon(ellipse(x, y + 0.03, 0.03, 0.018), (60, 62, 66))
    tap = np.array([(x + 0.02, COUNTER_Y + 0.05), (x + 0.02, 0.22), (x + 0.02, 0.22)])
    canvas.stroke(tap, 0.035, (196, 200, 206))
    canvas.stroke(np.array([(x + 0.02, 0.23), (x + 0.02, 0.3)]), 0.028, (150, 154, 160))
    canvas.stroke(np.array([(x - 0.04, 0.24), (x + 0.08, 0.24)]), 0.02, (210, 212, 216))


def _spot(rng: np.random.Generator) -> tuple[float, float]:
    """A place for clutter: along the back of the counter or at its far sides."""
    if rng.random() < 0.5:
        return float(rng.uniform(-0.8, 0.1)), float(rng.uniform(0.42, 0.5))
    return float(rng.choice([-1, 1]) * rng.uniform(0.5, 0.9)), float(rng.uniform(0.5, 0.95))


def _board(canvas: Canvas, rng: np.random.Generator) -> None:
    """A cutting board with a knife on it."""
    x, y = float(rng.uniform(-0.55, -0.1)), float(rng.uniform(0.6, 0.9))
    canvas.polygon(
        np.array([(x - 0.2, y - 0.1), (x + 0.18, y - 0.12), (x + 0.22, y + 0.1), (x - 0.22, y + 0.11)]),
        (196, 158, 110),
    )
    canvas.polygon(
        np.array([(x - 0.15, y - 0.01), (x + 0.06, y - 0.03), (x + 0.06, y + 0.02)]), (206, 210, 214)
    )
    canvas.stroke(np.array([(x + 0.06, y - 0.004), (x + 0.16, y - 0.01)]), 0.026, (52, 42, 40))


def _plate(canvas: Canvas, rng: np.random.Generator) -> None:
    x, y = _spot(rng)
    canvas.polygon(ellipse(x, y + 0.02, 0.15, 0.075), (96, 90, 84))
    canvas.polygon(ellipse(x, y, 0.15, 0.075), (232, 230, 224))
    canvas.polygon(ellipse(x, y, 0.1, 0.048), rng.uniform(170, 240, 3))


def _bottle(canvas: Canvas, rng: np.random.Generator) -> None:
    x, y = _spot(rng)
    colour = rng.uniform(40, 190, 3)
    canvas.polygon(_box(x - 0.04, y - 0.2, x + 0.04, y + 0.03), colour)
    canvas.polygon(_box(x - 0.016, y - 0.3, x + 0.016, y - 0.19), shade(colour, 0.8))
    canvas.polygon(_box(x - 0.04, y - 0.13, x + 0.04, y - 0.04), rng.uniform(150, 245, 3))


def _fruit(canvas: Canvas, rng: np.random.Generator) -> None:
    x, y = _spot(rng)
    for _ in range(3):
        x, y = x + float(rng.uniform(-0.07, 0.07)), y + float(rng.uniform(-0.02, 0.02))
        colour = ((206, 60, 48), (232, 150, 50), (150, 182, 70))[int(rng.integers(3))]
        canvas.polygon(ellipse(x, y, 0.045, 0.043), colour)
        canvas.polygon(ellipse(x - 0.013, y - 0.015, 0.012, 0.01), shade(colour, 1.3))


def _pan(canvas: Canvas, rng: np.random.Generator) -> None:
    x, y = _spot(rng)
    canvas.stroke(np.array([(x, y), (x + float(rng.choice([-0.3, 0.3])), y + 0.06)]), 0.03, (44, 42, 44))
    canvas.polygon(ellipse(x, y, 0.15, 0.085), (58, 58, 62))
    canvas.polygon(ellipse(x, y - 0.005, 0.125, 0.066), (86, 86, 92))
