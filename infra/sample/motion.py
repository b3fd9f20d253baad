"""How hands and things move: each verb is a gesture, a pure function of time.

Coordinates are the kitchen's: x to the right with 0 in the middle, y down, the frame's height is 1, the
counter begins at y = 0.4. Painting, sound and detections all read the same gesture, so they tell of the same
movement. What a noun weighs shows here: a jar is heavy (slow, low, small), a tin light (quick, high, with
overshoot), a sponge keeps its shape, a cloth trails behind the hand and flaps.
"""

from dataclasses import dataclass, replace

import numpy as np

from infra.sample.cast import CONTAINERS, Clip, Participant

COUNTER_Y = 0.4
SINK = (0.3, 0.66)
_SIDE = 0.38  # where a hand takes hold: this far from the thing's middle, in its heights


@dataclass(frozen=True)
class Pose:
    """Where a thing is: centre, clockwise angle in radians, height in frame heights."""

    x: float
    y: float
    angle: float = 0.0
    size: float = 0.22


@dataclass(frozen=True)
class Hand:
    """One hand: side is "left" or "right", grip runs from 0 (flat, open) to 1 (closed around something)."""

    side: str
    x: float
    y: float
    grip: float
    touching: bool


@dataclass(frozen=True)
class Moment:
    """Everything that moves, at one instant. `flop` is the pull on a soft thing's free edge."""

    thing: Pose
    hands: tuple[Hand, ...]
    spoon: tuple[float, float, float, float] | None = None  # handle x, y, tip x, y
    pad: Pose | None = None  # what the rubbing hand holds when a container is wiped or washed
    stream: tuple[float, float, float, float] | None = None  # falling liquid: top x, y, bottom x, y
    flop: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Weight:
    """How a noun answers to the hand, relative to a cup."""

    tempo: float
    reach: float
    lift: float
    overshoot: float
    floppy: float


WEIGHTS = {
    "cup": Weight(1.0, 1.0, 1.0, 0.0, 0.0),
    "jar": Weight(0.62, 0.62, 0.5, 0.0, 0.0),
    "tin": Weight(1.38, 1.3, 1.3, 0.06, 0.0),
    "sponge": Weight(1.0, 0.9, 0.9, 0.0, 0.0),
    "cloth": Weight(0.95, 1.1, 1.1, 0.0, 1.0),
}


@dataclass(frozen=True)
class Gesture:
    """One performance of a verb on a noun, with everything that varies from clip to clip drawn beforehand."""

    verb: str
    noun: str
    start_s: float
    duration_s: float
    side: str  # the working hand
    spot: tuple[float, float]  # where the thing stands
    size: float
    turn: float  # the thing's angle when it stands
    rate_hz: float  # of the repeated movement
    amplitude: float  # of the repeated movement, frame heights
    flatness: float  # of its ellipse, 1 is a circle
    phase: float
    tilt: float  # radians, of a held container
    grasp: float  # when the hand reaches the thing, fraction of the clip
    exit_x: float
    helper: bool  # does the other hand hold the thing
    enters: bool  # does the working hand come in at the clip's start

    @property
    def sign(self) -> float:
        return 1.0 if self.side == "right" else -1.0

    def at(self, time_s: float) -> Moment:
        """The moment at `time_s` (seconds of the video; before the start or after the stop: its ends)."""
        moment = self._rigid(time_s)
        floppy = WEIGHTS[self.noun].floppy
        if not floppy:
            return moment
        earlier = self._rigid(time_s - 0.11)
        drag = 2.0 * floppy
        flop = (drag * (earlier.thing.x - moment.thing.x), drag * (earlier.thing.y - moment.thing.y))
        return replace(moment, flop=flop)

    def _rigid(self, time_s: float) -> Moment:
        u = float(np.clip((time_s - self.start_s) / self.duration_s, 0.0, 1.0))
        if self.verb in ("take", "put"):
            return self._carry(u if self.verb == "take" else 1.0 - u)
        cycle = 2 * np.pi * self.rate_hz * (time_s - self.start_s) + self.phase
        if self.verb in ("stir", "scrape"):
            return self._spoon(u, cycle)
        if self.verb in ("pour", "shake"):
            return self._hold(u, cycle)
        return self._rub(u, cycle)

    def _home(self, side: str) -> tuple[float, float]:
        return (0.42 if side == "right" else -0.42, 1.12)

    def _other(self, x: float, y: float, touching: bool) -> Hand:
        side = "left" if self.side == "right" else "right"
        if touching:
            return Hand(side, x, y, 0.85, True)
        home = self._home(side)
        return Hand(side, 0.75 * home[0], 0.93 + 0.05 * np.sin(self.phase), 0.3, False)

    def _carry(self, u: float) -> Moment:
        """Reach for the standing thing, lift it and bring it out of the frame towards the body."""
        weight = WEIGHTS[self.noun]
        x, y = self.spot
        if u < self.grasp:
            reach = _ease(u / self.grasp)
            home = self._home(self.side)
            at = _mix(home, (x + _SIDE * self.size * self.sign, y), reach)
            hand = Hand(self.side, at[0], at[1], 0.2 + 0.6 * _ease(2 * reach - 1), u > 0.94 * self.grasp)
            return Moment(self._standing(), (self._other(0, 0, False), hand))
        go = (u - self.grasp) / (1 - self.grasp)
        way = _ease(go * weight.tempo)
        high = 0.16 * weight.lift * self.amplitude / 0.1 * np.sin(np.pi * min(1.0, way * 1.2))
        over = weight.overshoot * np.sin(3 * np.pi * go) * (1 - go)
        px, py = _mix((x, y), (self.exit_x, 1.1), way)
        swing = self.turn + 0.5 * weight.reach * way * self.sign * self.tilt / 1.1
        thing = Pose(px + over, py - high, swing, self.size * (1 + 0.3 * way))
        hand = Hand(self.side, thing.x + _SIDE * thing.size * self.sign, thing.y, 0.8, True)
        return Moment(thing, (self._other(0, 0, False), hand))

    def _standing(self) -> Pose:
        return Pose(*self.spot, self.turn, self.size)

    def _arrival(self, u: float) -> float:
        return _ease(u / 0.22) if self.enters else 1.0

    def _spoon(self, u: float, cycle: float) -> Moment:
        """Move a spoon round in the standing container."""
        thing = self._standing()
        reach = 0.09 * self.amplitude / 0.1
        tip = (
            thing.x + 0.3 * reach * np.cos(cycle),
            thing.y - 0.36 * self.size + 0.3 * reach * self.flatness * np.sin(cycle),
        )
        grip = (
            thing.x + 0.09 * self.sign + reach * np.cos(cycle),
            thing.y - 0.16 + reach * self.flatness * np.sin(cycle),
        )
        lift = (1 - self._arrival(u)) * 0.4
        hand = Hand(self.side, grip[0] + lift * self.sign, grip[1] + lift, 0.9, True)
        spoon = (hand.x, hand.y, tip[0] + lift * self.sign, tip[1] + lift)
        other = self._other(thing.x - 0.4 * self.size * self.sign, thing.y + 0.03, self.helper)
        return Moment(thing, (other, hand), spoon=spoon)

    def _hold(self, u: float, cycle: float) -> Moment:
        """Lift the thing, tilt it, and keep it there with a tremble (pour) or a swing (shake)."""
        weight = WEIGHTS[self.noun]
        up = _ease(u / 0.25) * (1 - _ease((u - 0.88) / 0.24))
        wave = np.sin(cycle)
        angle = self.turn - self.sign * (self.tilt * up + 4.0 * self.amplitude * up * wave)
        high = 0.17 * weight.lift * up
        x = self.spot[0] - 0.25 * self.amplitude * up * np.cos(cycle) * self.flatness
        y = self.spot[1] - high + 0.45 * self.amplitude * up * wave
        thing = Pose(x, y, angle, self.size * (1 + 0.1 * up))
        hand = Hand(self.side, x + _SIDE * thing.size * self.sign, y, 0.85, True)
        stream = None
        if self.verb == "pour" and up > 0.8:
            lip = (x - self.sign * 0.5 * thing.size, y - 0.15 * thing.size)
            stream = (*lip, lip[0] - 0.01 * self.sign, min(0.97, self.spot[1] + 0.12))
        return Moment(thing, (self._other(x, y, False), hand), stream=stream)

    def _rub(self, u: float, cycle: float) -> Moment:
        """Rub the counter with a soft thing, or a standing container with a pad."""
        dx = self.amplitude * np.sin(cycle)
        dy = self.amplitude * self.flatness * np.cos(cycle)
        away = (1 - self._arrival(u)) * 0.35
        stream = None
        if self.verb == "wash":
            stream = (self.spot[0] + 0.02, 0.3, self.spot[0] + 0.02, self.spot[1] + 0.06)
        if self.noun not in CONTAINERS:
            thing = Pose(
                self.spot[0] + dx + away * self.sign,
                self.spot[1] + dy + away,
                self.turn + 1.5 * dx,
                self.size,
            )
            hand = Hand(self.side, thing.x + _SIDE * thing.size * self.sign, thing.y + 0.03, 0.5, True)
            return Moment(thing, (self._other(0, 0, False), hand), stream=stream)
        tremble = Pose(self.spot[0] + 0.12 * dx, self.spot[1] + 0.1 * dy, self.turn + 0.8 * dx, self.size)
        x = tremble.x + 0.5 * dx + (0.06 + away) * self.sign
        y = tremble.y + 0.8 * dy + away
        hand = Hand(self.side, x, y, 0.6, True)
        other = self._other(tremble.x - 0.4 * self.size * self.sign, tremble.y + 0.03, True)
        pad = Pose(x - 0.02 * self.sign, y - 0.01, 2 * dx, 0.12)
        return Moment(tremble, (other, hand), pad=pad, stream=stream)


_RATES_HZ = {"stir": 1.7, "scrape": 1.6, "pour": 1.9, "shake": 2.5, "wipe": 1.3, "wash": 1.5}
_AMPLITUDES = {"stir": 0.1, "scrape": 0.085, "pour": 0.022, "shake": 0.062, "wipe": 0.11, "wash": 0.085}
_FLATNESS = {"stir": 0.55, "scrape": 0.35, "pour": 0.4, "shake": 0.5, "wipe": 0.3, "wash": 0.5}
_TILTS = {"pour": 1.15, "shake": 0.8}


def draw_gesture(clip: Clip, person: Participant, size: float, rng: np.random.Generator) -> Gesture:
    """Draw how this person performs this clip; `size` is the height of their thing in frame heights."""
    weight = WEIGHTS[clip.noun]
    dominant = person.right_handed if rng.random() < 0.85 else not person.right_handed
    near_sink = clip.verb == "wash" or (clip.verb == "wipe" and rng.random() < 0.5)
    spot = (
        (SINK[0] + rng.uniform(-0.1, 0.1), SINK[1] + rng.uniform(-0.06, 0.06))
        if near_sink
        else (rng.uniform(-0.28, 0.28), rng.uniform(0.54, 0.74))
    )
    return Gesture(
        verb=clip.verb,
        noun=clip.noun,
        start_s=clip.start_s,
        duration_s=clip.stop_s - clip.start_s,
        side="right" if dominant else "left",
        spot=spot,
        size=size,
        turn=float(rng.normal(0.0, 0.12)),
        rate_hz=_RATES_HZ.get(clip.verb, 1.5) * weight.tempo * person.speed * float(rng.uniform(0.87, 1.15)),
        amplitude=_AMPLITUDES.get(clip.verb, 0.1)
        * weight.reach
        * person.amplitude
        * float(rng.uniform(0.85, 1.2)),
        flatness=_FLATNESS.get(clip.verb, 0.5) * float(rng.uniform(0.5, 1.6)),
        phase=float(rng.uniform(0, 2 * np.pi)),
        tilt=_TILTS.get(clip.verb, 1.0) * float(rng.uniform(0.7, 1.3)),
        grasp=float(rng.uniform(0.3, 0.55)),
        exit_x=float(rng.uniform(-0.35, 0.35)),
        helper=bool(rng.random() < 0.6),
        enters=bool(rng.random() < 0.6),
    )


def _ease(u: float) -> float:
    """Minimum-jerk progress from 0 to 1 (Flash and Hogan 1985), the way a hand moves between two points."""
    u = min(1.0, max(0.0, u))
    return u**3 * (10 - 15 * u + 6 * u * u)


def _mix(a: tuple[float, float], b: tuple[float, float], share: float) -> tuple[float, float]:
    return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share)
