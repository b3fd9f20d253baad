"""A filmed session: camera, light, things standing about, and each instant as a frame with true boxes."""

from dataclasses import dataclass

import cv2
import numpy as np

from infra.sample.canvas import Canvas
from infra.sample.cast import NOUNS, Clip, Participant, Session, generator
from infra.sample.hands import paint_arm, paint_fingers
from infra.sample.kitchen import paint_kitchen
from infra.sample.motion import Gesture, Moment, Pose, draw_gesture
from infra.sample.props import Look, draw_look, paint, paint_shadow, paint_spoon, paint_stream

_SUPERSAMPLE = 2
_LIQUIDS = ((122, 82, 54), (228, 226, 214), (196, 128, 58))
_WATER = (196, 212, 222)
_PAD_NOUNS = ("sponge", "cloth")


@dataclass(frozen=True)
class Truth:
    """What a perfect detector would report of one thing: its box (x1, y1, x2, y2) in frame fractions."""

    category: str
    box: tuple[float, float, float, float]
    side: str | None = None
    touching: bool = False


@dataclass(frozen=True)
class Act:
    """One clip as staged: the gesture and the things that stand about meanwhile."""

    gesture: Gesture
    look: Look
    bystanders: tuple[tuple[str, Pose, Look], ...]
    pad: tuple[str, Look]
    liquid: tuple[int, int, int]
    ends_s: float  # halfway through the pause before the next clip


class Scene:
    """One session of one participant; `frame` paints any instant of it."""

    def __init__(self, person: Participant, session: Session, seed: int) -> None:
        self._person = person
        self._height = person.height * _SUPERSAMPLE
        self._width = person.width * _SUPERSAMPLE
        room = generator(seed, person.index, 2)  # the same room and household in every video of a participant
        self._kitchen = paint_kitchen(person.kitchen, self._height, room)
        self._household = {noun: draw_look(noun, room) for noun in NOUNS}
        self._lamp = (float(room.uniform(-0.4, 0.4)), float(room.uniform(0.2, 0.6)))
        rng = generator(seed, person.index, 3, session.index)
        self._camera = _Camera(person, rng)
        starts = [clip.start_s for clip in session.clips[1:]] + [session.duration_s + 1.0]
        self._acts = [
            self._stage(clip, 0.5 * (clip.stop_s + following), rng)
            for clip, following in zip(session.clips, starts, strict=True)
        ]

    @property
    def gestures(self) -> list[Gesture]:
        return [act.gesture for act in self._acts]

    def _stage(self, clip: Clip, ends_s: float, rng: np.random.Generator) -> Act:
        own = self._household[clip.noun]
        look = own if rng.random() < 0.3 else draw_look(clip.noun, rng)
        gesture = draw_gesture(clip, self._person, look.size, rng)
        others = rng.permutation([noun for noun in NOUNS if noun != clip.noun])[: int(rng.integers(0, 3))]
        bystanders = []
        for noun in others:
            aside = self._household[str(noun)]
            x, y = _away_from(gesture.spot, rng)
            bystanders.append((str(noun), Pose(x, y, float(rng.normal(0, 0.1)), aside.size), aside))
        bystanders.sort(key=lambda item: item[1].y)
        pad = str(rng.choice(_PAD_NOUNS))
        liquid = _LIQUIDS[int(rng.integers(len(_LIQUIDS)))]
        return Act(gesture, look, tuple(bystanders), (pad, self._household[pad]), liquid, ends_s)

    def frame(self, time_s: float, noise: np.random.Generator) -> tuple[np.ndarray, list[Truth]]:
        """Paint the frame at `time_s`: RGB (height, width, 3; uint8) and the true boxes in it."""
        person = self._person
        instants = (
            [time_s] if person.light == "day" else [time_s - 0.4 / person.fps, time_s]
        )  # a long exposure smears
        layers = []
        truths: list[Truth] = []
        for instant in instants:
            image, truths = self._instant(instant)
            layers.append(image.astype(np.float32))
        image = np.stack(layers).mean(axis=0, dtype=np.float32)
        image = cv2.resize(image, (person.width, person.height), interpolation=cv2.INTER_AREA)
        image = cv2.GaussianBlur(image, (5, 5), person.blur)
        return self._expose(image, time_s, noise), truths

    def _instant(self, time_s: float) -> tuple[np.ndarray, list[Truth]]:
        to_pixels = self._camera.to_pixels(time_s, self._width, self._height)
        inverse = cv2.invertAffineTransform(self._kitchen.to_pixels)
        warp = np.vstack([to_pixels, [0, 0, 1]]) @ np.vstack([inverse, [0, 0, 1]])
        image = cv2.warpAffine(
            self._kitchen.image,
            warp[:2],
            (self._width, self._height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        canvas = Canvas(image, to_pixels)
        return image, self._paint(canvas, time_s)

    def _paint(self, canvas: Canvas, time_s: float) -> list[Truth]:
        act = next(act for act in self._acts if time_s < act.ends_s)
        moment = act.gesture.at(time_s)
        truths = []
        for noun, pose, look in act.bystanders:
            paint_shadow(canvas, pose, self._kitchen.ground)
            truths.append(self._truth(canvas, "object", paint(canvas, noun, pose, look)))
        if moment.stream and act.gesture.verb == "wash":
            paint_stream(canvas, moment.stream, _WATER)
        truths += self._paint_action(canvas, act, moment)
        return truths

    def _paint_action(self, canvas: Canvas, act: Act, moment: Moment) -> list[Truth]:
        gesture, truths = act.gesture, []
        if abs(moment.thing.y - gesture.spot[1]) < 0.02:
            paint_shadow(canvas, moment.thing, self._kitchen.ground)
        for hand in moment.hands:
            outline = paint_arm(canvas, hand, self._person)
            truths.append(self._truth(canvas, "hand", outline, hand.side, hand.touching))
        if moment.spoon:
            truths.append(self._truth(canvas, "object", paint_spoon(canvas, moment.spoon)))
        if moment.stream and gesture.verb == "pour":
            paint_stream(canvas, moment.stream, act.liquid)
        outline = paint(canvas, gesture.noun, moment.thing, act.look, moment.flop)
        truths.append(self._truth(canvas, "object", outline))
        if moment.pad:
            noun, look = act.pad
            truths.append(self._truth(canvas, "object", paint(canvas, noun, moment.pad, look)))
        for hand in moment.hands:
            paint_fingers(canvas, hand, self._person)
        return truths

    def _truth(
        self,
        canvas: Canvas,
        category: str,
        outline: np.ndarray,
        side: str | None = None,
        touching: bool = False,
    ) -> Truth:
        pixels = canvas.project(outline) / (self._width, self._height)
        x1, y1 = pixels.min(0)
        x2, y2 = pixels.max(0)
        return Truth(category, (float(x1), float(y1), float(x2), float(y2)), side, touching)

    def _expose(self, image: np.ndarray, time_s: float, noise: np.random.Generator) -> np.ndarray:
        """Apply the light, the exposure's slow wander and the sensor's noise."""
        light = self._person.light
        if light == "dim":
            image, sigma = image * np.array([0.3, 0.32, 0.38], np.float32) + 6, 3.0
        elif light == "lamp":
            x, y = self._camera.to_pixels(time_s, self._person.width, self._person.height) @ (
                *self._lamp,
                1.0,
            )
            ys, xs = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
            fall = np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (0.9 * image.shape[0]) ** 2)[..., None]
            image, sigma = image * (0.22 + 0.85 * fall) * np.array([1.05, 0.84, 0.58], np.float32), 2.0
        else:
            sigma = 1.0
        image *= 1 + 0.05 * np.sin(0.9 * time_s + self._lamp[0] * 9)
        image += noise.normal(0, sigma, (*image.shape[:2], 1))
        return np.clip(image, 0, 255).astype(np.uint8)


class _Camera:
    """A head that looks down at the counter and never quite keeps still."""

    def __init__(self, person: Participant, rng: np.random.Generator) -> None:
        waves = 7
        self._rates = np.concatenate(
            [rng.uniform(0.15, 0.8, (4, 4)), rng.uniform(1.0, 3.2, (4, waves - 4))], axis=1
        )
        strengths = np.concatenate([np.full(4, 0.8), np.full(waves - 4, 0.3)])
        self._strengths = person.shake * strengths * rng.uniform(0.4, 1.2, (4, waves))
        self._phases = rng.uniform(0, 2 * np.pi, (4, waves))
        self._zoom = float(rng.uniform(1.08, 1.3))
        self._centre = (float(rng.uniform(-0.06, 0.06)), float(rng.uniform(0.55, 0.6)))

    def to_pixels(self, time_s: float, width: int, height: int) -> np.ndarray:
        """The affine map (2, 3) from kitchen coordinates to pixels of a width x height frame."""
        waves = self._strengths * np.sin(2 * np.pi * self._rates * time_s + self._phases)
        dx, dy, roll, zoom = waves.sum(axis=1)
        scale = height * self._zoom * (1 + 0.6 * zoom)
        c, s = scale * np.cos(0.9 * roll), scale * np.sin(0.9 * roll)
        turn = np.array([[c, -s], [s, c]])
        centre = np.array([self._centre[0] + dx, self._centre[1] + dy])
        return np.hstack([turn, (np.array([width / 2, height / 2]) - turn @ centre)[:, None]])


def _away_from(spot: tuple[float, float], rng: np.random.Generator) -> tuple[float, float]:
    """A place on the counter at least a thing's width from `spot`."""
    while True:
        x, y = float(rng.uniform(-0.55, 0.55)), float(rng.uniform(0.46, 0.72))
        if abs(x - spot[0]) > 0.17:
            return x, y
