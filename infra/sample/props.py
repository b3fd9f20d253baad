"""The things on the counter: cup, jar, tin, sponge, cloth, spoon; each painted at a pose.

A painter takes the canvas, the pose, the thing's look and the pull on its free edge, and returns the outline
it painted (n, 2), in kitchen coordinates, which the detections take their boxes from. Jar and tin have the
same build, sponge and cloth the same block; only small marks (neck and glass, label and ridges, pores,
folds) tell them apart in a still frame.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from infra.sample.canvas import Canvas, Colour, ellipse, shade
from infra.sample.motion import Pose


@dataclass(frozen=True)
class Look:
    """What tells one cup from another cup: colours (RGB), height (frame heights), width against height."""

    colour: Colour
    accent: Colour
    size: float
    girth: float
    handle_right: bool


_SIZES = {"cup": 0.22, "jar": 0.29, "tin": 0.25, "sponge": 0.19, "cloth": 0.22}
_POTTERY = ((235, 232, 222), (70, 98, 150), (178, 62, 52), (62, 128, 96), (226, 178, 70), (120, 120, 130))
_VESSEL = ((176, 190, 192), (196, 198, 200), (150, 164, 160), (205, 196, 176), (160, 150, 140))
_SOFT = ((236, 206, 84), (120, 178, 110), (226, 128, 116), (110, 160, 206), (214, 206, 190), (188, 140, 190))


def draw_look(noun: str, rng: np.random.Generator) -> Look:
    """Draw the look of one household's `noun`; the colours of look-alike nouns come from one palette."""
    palette = {"cup": _POTTERY, "jar": _VESSEL, "tin": _VESSEL, "sponge": _SOFT, "cloth": _SOFT}[noun]
    colour = np.array(palette[int(rng.integers(len(palette)))]) + rng.uniform(-14, 14, 3)
    accent = rng.uniform(40, 225, 3)
    return Look(
        colour=tuple(colour),
        accent=tuple(accent),
        size=_SIZES[noun] * float(rng.uniform(0.88, 1.14)),
        girth=float(rng.uniform(0.9, 1.15)),
        handle_right=bool(rng.random() < 0.5),
    )


def _place(points: np.ndarray, pose: Pose) -> np.ndarray:
    """Kitchen coordinates of points given in the thing's own frame (height 1, origin at its centre)."""
    c, s = np.cos(pose.angle), np.sin(pose.angle)
    return points @ np.array([[c, s], [-s, c]]) * pose.size + (pose.x, pose.y)


def _paint_cup(canvas: Canvas, pose: Pose, look: Look, flop: tuple[float, float]) -> np.ndarray:
    g, side = look.girth, 1 if look.handle_right else -1
    body = np.array(
        [
            (-0.4 * g, -0.42),
            (0.4 * g, -0.42),
            (0.33 * g, 0.4),
            (0.24 * g, 0.5),
            (-0.24 * g, 0.5),
            (-0.33 * g, 0.4),
        ]
    )
    handle = ellipse(side * 0.42 * g, 0.0, 0.22, 0.24)
    canvas.stroke(_place(handle, pose), 0.1 * pose.size, shade(look.colour, 0.8))
    canvas.polygon(_place(body, pose), look.colour)
    canvas.polygon(_place(body * (0.28, 1.0) + (0.26 * g, 0.0), pose), shade(look.colour, 0.8))
    band = np.array([(-0.37 * g, -0.1), (0.37 * g, -0.1), (0.35 * g, 0.12), (-0.35 * g, 0.12)])
    canvas.polygon(_place(band, pose), look.accent)
    canvas.polygon(_place(ellipse(0, -0.42, 0.4 * g, 0.13), pose), shade(look.colour, 1.12))
    canvas.polygon(_place(ellipse(0, -0.41, 0.33 * g, 0.09), pose), (72, 50, 36))
    return np.concatenate(
        [_place(body, pose), _place(handle, pose), _place(ellipse(0, -0.42, 0.4, 0.13), pose)]
    )


def _paint_jar(canvas: Canvas, pose: Pose, look: Look, flop: tuple[float, float]) -> np.ndarray:
    g = look.girth
    body = np.array(
        [
            (-0.27 * g, -0.42),
            (0.27 * g, -0.42),
            (0.29 * g, -0.3),
            (0.36 * g, -0.2),
            (0.36 * g, 0.42),
            (0.28 * g, 0.5),
            (-0.28 * g, 0.5),
            (-0.36 * g, 0.42),
            (-0.36 * g, -0.2),
            (-0.29 * g, -0.3),
        ]
    )
    canvas.polygon(_place(body, pose), shade(look.colour, 1.05))
    filling = np.array(
        [
            (-0.32 * g, -0.02),
            (0.32 * g, -0.02),
            (0.32 * g, 0.42),
            (0.26 * g, 0.46),
            (-0.26 * g, 0.46),
            (-0.32 * g, 0.42),
        ]
    )
    canvas.polygon(_place(filling, pose), 0.5 * np.array(look.accent) + 0.5 * np.array(look.colour))
    glint = np.array([(-0.27 * g, -0.16), (-0.21 * g, -0.16), (-0.21 * g, 0.38), (-0.27 * g, 0.38)])
    canvas.polygon(_place(glint, pose), shade(look.colour, 1.35))
    canvas.polygon(_place(ellipse(0, -0.42, 0.28 * g, 0.09), pose), shade(look.colour, 1.3))
    canvas.polygon(_place(ellipse(0, -0.42, 0.22 * g, 0.06), pose), shade(look.colour, 0.55))
    return _place(body, pose)


def _paint_tin(canvas: Canvas, pose: Pose, look: Look, flop: tuple[float, float]) -> np.ndarray:
    g = look.girth
    body = np.array(
        [
            (-0.34 * g, -0.42),
            (0.34 * g, -0.42),
            (0.34 * g, 0.42),
            (0.24 * g, 0.5),
            (-0.24 * g, 0.5),
            (-0.34 * g, 0.42),
        ]
    )
    canvas.polygon(_place(body, pose), look.colour)
    canvas.polygon(_place(body * (0.25, 1.0) + (0.25 * g, 0.0), pose), shade(look.colour, 0.72))
    label = np.array([(-0.34 * g, -0.2), (0.34 * g, -0.2), (0.34 * g, 0.3), (-0.34 * g, 0.3)])
    canvas.polygon(_place(label, pose), 0.6 * np.array(look.accent) + 0.4 * np.array(look.colour))
    for height in (-0.3, 0.38):
        ridge = np.array([(-0.34 * g, height), (0.34 * g, height)])
        canvas.stroke(_place(ridge, pose), 0.035 * pose.size, shade(look.colour, 0.6))
    canvas.polygon(_place(ellipse(0, -0.42, 0.34 * g, 0.1), pose), shade(look.colour, 1.2))
    canvas.polygon(_place(ellipse(0, -0.41, 0.29 * g, 0.075), pose), shade(look.colour, 0.5))
    return _place(body, pose)


_PORES = np.random.default_rng(5).uniform((-0.6, -0.3), (0.6, 0.1), (12, 2))


def _paint_sponge(canvas: Canvas, pose: Pose, look: Look, flop: tuple[float, float]) -> np.ndarray:
    g = look.girth
    top = np.array([(-0.62 * g, -0.36), (0.7 * g, -0.36), (0.66 * g, 0.16), (-0.68 * g, 0.16)])
    front = np.array([(-0.68 * g, 0.14), (0.66 * g, 0.14), (0.66 * g, 0.4), (-0.68 * g, 0.4)])
    canvas.polygon(_place(front, pose), shade(look.colour, 0.6))
    canvas.polygon(_place(top, pose), look.colour)
    for pore in _PORES:
        canvas.polygon(_place(ellipse(pore[0] * g, pore[1], 0.045, 0.03), pose), shade(look.colour, 0.75))
    return np.concatenate([_place(top, pose), _place(front, pose)])


def _paint_cloth(canvas: Canvas, pose: Pose, look: Look, flop: tuple[float, float]) -> np.ndarray:
    """A folded cloth: its corners trail by `flop`, each by a different share."""
    g = look.girth
    edge = np.array(
        [
            (-0.64 * g, -0.34),
            (0.0, -0.38),
            (0.68 * g, -0.33),
            (0.72 * g, 0.1),
            (0.66 * g, 0.4),
            (0.05, 0.36),
            (-0.6 * g, 0.42),
            (-0.72 * g, 0.08),
        ]
    )
    loose = np.array([0.5, 0.1, 0.4, 0.8, 1.2, 0.9, 1.3, 0.9])[:, None] * np.array(flop)
    outline = _place(edge, pose) + loose
    canvas.polygon(outline, look.colour)
    fold = np.stack([outline[7], outline[:8].mean(0), outline[3]])
    canvas.polygon(np.concatenate([fold, outline[4:7]]), shade(look.colour, 0.72))
    canvas.stroke(
        np.stack([outline[0], outline.mean(0), outline[5]]), 0.05 * pose.size, shade(look.colour, 0.85)
    )
    return outline


_Painter = Callable[[Canvas, Pose, Look, tuple[float, float]], np.ndarray]
_PAINTERS: dict[str, _Painter] = {
    "cup": _paint_cup,
    "jar": _paint_jar,
    "tin": _paint_tin,
    "sponge": _paint_sponge,
    "cloth": _paint_cloth,
}


def paint(
    canvas: Canvas, noun: str, pose: Pose, look: Look, flop: tuple[float, float] = (0.0, 0.0)
) -> np.ndarray:
    """Paint one thing and return its outline (n, 2) in kitchen coordinates."""
    return _PAINTERS[noun](canvas, pose, look, flop)


def paint_spoon(canvas: Canvas, ends: tuple[float, float, float, float]) -> np.ndarray:
    """Paint a spoon from its handle's end to its tip and return the two ends (2, 2)."""
    line = np.array(ends).reshape(2, 2)
    canvas.stroke(line, 0.018, (190, 176, 150))
    canvas.polygon(ellipse(line[1, 0], line[1, 1], 0.022, 0.016), (170, 156, 132))
    return line


def paint_shadow(canvas: Canvas, pose: Pose, ground: Colour) -> None:
    """Paint the dark patch a standing thing leaves on the counter of colour `ground`."""
    canvas.polygon(
        ellipse(pose.x + 0.02, pose.y + 0.46 * pose.size, 0.5 * pose.size, 0.12 * pose.size),
        shade(ground, 0.62),
    )


def paint_stream(canvas: Canvas, stream: tuple[float, float, float, float], colour: Colour) -> None:
    """Paint a thin fall of liquid from its top to where it lands."""
    line = np.array(stream).reshape(2, 2)
    canvas.stroke(line, 0.012, colour)
    canvas.polygon(ellipse(line[1, 0], line[1, 1], 0.035, 0.012), colour)
