"""Arms, sleeves and hands with fingers, painted in two layers: behind the held thing, and before it."""

import numpy as np

from infra.sample.canvas import Canvas, Colour, ellipse, shade
from infra.sample.cast import Participant
from infra.sample.motion import Hand

_ELBOW = (0.52, 1.3)
_SPREAD = np.array([-0.62, -0.22, 0.16, 0.54])  # how far the four fingers fan out, radians at a flat hand
_LENGTHS = np.array([0.075, 0.092, 0.088, 0.07])  # index to little finger, frame heights


def paint_arm(canvas: Canvas, hand: Hand, person: Participant) -> np.ndarray:
    """Paint the forearm, sleeve and palm; return the hand's outline points (n, 2), fingers included."""
    centre, ahead, across = _frame(hand, person)
    skin, k = np.array(person.skin, float), person.hand_size
    elbow = _elbow(hand)
    wrist = centre - 0.07 * k * ahead
    _limb(canvas, elbow, wrist, 0.075 * k, 0.042 * k, skin)
    if not person.bare_arms:
        cuff = wrist - 0.05 * ahead
        _limb(canvas, elbow, cuff, 0.095 * k, 0.062 * k, person.sleeve)
        canvas.stroke(
            np.stack([cuff - 0.06 * k * across, cuff + 0.06 * k * across]), 0.02, shade(person.sleeve, 0.7)
        )
    palm = _disc(centre - 0.01 * ahead, 0.056 * k, 0.064 * k, ahead)
    canvas.polygon(palm, shade(skin, 0.96))
    thumb = _thumb(hand, person)
    canvas.stroke(thumb, 0.03 * k, shade(skin, 0.9))
    fingers = _fingers(hand, person)
    for finger in fingers:
        canvas.stroke(finger[:2], 0.027 * k, shade(skin, 0.9))
    return np.concatenate([palm, thumb, *fingers])


def paint_fingers(canvas: Canvas, hand: Hand, person: Participant) -> None:
    """Paint the fingers, over the thing they hold."""
    skin, k = np.array(person.skin, float), person.hand_size
    for finger in _fingers(hand, person):
        canvas.stroke(finger, 0.03 * k, shade(skin, 0.78))
        canvas.stroke(finger, 0.022 * k, skin)
        canvas.polygon(ellipse(finger[-1, 0], finger[-1, 1], 0.008 * k, 0.007 * k), shade(skin, 1.15))


def _elbow(hand: Hand) -> np.ndarray:
    sign = 1.0 if hand.side == "right" else -1.0
    return np.array([sign * _ELBOW[0] + 0.35 * (hand.x - sign * 0.3), _ELBOW[1]])


def _frame(hand: Hand, person: Participant) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The palm's centre, the unit vector ahead (elbow to hand) and the one across, towards the thumb."""
    sign = 1.0 if hand.side == "right" else -1.0
    grasp = np.array([hand.x, hand.y])
    ahead = grasp - _elbow(hand)
    ahead /= np.linalg.norm(ahead)
    across = sign * np.array([ahead[1], -ahead[0]])
    centre = grasp - 0.065 * person.hand_size * ahead  # what is held lies before the palm, not under it
    return centre, ahead, across


def _fingers(hand: Hand, person: Participant) -> list[np.ndarray]:
    """Four fingers of three points each; a closed grip bends their ends back over the held thing."""
    centre, ahead, across = _frame(hand, person)
    k, fingers = person.hand_size, []
    for place, (spread, length) in enumerate(zip(_SPREAD, _LENGTHS, strict=True)):
        fan = -spread * (1 - 0.5 * hand.grip)
        way = np.cos(fan) * ahead + np.sin(fan) * across
        root = centre + 0.045 * k * ahead + (0.05 - 0.033 * place) * k * across
        knuckle = root + 0.55 * length * k * way
        bend = hand.grip * 1.5
        tip = knuckle + 0.45 * length * k * (np.cos(bend) * way + np.sin(bend) * across)
        fingers.append(np.stack([root, knuckle, tip]))
    return fingers


def _thumb(hand: Hand, person: Participant) -> np.ndarray:
    centre, ahead, across = _frame(hand, person)
    k, out = person.hand_size, 0.075 - 0.025 * hand.grip
    root = centre - 0.02 * k * ahead + 0.04 * k * across
    return np.stack(
        [root, root + k * (out * across + 0.02 * ahead), root + k * (0.8 * out * across + 0.06 * ahead)]
    )


def _limb(canvas: Canvas, a: np.ndarray, b: np.ndarray, wide: float, narrow: float, colour: Colour) -> None:
    """Paint a tapering limb from `a` to `b`, lit from one side."""
    along = (b - a) / np.linalg.norm(b - a)
    side = np.array([-along[1], along[0]])
    canvas.polygon(np.stack([a - wide * side, b - narrow * side, b + narrow * side, a + wide * side]), colour)
    canvas.polygon(
        np.stack([a + 0.4 * wide * side, b + 0.4 * narrow * side, b + narrow * side, a + wide * side]),
        shade(colour, 0.78),
    )


def _disc(centre: np.ndarray, long: float, wide: float, ahead: np.ndarray) -> np.ndarray:
    turn = np.array([[ahead[0], ahead[1]], [-ahead[1], ahead[0]]])
    return ellipse(0, 0, long, wide) @ turn + centre
