"""Shards: what is written comes back, by video and time; extraction is incremental and resumable."""

import json
from dataclasses import replace

import av
import numpy as np
import pytest

from tasks.clips import Video
from tasks.errors import InfrastructureError
from tasks.extract import extract
from tasks.modalities import audio, rgb
from tasks.modalities.audio import Audio
from tasks.modalities.detections import Detections
from tasks.modalities.flow import Flow
from tasks.modalities.modality import RawVideo
from tasks.modalities.rgb import Rgb
from tasks.shards import Row, Shards, shard_of, write_shard
from tasks.stores.video import VideoError


def folder_with(tmp_path, rows):
    write_shard(tmp_path / "shard-000.arrow", rows)
    manifest = {"modality": "rgb", "params": {}, "problems": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"shards": [{"file": "shard-000.arrow"}]}))
    return Shards(tmp_path)


def test_rows_come_back_by_video_and_nearest_time(tmp_path):
    rows = [("a b.mp4", Row(0.1 * n, 1.5, bytes([n]))) for n in range(5)]
    shards = folder_with(tmp_path, [*rows, ("ж.mp4", Row(3.0, 0.5, b"x" * 1000))])
    found = shards.rows("a b.mp4")
    assert found.times_s == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert found.aspect == 1.5
    assert [bytes(found.payload(found.nearest(t))) for t in (-1, 0.14, 0.16, 9)] == [
        b"\0",
        b"\1",
        b"\2",
        b"\4",
    ]
    assert bytes(shards.rows("ж.mp4").payload(0)) == b"x" * 1000
    assert shards.rows("absent.mp4") is None


def test_more_rows_than_a_batch_and_no_rows(tmp_path):
    many = [(f"{n // 3000}.mp4", Row(float(n), 1.0, str(n).encode())) for n in range(9000)]
    shards = folder_with(tmp_path, many)
    assert bytes(shards.rows("1.mp4").payload(5)) == b"3005"
    (tmp_path / "empty").mkdir()
    assert folder_with(tmp_path / "empty", []).rows("a") is None


def test_a_videos_shard_depends_on_its_name_alone():
    assert shard_of("a.mp4", 7) == shard_of("a.mp4", 7)
    assert {shard_of(f"{n}.mp4", 4) for n in range(100)} == {0, 1, 2, 3}


MODALITY = Rgb(kind="rgb", shards=4, short_side=24, rate_hz=10, quality=90, change_s=None)


def raw_videos(films, tmp_path, names):
    raws = {}
    for name in names:
        path = films.write(tmp_path / "raw" / name, films.grey(10, (32, 24)))
        video = Video(name, f"sha-{name}", 1, "h264", 32, 24, 0, 10.0, 1.0, "decord", 0, False, "")
        raws[name] = RawVideo(path, tmp_path / "none", video)
    return raws


def test_a_new_video_touches_only_its_shard(films, tmp_path):
    names = [f"{n}.mp4" for n in range(6)]
    raws = raw_videos(films, tmp_path, names)
    spans = {name: [(0.0, 1.0)] for name in names}
    kept = tmp_path / "kept"
    extract("rgb", MODALITY, {n: raws[n] for n in names[:5]}, spans, tmp_path / "one", kept)
    before = {file.name: file.stat().st_mtime_ns for file in kept.glob("*.arrow")}
    extract("rgb", MODALITY, raws, spans, tmp_path / "two", kept)
    after = {file.name: file.stat().st_mtime_ns for file in kept.glob("*.arrow")}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1
    shards = Shards(tmp_path / "two")
    assert all(len(shards.rows(name).times_s) == 10 for name in names)
    assert shards.digest != Shards(tmp_path / "one").digest


@pytest.mark.parametrize(
    ("changed", "anew"),
    [
        ({"sha256": "other"}, {"rgb"}),
        ({"detections": True, "detections_sha256": "other"}, {"detections"}),
        ({"width": 30}, {"rgb", "detections"}),
        ({"reader": "pyav"}, {"rgb"}),
    ],
)
def test_a_shard_is_made_anew_where_what_it_is_made_of_changed(films, tmp_path, changed, anew):
    (raw,) = raw_videos(films, tmp_path, ["a.mp4"]).values()
    raw.detections.write_text("")
    boxes = Detections(kind="detections", shards=1, max_boxes=4, visible=0.1, nearest_s=0.1, moments=1)
    after = replace(raw, video=replace(raw.video, **changed))
    for modality in (MODALITY, boxes):
        kept = tmp_path / modality.kind
        for number, video in enumerate((raw, after)):
            out = tmp_path / f"{modality.kind}-{number}"
            extract(modality.kind, modality, {"a.mp4": video}, {"a.mp4": [(0.0, 1.0)]}, out, kept)
        assert len(list(kept.glob("*.arrow"))) == 1 + (modality.kind in anew)


def test_a_video_that_breaks_does_not_stop_the_others(films, tmp_path):
    raws = raw_videos(films, tmp_path, ["a.mp4", "b.mp4"])
    raws["a.mp4"].path.write_bytes(b"nothing")
    extract("rgb", MODALITY, raws, {n: [(0.0, 1.0)] for n in raws}, tmp_path / "out", tmp_path / "kept")
    shards = Shards(tmp_path / "out")
    assert shards.rows("a.mp4") is None
    assert shards.rows("b.mp4") is not None
    assert list(shards.manifest["problems"]) == ["a.mp4"]


@pytest.mark.parametrize("reader", ["decord", "pyav"])
def test_a_damaged_packet_costs_the_frames_that_need_it_and_no_more(films, tmp_path, reader):
    noise = np.random.default_rng(0).integers(0, 255, (60, 24, 32, 3), dtype=np.uint8)
    name = "a.mp4"
    path = films.write(tmp_path / "raw" / name, noise, options={"g": "10", "bf": "0", "sc_threshold": "0"})
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    damaged = packets[34]
    content = bytearray(path.read_bytes())
    content[damaged.pos : damaged.pos + damaged.size] = bytes(damaged.size)
    path.write_bytes(content)
    video = Video(name, "", 1, "h264", 32, 24, 0, 10.0, 6.0, reader, 0, False, "")
    raws = {name: RawVideo(path, tmp_path / "none", video)}
    flow = Flow(kind="flow", shards=1, short_side=24, rate_hz=10, bound_per_s=5, quality=90)
    for modality, lost in ((MODALITY, 0), (flow, 1)):
        extract(
            modality.kind, modality, raws, {name: [(0.0, 5.9)]}, tmp_path / modality.kind, tmp_path / "kept"
        )
        shards = Shards(tmp_path / modality.kind)
        times_s = shards.rows(name).times_s.tolist()
        # frame 34 cannot be decoded, and 35 to 39 are told by it
        there = [0.1 * number for number in range(60 - lost) if not 34 - lost <= number < 40]
        assert times_s == pytest.approx(there, abs=1e-3)
        assert (
            "has gaps, where the video is damaged: VideoError: frame 34" in shards.manifest["problems"][name]
        )


def once(monkeypatch, module, name, fails):
    """Have a function of `module` fail the first time that it is called, as `fails` does."""
    real, asked = getattr(module, name), []

    def sometimes(*arguments):
        asked.append(arguments)
        return fails() if len(asked) == 1 else real(*arguments)

    monkeypatch.setattr(module, name, sometimes)


def test_what_fails_but_once_is_no_fault_of_the_file(films, tmp_path, monkeypatch):
    def fails():
        raise VideoError("frame 3 cannot be decoded (Input/output error)")

    raws = raw_videos(films, tmp_path, ["a.mp4"])
    once(monkeypatch, rgb, "open_video", fails)
    extract("rgb", MODALITY, raws, {"a.mp4": [(0.0, 1.0)]}, tmp_path / "out", tmp_path / "kept")
    shards = Shards(tmp_path / "out")
    assert len(shards.rows("a.mp4").times_s) == 10
    assert shards.manifest["problems"] == {}


def test_a_video_in_which_a_process_ended_is_named_and_read_by_the_other_reader(
    films, tmp_path, monkeypatch, capsys
):
    """As where a decoder crashes; an exception that nobody catches stands for that here."""
    raws, real, opened = raw_videos(films, tmp_path, ["a.mp4", "b.mp4", "c.mp4"]), rgb.open_video, []

    def crashes(path, reader):
        opened.append((path.name, reader))
        if (path.name, reader) == ("b.mp4", "decord"):
            raise MemoryError
        return real(path, reader)

    monkeypatch.setattr(rgb, "open_video", crashes)
    one = MODALITY.model_copy(update={"shards": 1})
    where = {name: [(0.0, 1.0)] for name in raws}
    with pytest.raises(MemoryError):
        extract("rgb", one, raws, where, tmp_path / "out", tmp_path / "kept")
    opened.clear()
    extract("rgb", one, raws, where, tmp_path / "out", tmp_path / "kept")
    assert opened == [("a.mp4", "decord"), ("b.mp4", "pyav"), ("c.mp4", "decord")]
    assert "the last attempt ended in b.mp4, now read by PyAV" in capsys.readouterr().out
    assert not list((tmp_path / "kept").glob("*.reading"))


def test_sound_that_the_probe_has_heard_is_not_given_up_at_once(films, tmp_path, monkeypatch):
    (raw,) = raw_videos(films, tmp_path, ["a.mp4"]).values()
    films.write(raw.path, films.grey(10), sound=films.tone(1.0))
    raw = replace(raw, video=replace(raw.video, audio_rate_hz=16000))
    once(monkeypatch, audio, "read_audio", lambda: None)
    sound = Audio(kind="audio", shards=1, rate_hz=8000, n_fft=512, window=400, hop=80, mels=32, window_s=0.2)
    extract("audio", sound, {"a.mp4": raw}, {"a.mp4": [(0.0, 1.0)]}, tmp_path / "out", tmp_path / "kept")
    assert Shards(tmp_path / "out").rows("a.mp4") is not None


def test_a_file_whose_bytes_cannot_be_read_stops_the_stage_and_nothing_is_kept(films, tmp_path):
    raws = raw_videos(films, tmp_path, ["a.mp4"])
    raws["a.mp4"].path.unlink()
    raws["a.mp4"].path.symlink_to("/proc/self/mem")  # whose first byte is an input/output error
    with pytest.raises(InfrastructureError, match=r"a\.mp4 cannot be read: Input/output error"):
        extract("rgb", MODALITY, raws, {"a.mp4": [(0.0, 1.0)]}, tmp_path / "out", tmp_path / "kept")
    assert not list((tmp_path / "kept").glob("*"))


def test_payloads_are_not_copied(tmp_path):
    shards = folder_with(tmp_path, [("a", Row(0.0, 1.0, np.arange(8, dtype=np.float32).tobytes()))])
    values = np.frombuffer(shards.rows("a").payload(0), np.float32)
    assert not values.flags.owndata
    assert values.tolist() == list(range(8))
