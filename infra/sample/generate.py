"""Renders the sample data set: first-person kitchen clips in the raw format that `understudy import` reads.

    python -m infra.sample.generate data/raw            # the data set, about 15 MB
    python -m infra.sample.generate --sheet docs/sample.png

Sixteen participants (nine train, three val, four test) perform each of 34 actions once: eight verbs on five
nouns. Eight more do the same, but nobody labelled their clips: only teachers can say what they show. One
gesture (motion.py) drives picture, sound and boxes, so every modality tells of the same movement, each in its
own way:

- **rgb** holds everything, but faintly: small frames, low light, camera shake, lens and exposure blur,
  compression, fingers over the thing, and look-alike things standing about. Which noun it is shows in small
  marks (a jar's neck, a tin's label, a sponge's pores, a cloth's fold); pouring shows a thin stream, washing
  the running tap.
- **flow** shows how things move whatever their colours and the light: a jar is heavy (slow, low, small
  movements), a tin light (quick, high, overshooting), a sponge rigid, a cloth trails and flaps; take and put
  are one path, run forwards and backwards.
- **detections** give the paths of hands and things precisely, with hand side and contact state (grasping
  comes before the lift in take, letting go after it in put), and the box of a cloth changes shape. They
  never name the noun, and have misses, false boxes, jitter, wrong sides and states.
- **audio** parts what looks alike: stir (clinks) and scrape (grating), pour (gurgle) and shake (rattle or
  flap), wipe (rubbing) and wash (water); and materials ring differently: jar (glass), tin, cup (crockery),
  soft things. Over it lie hum, a radio and other people's dishes, at a signal-to-noise ratio of the
  participant's own.

A few videos have no sound track, and a few no detections file: a clip may lack a modality.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from infra.sample.cast import (
    WITHOUT_DETECTIONS,
    WITHOUT_SOUND,
    Participant,
    Session,
    generator,
    participants,
    sessions,
)
from infra.sample.detector import Detector
from infra.sample.film import write_film
from infra.sample.scene import Scene
from infra.sample.sheet import draw_sheet
from infra.sample.sound import render_sound

SEED = 7
COLUMNS = ("clip_id", "video", "start_s", "stop_s", "verb", "noun", "group", "split", "light", "kitchen")
_DETECTIONS_HZ = 6.5  # detectors are run on every second or third frame, at about this rate

_README = """# Sample data set: a rendered kitchen

{clips} clips of {verbs} verbs and {nouns} nouns by {people} participants, drawn by `infra/sample` (seed
{seed}) in the raw format of this project: `videos/` (H.264, AAC), `annotations.csv`,
`detections/<video>.jsonl`. Nothing in it was filmed. `group` is the participant, `light` and `kitchen` are
slices. Some videos have no sound, some no detections. Clips of the split `unlabelled` are cut at the actions,
but nothing says which. The data is dedicated to the public domain under CC0
1.0.
"""


def generate(out: Path, seed: int = SEED, people: int | None = None) -> None:
    """Write the data set under `out`: the first `people` participants, or all of them."""
    (out / "videos").mkdir(parents=True, exist_ok=True)
    (out / "detections").mkdir(exist_ok=True)
    rows = []
    cast = participants(seed)[:people]
    for person in cast:
        for session in sessions(person, seed):
            _write_session(out, person, session, seed)
            rows += _annotations(person, session)
    with (out / "annotations.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    counts = {
        name: len({row[column] for row in rows} - {""}) for name, column in (("verbs", 4), ("nouns", 5))
    }
    (out / "README.md").write_text(_README.format(clips=len(rows), people=len(cast), seed=seed, **counts))


def _annotations(person: Participant, session: Session) -> list[tuple]:
    labelled = person.split != "unlabelled"
    return [
        (
            c.clip_id,
            session.video,
            c.start_s,
            c.stop_s,
            c.verb if labelled else "",
            c.noun if labelled else "",
            person.name,
            person.split,
            person.light,
            person.kitchen,
        )
        for c in session.clips
    ]


def _write_session(out: Path, person: Participant, session: Session, seed: int) -> None:
    scene = Scene(person, session, seed)
    lines: list[str] = []
    sound = None
    if session.name not in WITHOUT_SOUND:
        sound = render_sound(person, session, scene.gestures, seed)
    frames = _film(scene, person, session, seed, lines)
    write_film(out / "videos" / session.video, frames, person.fps, sound, person.audio_hz)
    if session.name not in WITHOUT_DETECTIONS:
        (out / "detections" / f"{session.video}.jsonl").write_text("\n".join(lines) + "\n")


def _film(
    scene: Scene, person: Participant, session: Session, seed: int, lines: list[str]
) -> Iterator[np.ndarray]:
    """Yield the session's frames; append the detector's lines to `lines` on the way."""
    noise = generator(seed, person.index, 5, session.index)
    detector = Detector(person.light, generator(seed, person.index, 6, session.index))
    stride = max(1, round(person.fps / _DETECTIONS_HZ))
    for number in range(int(session.duration_s * person.fps)):
        time_s = number / person.fps
        image, truths = scene.frame(time_s, noise)
        if number % stride == 0:
            lines.append(detector.line(time_s, truths))
        yield image


def main() -> None:
    """Read the command line and write the data set, or the picture of it."""
    parser = argparse.ArgumentParser(description="Render the sample data set.")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("out", nargs="?", type=Path, help="folder to write, such as data/raw")
    target.add_argument("--sheet", type=Path, help="write only a contact sheet, to this PNG")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    if args.sheet:
        draw_sheet(args.sheet, args.seed)
    else:
        generate(args.out, args.seed)


if __name__ == "__main__":
    main()
