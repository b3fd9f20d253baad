"""What a session sounds like: the actions, each thing's material, and the kitchen's noise over them.

Sounds follow the same gestures as the picture: a spoon clinks at its turns, a scrape is loud while the spoon
is quick, a rattle falls on every swing, a thud on the instant a thing is put down. Materials ring: glass
high and long, tin at many pitches, crockery short and low; soft things only thud.
"""

from collections.abc import Callable

import numpy as np
from scipy.signal import butter, sosfilt

from infra.sample.cast import CONTAINERS, Participant, Session, generator
from infra.sample.motion import Gesture

_MODES_HZ = {
    "cup": (1650.0, 2900.0),
    "jar": (3300.0, 5200.0, 6400.0),
    "tin": (820.0, 1370.0, 2210.0, 3120.0),
    "sponge": (140.0,),
    "cloth": (210.0,),
}
_DECAY_S = {"cup": 0.05, "jar": 0.16, "tin": 0.09, "sponge": 0.03, "cloth": 0.025}
_MASTER = 0.12  # root mean square of the loudest part, of full scale


class _Track:
    """One channel of samples that sounds are added to; times in seconds."""

    def __init__(self, duration_s: float, rate_hz: int, rng: np.random.Generator) -> None:
        self.rate_hz = rate_hz
        self.rng = rng
        self.samples = np.zeros(int(np.ceil(duration_s * rate_hz)))

    def add(self, start_s: float, sound: np.ndarray) -> None:
        first = max(0, round(start_s * self.rate_hz))
        sound = sound[: max(0, len(self.samples) - first)]
        self.samples[first : first + len(sound)] += sound

    def times(self, duration_s: float) -> np.ndarray:
        return np.arange(int(duration_s * self.rate_hz)) / self.rate_hz

    def hiss(self, duration_s: float, low_hz: float, high_hz: float) -> np.ndarray:
        """Noise between two frequencies, root mean square 1."""
        nyquist = 0.5 * self.rate_hz
        band = [low_hz / nyquist, min(0.98, high_hz / nyquist)]
        noise = sosfilt(
            butter(2, band, btype="band", output="sos"), self.rng.standard_normal(len(self.times(duration_s)))
        )
        return np.asarray(noise / (noise.std() + 1e-9))

    def knock(self, noun: str, hardness: float = 1.0) -> np.ndarray:
        """The sound of something hard touching the thing once: its material's modes, and a click."""
        rng, t = self.rng, self.times(0.35)
        decay = _DECAY_S[noun] * rng.uniform(0.8, 1.25)
        pitch = rng.uniform(0.93, 1.07)
        modes = [f for f in _MODES_HZ[noun] if f * pitch < 0.48 * self.rate_hz]
        rung = sum(
            rng.uniform(0.4, 1.0)
            * np.sin(2 * np.pi * f * pitch * t + rng.uniform(0, 6))
            * np.exp(-t / (decay / (1 + k * 0.3)))
            for k, f in enumerate(modes)
        )
        click = self.rng.standard_normal(len(t)) * np.exp(-t / 0.004)
        return hardness * (rung + 0.5 * click)


def _stir(track: _Track, g: Gesture) -> None:
    for beat in _beats(g, per_cycle=2):
        if track.rng.random() < 0.75:
            track.add(beat, track.knock(g.noun, track.rng.uniform(0.3, 0.9)))
    slosh = track.hiss(g.duration_s, 200, 900) * _swing(track, g, 0.5) * 0.25
    track.add(g.start_s, slosh)


def _scrape(track: _Track, g: Gesture) -> None:
    low = _MODES_HZ[g.noun][0] * 0.9
    grate = track.hiss(g.duration_s, low, min(4.0 * low, 7500)) * _swing(track, g, 2.0)
    track.add(g.start_s, 0.8 * grate)
    for beat in _beats(g, per_cycle=2):
        if track.rng.random() < 0.3:
            track.add(beat, track.knock(g.noun, 0.4))


def _pour(track: _Track, g: Gesture) -> None:
    start, length = 0.22 * g.duration_s, 0.68 * g.duration_s
    t = track.times(length)
    rise = 500 + 500 * t / length  # the vessel below fills, so its note climbs
    gurgle = np.sin(2 * np.pi * np.cumsum(rise) / track.rate_hz + 2 * np.sin(2 * np.pi * 9 * t))
    flow = track.hiss(length, 500, 2600) * 0.5 + 0.5 * gurgle * (0.5 + 0.5 * track.hiss(length, 4, 14))
    track.add(g.start_s + start, flow * np.minimum(1, 8 * np.minimum(t, length - t + 0.02)))


def _shake(track: _Track, g: Gesture) -> None:
    for beat in _beats(g, per_cycle=2):
        if g.noun in CONTAINERS:
            for late in track.rng.uniform(0, 0.05, 4):
                track.add(beat + late, track.knock(g.noun, track.rng.uniform(0.3, 0.7)))
        else:
            puff = track.hiss(0.12, 300, 3000 if g.noun == "cloth" else 1200)
            track.add(beat, puff * np.hanning(len(puff)) * (1.4 if g.noun == "cloth" else 0.6))


def _wipe(track: _Track, g: Gesture) -> None:
    top = {"sponge": 2400, "cloth": 1500}.get(g.noun, 2000)
    rub = track.hiss(g.duration_s, 500, top) * _swing(track, g, 1.5) * 0.5
    track.add(g.start_s, rub)
    _squeak(track, g, 0.35)


def _wash(track: _Track, g: Gesture) -> None:
    water = track.hiss(g.duration_s, 900, 6500) * (1 + 0.35 * _swing(track, g, 1.0))
    track.add(g.start_s, 0.55 * water)
    _squeak(track, g, 0.5)


def _squeak(track: _Track, g: Gesture, chance: float) -> None:
    if g.noun in CONTAINERS:
        for beat in _beats(g, per_cycle=2):
            if track.rng.random() < chance:
                track.add(beat, track.knock(g.noun, 0.35))


def _take(track: _Track, g: Gesture) -> None:
    grasp = g.start_s + g.grasp * g.duration_s
    track.add(grasp - 0.02, track.knock(g.noun, 0.35))
    slide = track.hiss(0.25, 250, 1600)
    track.add(grasp, 0.35 * slide * np.linspace(1, 0, len(slide)))


def _put(track: _Track, g: Gesture) -> None:
    landing = g.start_s + (1 - g.grasp) * g.duration_s
    heft = {"jar": 1.5, "tin": 0.8, "cup": 1.0}.get(g.noun, 0.4)
    track.add(landing, track.knock(g.noun, heft))
    t = track.times(0.12)
    track.add(landing, heft * np.sin(2 * np.pi * 95 * t) * np.exp(-t / 0.03))


_VOICES: dict[str, Callable[[_Track, Gesture], None]] = {
    "take": _take,
    "put": _put,
    "stir": _stir,
    "scrape": _scrape,
    "pour": _pour,
    "shake": _shake,
    "wipe": _wipe,
    "wash": _wash,
}


def _beats(g: Gesture, per_cycle: int) -> np.ndarray:
    """The times at which the repeated movement turns."""
    first = -g.phase / (2 * np.pi * g.rate_hz)
    times = first + np.arange(0, 60) / (per_cycle * g.rate_hz)
    return g.start_s + times[(times > 0.1 * g.duration_s) & (times < 0.92 * g.duration_s)]


def _swing(track: _Track, g: Gesture, power: float) -> np.ndarray:
    """Loudness that follows the speed of the repeated movement, 0 to 1, over the clip."""
    t = track.times(g.duration_s)
    return np.asarray(np.abs(np.cos(2 * np.pi * g.rate_hz * t + g.phase)) ** power)


def render_sound(person: Participant, session: Session, gestures: list[Gesture], seed: int) -> np.ndarray:
    """The session's sound: (channels, samples), float32 within -1 to 1, at the participant's rate."""
    rng = generator(seed, person.index, 4, session.index)
    track = _Track(session.duration_s, person.audio_hz, rng)
    for gesture in gestures:
        voice = _Track(session.duration_s, person.audio_hz, rng)
        _VOICES[gesture.verb](voice, gesture)
        loudness = _MASTER * 10 ** (rng.uniform(-7, 3) / 20)
        track.samples += voice.samples * loudness / (_loudest(voice) + 1e-9)
    noise = _Track(session.duration_s, person.audio_hz, rng)
    _hum(noise, person)
    _radio(noise, person)
    _clatter(noise)
    noise.samples *= _MASTER * 10 ** (-person.snr_db / 20) / (noise.samples.std() + 1e-9)
    mono = np.tanh(track.samples + noise.samples)
    if person.channels == 1:
        return mono[None].astype(np.float32)
    balance = rng.uniform(0.7, 1.0, 2)
    return np.stack([balance[0] * mono, balance[1] * np.roll(mono, 9)]).astype(np.float32)


def _loudest(track: _Track) -> float:
    """Root mean square of the loudest quarter of a second."""
    window = track.rate_hz // 4
    energy = np.concatenate([[0.0], np.cumsum(track.samples**2)])
    return float(np.sqrt(np.max(energy[window:] - energy[:-window]) / window))


def _hum(track: _Track, person: Participant) -> None:
    duration = len(track.samples) / track.rate_hz
    t = np.arange(len(track.samples)) / track.rate_hz
    for harmonic in (1, 2, 3, 5):
        track.samples += np.sin(2 * np.pi * harmonic * person.hum_hz * t) / harmonic * 0.5
    track.add(0, 0.6 * track.hiss(duration, 80, 700))


def _radio(track: _Track, person: Participant) -> None:
    """Slow broken chords, as from a radio in the next room."""
    beat = 60 / track.rng.uniform(80, 130)
    for start in np.arange(0, len(track.samples) / track.rate_hz, beat):
        root = 110 * 2 ** (track.rng.choice([0, 3, 5, 7, 10]) / 12)
        t = track.times(beat)
        for step in (0, 4, 7, 12, 19):
            tone = np.sin(2 * np.pi * root * 2 ** (step / 12) * t) * np.exp(-2 * t)
            track.add(start, person.music * 0.8 * track.rng.uniform(0.2, 1.0) * tone)


def _clatter(track: _Track) -> None:
    """Somebody else's dishes, now and then."""
    for start in np.arange(0, len(track.samples) / track.rate_hz, 0.8):
        if track.rng.random() < 0.3:
            noun = str(track.rng.choice(CONTAINERS))
            track.add(start + track.rng.uniform(0, 0.8), track.knock(noun, track.rng.uniform(1.0, 4.0)))
