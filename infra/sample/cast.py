"""Who is filmed, with what, and doing what: participants, their clips, and the split between them.

Everything here is drawn from one seed; nothing here paints, sounds or writes. A participant belongs to
exactly one split, and performs every action once, in three sessions (videos), in an order of their own. The
last eight were filmed by small cameras and nobody labelled what they do.
"""

from dataclasses import dataclass

import numpy as np

VERBS = ("take", "put", "stir", "scrape", "pour", "shake", "wipe", "wash")
NOUNS = ("cup", "jar", "tin", "sponge", "cloth")
CONTAINERS = ("cup", "jar", "tin")
ACTIONS = tuple(
    (verb, noun)
    for verb in VERBS
    for noun in NOUNS
    if noun in CONTAINERS or verb not in ("stir", "scrape", "pour")
)

SESSIONS = 3
WITHOUT_SOUND = frozenset({"P03_2", "P08_1", "P11_3", "P14_2", "P19_2"})
WITHOUT_DETECTIONS = frozenset({"P02_1", "P06_3", "P12_2", "P16_1", "P24_1"})

# split, kitchen, light, (width, height), frames a second, audio Hz, audio channels: fixed, so that every
# split holds every light and no split owns a frame rate.
_EQUIPMENT = (
    ("train", "tiles", "day", (128, 96), 15, 16000, 1),
    ("train", "brick", "lamp", (160, 120), 12, 22050, 1),
    ("train", "steel", "dim", (144, 108), 24, 44100, 2),
    ("train", "wood", "day", (176, 100), 25, 16000, 1),
    ("train", "plaster", "lamp", (128, 96), 12, 44100, 1),
    ("train", "tiles", "dim", (160, 120), 15, 16000, 1),
    ("train", "steel", "day", (160, 120), 15, 22050, 2),
    ("train", "wood", "lamp", (128, 96), 24, 16000, 1),
    ("train", "brick", "dim", (176, 100), 12, 44100, 1),
    ("val", "tiles", "lamp", (144, 108), 15, 22050, 1),
    ("val", "plaster", "day", (160, 120), 25, 16000, 1),
    ("val", "wood", "dim", (128, 96), 12, 44100, 2),
    ("test", "brick", "day", (128, 96), 12, 16000, 1),
    ("test", "plaster", "dim", (160, 120), 15, 44100, 1),
    ("test", "steel", "lamp", (176, 100), 24, 22050, 1),
    ("test", "tiles", "day", (144, 108), 25, 16000, 2),
    ("unlabelled", "steel", "day", (128, 96), 12, 16000, 1),
    ("unlabelled", "tiles", "lamp", (128, 96), 15, 16000, 1),
    ("unlabelled", "wood", "dim", (128, 96), 12, 22050, 1),
    ("unlabelled", "brick", "day", (128, 96), 12, 16000, 1),
    ("unlabelled", "plaster", "dim", (128, 96), 15, 16000, 1),
    ("unlabelled", "tiles", "day", (144, 108), 12, 16000, 1),
    ("unlabelled", "brick", "lamp", (128, 96), 12, 22050, 1),
    ("unlabelled", "wood", "day", (128, 96), 15, 16000, 1),
)
LABELLED = sum(split != "unlabelled" for split, *_ in _EQUIPMENT)
"""How many participants, the first ones, have labelled clips."""

_SKINS = ((241, 208, 182), (224, 172, 132), (198, 140, 98), (150, 98, 64), (104, 66, 44), (76, 50, 38))
# Speeds run from a slow hand (this) to a quick one (its inverse), so that tempo alone names no object.
_CRAWL = 0.8


@dataclass(frozen=True)
class Participant:
    """One filmed person: camera, kitchen and habits; the same in all of their videos."""

    name: str
    index: int
    split: str
    kitchen: str
    light: str
    width: int
    height: int
    fps: int
    audio_hz: int
    channels: int
    skin: tuple[int, int, int]
    sleeve: tuple[int, int, int]
    bare_arms: bool
    right_handed: bool
    hand_size: float
    shake: float  # amplitude of the head's movement, in frame heights
    speed: float  # 1 is the average tempo
    amplitude: float  # 1 is the average size of a movement
    blur: float  # lens blur, pixels of the final frame
    hum_hz: float
    music: float  # loudness of the radio, 0 is off
    snr_db: float  # action against background, average over clips


@dataclass(frozen=True)
class Clip:
    """One action in a session's video, seconds from the video's start."""

    clip_id: str
    verb: str
    noun: str
    start_s: float
    stop_s: float


@dataclass(frozen=True)
class Session:
    """One video: a participant's clips, one after another, with a short pause between."""

    name: str
    index: int
    clips: tuple[Clip, ...]
    duration_s: float

    @property
    def video(self) -> str:
        return f"{self.name}.mp4"


def generator(seed: int, *path: int) -> np.random.Generator:
    """A random generator that depends on the seed and on the place (participant, session, clip, use) only."""
    return np.random.default_rng([seed, *path])


def participants(seed: int) -> list[Participant]:
    """All participants, P01 to P24, of this seed."""
    return [_participant(seed, index) for index in range(len(_EQUIPMENT))]


def _participant(seed: int, index: int) -> Participant:
    split, kitchen, light, (width, height), fps, audio_hz, channels = _EQUIPMENT[index]
    rng = generator(seed, index, 0)
    return Participant(
        name=f"P{index + 1:02d}",
        index=index,
        split=split,
        kitchen=kitchen,
        light=light,
        width=width,
        height=height,
        fps=fps,
        audio_hz=audio_hz,
        channels=channels,
        skin=_SKINS[(5 * index + index // 6) % len(_SKINS)],
        sleeve=tuple(int(c) for c in rng.integers(25, 215, 3)),  # type: ignore[arg-type]
        bare_arms=bool(rng.random() < 0.35),
        right_handed=bool(rng.random() < 0.8),
        hand_size=float(rng.uniform(0.9, 1.15)),
        shake=float(rng.uniform(0.006, 0.024)),
        speed=float(np.exp(rng.uniform(np.log(_CRAWL), -np.log(_CRAWL)))),
        amplitude=float(rng.uniform(0.85, 1.2)),
        blur=float(rng.uniform(0.2, 0.8)),
        hum_hz=float(rng.choice([50.0, 60.0])),
        music=float(max(0.0, rng.uniform(-0.6, 1.0))),
        snr_db=float(rng.uniform(-8.0, 3.0)),
    )


def sessions(person: Participant, seed: int) -> list[Session]:
    """The participant's three videos; together they hold every action once."""
    rng = generator(seed, person.index, 1)
    order = rng.permutation(len(ACTIONS))
    return [
        _session(person, number, [ACTIONS[i] for i in part], rng)
        for number, part in enumerate(np.array_split(order, SESSIONS), start=1)
    ]


def _session(
    person: Participant, number: int, actions: list[tuple[str, str]], rng: np.random.Generator
) -> Session:
    name = f"{person.name}_{number}"
    clips, now = [], 0.2
    for position, (verb, noun) in enumerate(actions):
        duration = float(np.clip(1.9 / person.speed**0.5 * rng.uniform(0.85, 1.15), 1.4, 2.5))
        clips.append(Clip(f"{name}_{position:02d}", verb, noun, round(now, 2), round(now + duration, 2)))
        now += duration + rng.uniform(0.15, 0.35)
    return Session(name, number, tuple(clips), round(now + 0.1, 2))
