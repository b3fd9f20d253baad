"""A picture of the sample: one row a verb, several participants and instants of each."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from infra.sample.cast import VERBS, generator, participants, sessions
from infra.sample.scene import Scene

_PEOPLE = (0, 3, 9, 6, 14, 15)  # columns: every kind of light and of kitchen
_INSTANTS = (0.3, 0.6)  # fractions of a clip: two frames show the movement
_TILE = (160, 120)  # width, height, pixels
_COLOURS = 128  # a palette, and sensor noise smoothed: in full colour the file would be three times as large
_MARGIN = 62  # pixels left of a row, for the verb's name


def draw_sheet(path: Path, seed: int) -> None:
    """Write the contact sheet as a PNG of a few hundred kilobytes."""
    rows = [[_label(verb)] for verb in VERBS]
    for index in _PEOPLE:
        person = participants(seed)[index]
        wanted = set(VERBS)
        for session in sessions(person, seed):
            scene = Scene(person, session, seed)
            for clip in session.clips:
                if clip.verb not in wanted:
                    continue
                wanted.remove(clip.verb)
                for share in _INSTANTS:
                    time_s = clip.start_s + share * (clip.stop_s - clip.start_s)
                    frame, _ = scene.frame(time_s, generator(seed, index, 7))
                    rows[VERBS.index(clip.verb)].append(_tile(frame))
    sheet = np.vstack([np.hstack(row) for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    palette = Image.fromarray(sheet).quantize(_COLOURS, dither=Image.Dither.NONE)
    palette.save(path, optimize=True)


def _tile(frame: np.ndarray) -> np.ndarray:
    """The frame cut to the tile's shape about its centre, with a thin border."""
    height, width = frame.shape[:2]
    wide = min(width, height * _TILE[0] // _TILE[1])
    left = (width - wide) // 2
    tile = cv2.resize(cv2.medianBlur(frame, 3)[:, left : left + wide], _TILE, interpolation=cv2.INTER_AREA)
    tile[:, -1] = tile[-1] = 255
    return tile


def _label(verb: str) -> np.ndarray:
    label = np.full((_TILE[1], _MARGIN, 3), 255, np.uint8)
    cv2.putText(label, verb, (4, _TILE[1] // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
    return label
