"""The sample's generator: its plan, its physics, its files, and that equal seeds give equal bytes."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from infra.sample import cast, film, generate, motion, sound
from infra.sample.detector import Detector
from infra.sample.scene import Scene, Truth


def _gesture(verb: str, noun: str, **changes: Any) -> motion.Gesture:
    plain: dict[str, Any] = {
        "verb": verb,
        "noun": noun,
        "start_s": 1.0,
        "duration_s": 2.0,
        "side": "right",
        "spot": (0.0, 0.6),
        "size": 0.2,
        "turn": 0.0,
        "rate_hz": 2.0,
        "amplitude": 0.1,
        "flatness": 0.5,
        "phase": 0.0,
        "tilt": 1.0,
        "grasp": 0.4,
        "exit_x": 0.0,
        "helper": True,
        "enters": False,
    }
    return motion.Gesture(**{**plain, **changes})


def test_every_participant_is_in_one_split_and_performs_every_action_once():
    people = cast.participants(seed=7)
    counts = [sum(p.split == split for p in people) for split in ("train", "val", "test", "unlabelled")]
    assert counts == [9, 3, 4, 8]
    assert [p.split == "unlabelled" for p in people] == [False] * cast.LABELLED + [True] * 8
    for person in people:
        done = [(c.verb, c.noun) for s in cast.sessions(person, seed=7) for c in s.clips]
        assert sorted(done) == sorted(cast.ACTIONS)
    assert len(cast.ACTIONS) == 34


def test_every_split_holds_every_light():
    people = cast.participants(seed=7)
    for split in ("train", "val", "test", "unlabelled"):
        assert {p.light for p in people if p.split == split} == {"day", "dim", "lamp"}


def test_clips_lie_apart_within_their_video():
    for session in cast.sessions(cast.participants(seed=7)[0], seed=7):
        ends = [0.0]
        for clip in session.clips:
            assert ends[-1] < clip.start_s < clip.stop_s < session.duration_s
            ends.append(clip.stop_s)


def test_put_is_take_run_backwards():
    take, put = _gesture("take", "cup"), _gesture("put", "cup")
    for share in (0.0, 0.3, 0.7, 1.0):
        forth, back = take.at(1.0 + 2.0 * share), put.at(3.0 - 2.0 * share)
        assert forth.thing.x == pytest.approx(back.thing.x)
        assert forth.thing.y == pytest.approx(back.thing.y)
        assert forth.hands[1].touching == back.hands[1].touching


def test_a_jar_is_heavier_than_a_tin():
    peak = {
        noun: min(_gesture("take", noun).at(t).thing.y for t in np.linspace(1, 3, 50))
        for noun in ("jar", "tin")
    }
    assert peak["tin"] < peak["jar"] - 0.03


def test_only_a_cloth_trails_behind_the_hand():
    assert _gesture("shake", "cloth").at(2.0).flop != (0.0, 0.0)
    assert _gesture("shake", "sponge").at(2.0).flop == (0.0, 0.0)


def test_nothing_spoken_of_a_noun_in_the_detections():
    detector = Detector("day", np.random.default_rng(0))
    truths = [Truth("object", (0.2, 0.2, 0.5, 0.5)), Truth("hand", (0.4, 0.4, 0.6, 0.7), "left", True)]
    boxes = [box for _ in range(50) for box in json.loads(detector.line(0.0, truths))["boxes"]]
    assert {box["category"] for box in boxes} == {"hand", "object"}
    assert all(0 <= value <= 1 for box in boxes for value in (*box["box"], box["score"]))
    hands = [box for box in boxes if box["category"] == "hand"]
    assert 0.75 < np.mean([box["side"] == "left" for box in hands]) <= 1
    assert all(set(box) == {"box", "category", "score"} for box in boxes if box["category"] == "object")


def test_a_thing_out_of_the_frame_is_not_detected():
    detector = Detector("day", np.random.default_rng(0))
    lines = [json.loads(detector.line(0.0, [Truth("hand", (1.2, 0.2, 1.4, 0.5), "left")])) for _ in range(20)]
    assert not [box for line in lines for box in line["boxes"] if box["category"] == "hand"]


def test_a_frame_has_the_cameras_size_and_the_handled_thing_in_it():
    person = cast.participants(seed=7)[3]
    session = cast.sessions(person, seed=7)[0]
    clip = session.clips[2]
    image, truths = Scene(person, session, seed=7).frame(
        (clip.start_s + clip.stop_s) / 2, np.random.default_rng(0)
    )
    assert image.shape == (person.height, person.width, 3)
    assert image.dtype == np.uint8
    assert image.std() > 10
    assert {t.category for t in truths} == {"hand", "object"}


def test_sound_has_the_sessions_length_and_stays_within_full_scale():
    person = cast.participants(seed=7)[2]
    session = cast.sessions(person, seed=7)[0]
    samples = sound.render_sound(person, session, Scene(person, session, seed=7).gestures, seed=7)
    assert samples.shape == (2, int(np.ceil(session.duration_s * 44100)))
    assert samples.std() > 0.01
    assert np.abs(samples).max() <= 1


def test_equal_input_gives_equal_bytes(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (12, 60, 80, 3), dtype=np.uint8)
    noise = rng.normal(0, 0.1, (1, 16000)).astype(np.float32)
    names = [f"{number}.mp4" for number in range(6)]
    for name in names:
        film.write_film(tmp_path / name, frames, 12, noise, 16000)
    assert len({(tmp_path / name).read_bytes() for name in names}) == 1
    with av.open(str(tmp_path / names[0])) as opened:
        assert [s.codec_context.name for s in opened.streams] == ["h264", "aac"]
        assert sum(1 for _ in opened.decode(video=0)) == 12


@pytest.fixture
def short(monkeypatch):
    """The generator, cut down to the first clip of each session."""
    whole = cast.sessions

    def cut(person: cast.Participant, seed: int) -> list[cast.Session]:
        return [
            cast.Session(s.name, s.index, s.clips[:1], s.clips[0].stop_s + 0.2) for s in whole(person, seed)
        ]

    monkeypatch.setattr(generate, "sessions", cut)


def test_generate_writes_the_raw_format_and_repeats_itself(tmp_path, short):
    for name in ("one", "two"):
        generate.generate(tmp_path / name, seed=7, people=3)
    digests = [
        {
            p.relative_to(tmp_path / name): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in _files(tmp_path / name)
        }
        for name in ("one", "two")
    ]
    assert [d.name for d in digests[0]] == [d.name for d in digests[1]]
    assert list(digests[0].values()) == list(digests[1].values())

    rows = list(csv.DictReader((tmp_path / "one" / "annotations.csv").open()))
    assert tuple(rows[0]) == generate.COLUMNS
    assert len(rows) == 9
    for row in rows:
        with av.open(str(tmp_path / "one" / "videos" / row["video"])) as video:
            assert float(video.duration / 1e6) > float(row["stop_s"])
            assert bool(video.streams.audio) == (row["video"] != "P03_2.mp4")
        boxes = tmp_path / "one" / "detections" / f"{row['video']}.jsonl"
        assert boxes.exists() == (row["video"] != "P02_1.mp4")
        if boxes.exists():
            times = [json.loads(line)["time_s"] for line in boxes.read_text().splitlines()]
            assert times == sorted(times)
            assert times[0] == 0.0


def test_nobody_labelled_the_last_participants(short, tmp_path, monkeypatch):
    people = cast.participants(seed=7)
    monkeypatch.setattr(generate, "participants", lambda seed: [people[0], people[-1]])
    generate.generate(tmp_path / "two", seed=7)
    rows = list(csv.DictReader((tmp_path / "two" / "annotations.csv").open()))
    assert [(bool(row["verb"]), bool(row["noun"]), row["split"]) for row in rows] == (
        [(True, True, "train")] * 3 + [(False, False, "unlabelled")] * 3
    )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
