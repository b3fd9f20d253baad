"""Ingest takes what is usable, says of everything else why not, and refuses what contradicts itself."""

import csv
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.clips import label_indices, read_clips, read_videos, taught_clips
from tasks.errors import InfrastructureError, UserError
from tasks.ingest import build_index
from tasks.layout import Workspace
from tasks.params import Data
from tasks.stores.probe import Prober
from tasks.stores.video import VideoError

_LABELS = ["cut", "wash"]


def data(**changes) -> Data:
    values = {
        "name": "tiny",
        "format": "folder",
        "heads": {"action": _LABELS},
        "validation_share": 0.2,
        "test_share": 0.2,
        "split_seed": 0,
        "slices": [],
    }
    return Data.model_validate(values | changes)


def rows(count: int = 12) -> list[list[object]]:
    return [[f"c{n}", f"v{n}.mp4", 0.0, 1.0, _LABELS[n % 2], f"g{n // 2}"] for n in range(count)]


def build(root: Path, **changes) -> Workspace:
    workspace = Workspace(root)
    build_index(data(**changes), workspace)
    return workspace


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNDERSTUDY_WORK", str(tmp_path / "work"))


def quarantine(workspace: Workspace) -> list[dict[str, str]]:
    with (workspace.index / "quarantine.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_whole_folder(tmp_path: Path, raw_folder, capsys):
    raw_folder()
    workspace = build(tmp_path)
    clips, videos = read_clips(workspace.index), read_videos(workspace.index)
    assert len(clips) == len(videos) == 12
    assert quarantine(workspace) == []
    assert {clip.split for clip in clips} == {"train", "val", "test"}
    assert all(len({clip.split for clip in clips if clip.group == g}) == 1 for g in {c.group for c in clips})
    assert videos["v0.mp4"].audio_rate_hz == 16000
    summary = json.loads((workspace.index / "summary.json").read_text())
    assert summary["clips"] == 12
    assert summary["videos_with_sound"] == 12
    assert sum(summary["classes"]["action"]["cut"].values()) == 6
    page = (workspace.data_report / "index.html").read_text()
    assert page.count("data:image/jpeg") == 12
    assert page.index("Quarantine") < page.index("<svg")  # what is amiss is read before the pictures
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert "12 clips in 12 videos" in capsys.readouterr().out


def test_again_is_the_same_and_probes_nothing(tmp_path: Path, raw_folder):
    raw_folder()
    workspace = build(tmp_path)
    first = {path.name: path.read_bytes() for path in workspace.index.iterdir()}
    page = (workspace.data_report / "index.html").read_bytes()
    notes = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "probes").iterdir()}
    build(tmp_path)
    assert {path.name: path.read_bytes() for path in workspace.index.iterdir()} == first
    assert (workspace.data_report / "index.html").read_bytes() == page
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "probes").iterdir()} == notes


def with_first(changed: list[object]) -> list[list[object]]:
    return [changed, *rows()[1:]]


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (["c0", "v0.mp4", 0.0, 1.0, "", "g0"], "the label action is missing"),
        (["c0", "v0.mp4", 0.9, 0.2, "cut", "g0"], "stops at 0.2 s, not after its start"),
        (["c0", "v0.mp4", -0.5, 0.2, "cut", "g0"], "before the video"),
        (["c0", "v0.mp4", 0.0, 7.5, "cut", "g0"], "stops at 7.5 s, but the video holds 1.0"),
        (["c0", "v0.mp4", 3.0, 4.0, "cut", "g0"], "stops at 4 s, but the video holds 1.0"),
        (["c0", "gone.webm", 0.0, 1.0, "cut", "g0"], "videos/gone.webm is missing"),
    ],
)
def test_a_bad_row_goes_to_quarantine_and_the_rest_goes_on(tmp_path: Path, raw_folder, first, reason):
    raw_folder(with_first(first))
    workspace = build(tmp_path)
    (line,) = quarantine(workspace)
    assert (line["clip_id"], line["file"], line["row"]) == ("c0", "annotations.csv", "2")
    assert reason in line["reason"]
    assert len(read_clips(workspace.index)) == 11


def test_bad_videos_go_to_quarantine(tmp_path: Path, raw_folder, films, monkeypatch):
    raw = raw_folder()
    videos = raw / "videos"
    (videos / "v0.mp4").write_bytes(b"")
    (videos / "v1.mp4").write_text("a list of things to buy\n" * 50)
    (videos / "v2.mp4").write_bytes((videos / "v2.mp4").read_bytes()[:900])
    (videos / "v3.mp4").unlink()
    (videos / "v3.mp4").symlink_to("/etc/hostname")
    workspace = build(tmp_path)
    reasons = {line["clip_id"]: line["reason"] for line in quarantine(workspace)}
    assert set(reasons) == {"c0", "c1", "c2", "c3"}
    assert "is empty" in reasons["c0"]
    assert "not a video" in reasons["c1"]
    assert "not a video" in reasons["c2"]
    assert "link that leads out" in reasons["c3"]


def test_a_killed_prober_quarantines_nothing(tmp_path: Path, raw_folder, monkeypatch):
    raw_folder()
    started = Prober._started

    def killed(prober):
        process = started(prober)
        os.kill(process.pid, signal.SIGKILL)
        return process

    with monkeypatch.context() as patch:
        patch.setattr(Prober, "_started", killed)
        with pytest.raises(InfrastructureError, match=r"v\d+\.mp4: the decoder was killed"):
            build(tmp_path)
    assert not (tmp_path / "data" / "index").exists()
    assert quarantine(build(tmp_path)) == []


@pytest.mark.parametrize("fault", ["error", "broken"])
def test_what_fails_but_once_is_not_kept_as_the_file_s_fault(
    tmp_path: Path, raw_folder, monkeypatch, fault: str
):
    raw_folder()
    real, asked = Prober.probe, []

    def sometimes(prober, path, moments_s):
        asked.append(path)
        if asked.count(path) > 1:
            return real(prober, path, moments_s)
        if fault == "error":
            raise VideoError("cannot be decoded (Input/output error)")
        return replace(real(prober, path, moments_s), broken_s=(0.0,))

    monkeypatch.setattr(Prober, "probe", sometimes)
    assert quarantine(build(tmp_path)) == []
    assert len(asked) == 2 * len(set(asked))


def test_links_into_dvc_s_cache_are_followed(tmp_path: Path, raw_folder):
    video = raw_folder() / "videos" / "v0.mp4"
    cached = tmp_path / "cache" / "files" / "md5" / "0a" / ("1b" * 15)
    cached.parent.mkdir(parents=True)
    video.rename(cached)
    video.symlink_to(cached)
    assert quarantine(build(tmp_path)) == []


def test_too_large_a_video(tmp_path: Path, raw_folder, films, monkeypatch):
    raw = raw_folder()
    size = (raw / "videos" / "v1.mp4").stat().st_size
    with (raw / "videos" / "v0.mp4").open("ab") as stream:
        stream.write(b"\0" * 10)
    monkeypatch.setenv("UNDERSTUDY_MAX_VIDEO_BYTES", str(size))
    (line,) = quarantine(build(tmp_path))
    assert "UNDERSTUDY_MAX_VIDEO_BYTES" in line["reason"]


def test_truncated_matroska_keeps_the_clips_before_the_cut(tmp_path: Path, raw_folder, films):
    import numpy as np

    many = rows()
    many[0][1], many[0][2], many[0][3] = "long.mkv", 0.0, 0.5
    many[1][1], many[1][2], many[1][3] = "long.mkv", 3.0, 3.9
    raw = raw_folder(many)
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), dtype=np.uint8)
    path = films.write(raw / "videos" / "long.mkv", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    workspace = build(tmp_path)
    (line,) = quarantine(workspace)
    assert line["clip_id"] == "c1"
    assert "c0" in {clip.clip_id for clip in read_clips(workspace.index)}


def test_less_than_a_frame_beyond_the_end_is_clamped(tmp_path: Path, raw_folder):
    raw_folder(with_first(["c0", "v0.mp4", 0.0, 1.06, "cut", "g0"]))
    clip = read_clips(build(tmp_path).index)[0]
    assert clip.stop_s == pytest.approx(1.0, abs=1e-3)


def test_rotated_and_av1_videos_are_taken(tmp_path: Path, raw_folder, films):
    raw = raw_folder()
    films.turn_upright(raw / "videos" / "v0.mp4")
    films.write(raw / "videos" / "v1.mp4", films.grey(10), codec="libsvtav1")
    videos = read_videos(build(tmp_path).index)
    assert (videos["v0.mp4"].width, videos["v0.mp4"].height, videos["v0.mp4"].reader) == (48, 64, "pyav")
    assert videos["v1.mp4"].codec in ("libdav1d", "av1")


@pytest.mark.parametrize(
    "name", ["two words.mp4", 'it\'s "quoted".mp4', "台所/ψ.mp4", "cafe\u0301.mp4", "a;b&$c.mp4"]
)
def test_odd_names_work(tmp_path: Path, raw_folder, name: str):
    raw_folder(with_first([f"id {name}", name, 0.0, 1.0, "cut", "g 0'<b>"]))
    workspace = build(tmp_path)
    assert len(read_clips(workspace.index)) == 12
    assert "<b>" not in (workspace.data_report / "index.html").read_text()


def test_names_compare_in_nfc(tmp_path: Path, raw_folder):
    raw = raw_folder(with_first(["c0", "cafe\u0301.mp4", 0.0, 1.0, "cut", "g0"]))  # on disk: decomposed
    assert (raw / "videos" / "cafe\u0301.mp4").exists()
    assert read_clips(build(tmp_path).index)[0].video == "caf\u00e9.mp4"


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (["c0", "../../secret.mp4", 0.0, 1.0, "cut", "g0"], "leaves its folder"),
        (["c0", "/etc/passwd", 0.0, 1.0, "cut", "g0"], "absolute"),
        (["c0", "a\\b.mp4", 0.0, 1.0, "cut", "g0"], "backslash"),
        (["../c0", "v0.mp4", 0.0, 1.0, "cut", "g0"], "leaves its folder"),
        (["", "v0.mp4", 0.0, 1.0, "cut", "g0"], "is empty"),
        (["c\n0", "v0.mp4", 0.0, 1.0, "cut", "g0"], "line break"),
        (["c0", "v0.mp4", "soon", 1.0, "cut", "g0"], "start_s is 'soon'"),
        (["c0", "v0.mp4", 0.0, "nan", "cut", "g0"], "stop_s is 'nan'"),
        (["c1", "v0.mp4", 0.0, 1.0, "cut", "g0"], "was used before, in row 2"),
        (["c0", "v0.mp4", 0.0, 1.0, "wahs", "g0"], "did you mean 'wash'"),
        (["c0", "v0.mp4", 0.0, 1.0, "cut"], "has 5 cells where the header has 6"),
    ],
)
def test_a_contradiction_stops_with_file_and_row(tmp_path: Path, raw_folder, first, message: str):
    raw_folder()
    raw = tmp_path / "data" / "raw"
    content = rows()
    content[0] = first
    with (raw / "annotations.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["clip_id", "video", "start_s", "stop_s", "action", "group"], *content])
    with pytest.raises(UserError, match=r"annotations\.csv, row [23]:") as caught:
        build(tmp_path)
    assert message in str(caught.value)
    assert not (tmp_path / "data" / "index").exists()


def test_the_same_group_in_two_splits(tmp_path: Path, raw_folder):
    columns = ["clip_id", "video", "start_s", "stop_s", "action", "group", "split"]
    content = [[*row, "train"] for row in rows()]
    content[3][6] = "test"
    raw_folder(content, columns)
    with pytest.raises(UserError, match="row 5: group 'g1' is in test here and in train in row 4"):
        build(tmp_path)


def test_an_empty_group_is_that_of_its_video(tmp_path: Path, raw_folder):
    content = rows()
    content[1][1], content[1][5] = "v0.mp4", ""  # beside a clip of g0
    content[2][1] = content[3][1] = content[4][1] = "v2.mp4"
    content[3][5], content[4][5] = "g7", ""  # its video has two groups: which is meant?
    for row in (2, 3, 4):
        content[row][2:4] = 0.3 * (row - 2), 0.3 * (row - 1)  # they share no moments
    raw_folder(content)
    groups = {clip.clip_id: clip.group for clip in read_clips(build(tmp_path).index)}
    assert [groups[f"c{n}"] for n in range(6)] == ["g0", "g0", "g1", "g7", "v2.mp4", "g2"]


@pytest.mark.parametrize(
    ("splits", "second", "refused"),
    [
        (("train", "test"), (0.4, 1.0), True),
        (("val", "test"), (0.0, 0.2), True),
        (("unlabelled", "val"), (0.0, 1.0), True),
        (("train", "unlabelled"), (0.0, 1.0), False),
        (("train", "test"), (0.5, 1.0), False),
    ],
)
def test_footage_shared_by_two_splits(tmp_path: Path, raw_folder, splits, second, refused):
    given = {"g0": "val", "g1": "test"}
    content = [[*row, given.get(str(row[5]), "train")] for row in rows()]
    content[10] = ["c10", "v10.mp4", 0.0, 0.5, "cut", "pan", splits[0]]
    content[11] = ["c11", "v10.mp4", *second, "wash", "tap", splits[1]]
    raw_folder(content, SPLIT_COLUMNS)
    if not refused:
        assert len(read_clips(build(tmp_path).index)) == 12
        return
    with pytest.raises(
        UserError, match=rf"row 13: the clip is in {splits[1]} and shares .* row 12"
    ) as stopped:
        build(tmp_path)
    assert "put clips that overlap in one split" in str(stopped.value)


def test_groups_that_share_moments_of_a_video_are_one(tmp_path: Path, raw_folder, capsys):
    content = rows()
    for row in (
        1,
        2,
        3,
    ):  # a chain: the first of g0 with the first of g1, that with its second, with the first of g2
        content[row][1] = "v1.mp4"
    content[1][2:4], content[2][2:4], content[3][2:4] = (0.0, 0.4), (0.3, 0.7), (0.7, 1.0)
    content[4][1:4], content[5][1:4] = ("v1.mp4", 0.6, 0.8), ("v1.mp4", 0.8, 1.0)
    raw_folder(content)
    found = {clip.clip_id: clip for clip in read_clips(build(tmp_path).index)}
    assert [found[f"c{n}"].group for n in range(8)] == ["g0"] * 6 + ["g3"] * 2
    assert len({found[f"c{n}"].split for n in range(6)}) == 1
    said = "2 group(s) share moments of a video with another and count as part of it, as 'g1' of 'g0'"
    assert said in capsys.readouterr().out


def test_groups_that_share_moments_cannot_be_given_to_two_splits(tmp_path: Path, raw_folder):
    given = {"g0": "train", "g1": "test", "g2": "val"}
    content = [[*row, given.get(str(row[5]), "train")] for row in rows()]
    content[1][6] = content[2][6] = ""  # of one group and of the other, drawn with it; they overlap
    content[2][1] = content[1][1]
    raw_folder(content, SPLIT_COLUMNS)
    with pytest.raises(UserError, match="group 'g0' is in test here and in train in row 2") as stopped:
        build(tmp_path)
    assert "whose clips share moments" in str(stopped.value)


def test_one_file_under_two_names_is_one_group(tmp_path: Path, raw_folder, capsys):
    videos = raw_folder(rows()) / "videos"
    (videos / "v5.mp4").write_bytes((videos / "v0.mp4").read_bytes())
    found = {clip.clip_id: clip for clip in read_clips(build(tmp_path).index)}
    assert [found[f"c{n}"].group for n in range(6)] == ["g0", "g0", "g1", "g1", "g0", "g0"]
    assert "count as part of it, as 'g2' of 'g0'" in capsys.readouterr().out


def test_one_file_under_two_names_is_not_learned_from_and_tested(tmp_path: Path, raw_folder):
    """Published splits hold such files; the test stays as it was published."""
    given = {"g0": "val", "g1": "test"}
    videos = raw_folder([[*row, given.get(str(row[5]), "train")] for row in rows()], SPLIT_COLUMNS) / "videos"
    for name in ("v0.mp4", "v5.mp4"):  # of val and of train
        (videos / name).write_bytes((videos / "v2.mp4").read_bytes())  # of test
    workspace = build(tmp_path)
    told = [(line["clip_id"], line["reason"]) for line in quarantine(workspace)]
    for found, (clip, split, video) in zip(told, [("c0", "val", "v0"), ("c5", "train", "v5")], strict=True):
        assert found == (
            clip,
            f"is in {split} and shows what clip 'c2' shows in test: "
            f"the videos '{video}.mp4' and 'v2.mp4' are the same file",
        )
    assert {clip.clip_id for clip in read_clips(workspace.index, "test")} == {"c2", "c3"}


def test_windows_of_one_length_are_drawn_though_they_differ_by_rounding(tmp_path: Path, raw_folder):
    starts = [0.1 + 0.03 * n for n in range(12)]
    raw_folder(
        [[f"c{n}", f"v{n}.mp4", s, s + 0.3, _LABELS[n % 2], f"g{n // 2}"] for n, s in enumerate(starts)]
    )
    workspace = build(tmp_path)
    lengths = {clip.stop_s - clip.start_s for clip in read_clips(workspace.index)}
    assert len(lengths) > 1
    assert (workspace.data_report / "index.html").is_file()


def test_a_given_split_of_which_nothing_is_left_is_not_drawn_anew(tmp_path: Path, raw_folder):
    columns = ["clip_id", "video", "start_s", "stop_s", "action", "group", "split"]
    split = {0: "test", 1: "val"}
    raw = raw_folder([[*row, split.get(n // 2, "train")] for n, row in enumerate(rows())], columns)
    for name in ("v0.mp4", "v1.mp4"):
        (raw / "videos" / name).write_bytes(b"")
    with pytest.raises(
        UserError, match=r"row 2: none of the 2 clip\(s\) of the split test can be used"
    ) as stopped:
        build(tmp_path)
    assert "→ mend their videos or rows" in str(stopped.value)


SPLIT_COLUMNS = ["clip_id", "video", "start_s", "stop_s", "action", "group", "split"]


def test_clips_to_be_taught_without_labels(tmp_path: Path, raw_folder, capsys):
    """Of a group of their own, of a training group, and labels that are there but held back."""
    more = [["u0", "u0.mp4", 0.0, 1.0, "", "u"], ["u1", "u1.mp4", 0.0, 1.0, "anything", "g2"]]
    split = {"g0": "test", "g1": "val"}
    labelled = [[*row, split.get(str(row[5]), "train")] for row in rows()]
    raw_folder([*labelled, *([*row, "unlabelled"] for row in more)], SPLIT_COLUMNS)
    workspace = build(tmp_path)
    assert quarantine(workspace) == []
    taken = read_clips(workspace.index, "unlabelled")
    assert [(clip.clip_id, clip.group, dict(clip.labels)) for clip in taken] == [
        ("u0", "u", {"action": ""}),
        ("u1", "g2", {"action": ""}),
    ]
    assert taught_clips(workspace.index) == read_clips(workspace.index, "train") + taken
    assert (
        label_indices(taught_clips(workspace.index), {"action": _LABELS})["action"].tolist()
        == [0, 1] * 4 + [-1] * 2
    )
    assert "unlabelled 2 clips of 2 groups" in capsys.readouterr().out
    assert "no label (unlabelled)" in (workspace.data_report / "index.html").read_text()


def test_a_tested_group_is_not_learned_from_without_labels_either(tmp_path: Path, raw_folder):
    given = [[*row, "test" if row[5] == "g0" else "train"] for row in rows()]
    raw = raw_folder([*given, ["u0", "u0.mp4", 0.0, 1.0, "", "g0", "unlabelled"]], SPLIT_COLUMNS)
    with pytest.raises(UserError, match="row 14: group 'g0' is in unlabelled here and in test in row 2"):
        build(tmp_path)
    drawn = [[*row, ""] for row in rows()]
    extra = [[f"u{n}", f"u{n}.mp4", 0.0, 1.0, "", f"g{n}", "unlabelled"] for n in range(6)]
    (raw / "annotations.csv").unlink()
    raw_folder([*drawn, *extra], SPLIT_COLUMNS)
    workspace = build(tmp_path)
    tested = {clip.group for clip in read_clips(workspace.index) if clip.split in ("val", "test")}
    assert {clip.group for clip in read_clips(workspace.index, "unlabelled")}.isdisjoint(tested)
    assert {line["reason"].split("'")[1] for line in quarantine(workspace)} == tested


def test_an_unknown_split(tmp_path: Path, raw_folder):
    columns = ["clip_id", "video", "start_s", "stop_s", "action", "group", "split"]
    raw_folder([[*row, "tets"] for row in rows()], columns)
    with pytest.raises(UserError, match="did you mean 'test'"):
        build(tmp_path)


def test_val_is_carved_from_train(tmp_path: Path, raw_folder):
    columns = ["clip_id", "video", "start_s", "stop_s", "action", "group", "split"]
    content = [[*row, "test" if row[5] in ("g0", "g1") else "train"] for row in rows()]
    raw_folder(content, columns)
    clips = read_clips(build(tmp_path).index)
    assert {clip.group for clip in clips if clip.split == "test"} == {"g0", "g1"}
    assert len({clip.group for clip in clips if clip.split == "val"}) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"clip_id,video,start_s,stop_s\na,b,0,1\n", "row 1: has no column 'action'"),
        (b"clip_id,video,start_s,stop_s,action,action\n", "row 1: names the column 'action' twice"),
        (b"clip_id,video,start_s,stop_s,action\nc,v\xff.mp4,0,1,cut\n", "row 2: is not UTF-8"),
        (b'clip_id,video,start_s,stop_s,action\nc,"v.mp4,0,1,cut\n', "not valid CSV"),
        (b"clip_id,video,start_s,stop_s,action\n", "none of its 0 clip"),
    ],
)
def test_a_bad_annotation_file(tmp_path: Path, raw_folder, content: bytes, message: str):
    raw = raw_folder()
    (raw / "annotations.csv").write_bytes(content)
    with pytest.raises(UserError) as caught:
        build(tmp_path)
    assert message in str(caught.value)


def test_no_annotation_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"annotations\.csv: not found"):
        build(tmp_path)


def test_one_clip_and_one_class_are_too_little(tmp_path: Path, raw_folder):
    raw_folder(rows(1))
    with pytest.raises(UserError, match="the split val has no clip"):
        build(tmp_path)
    raw_folder([[*row[:4], "cut", row[5]] for row in rows()])
    with pytest.raises(UserError, match="show only 'cut'"):
        build(tmp_path)


def test_nothing_left_says_why(tmp_path: Path, raw_folder, capsys):
    raw = raw_folder(rows(2))
    for video in (raw / "videos").iterdir():
        video.write_bytes(b"")
    with pytest.raises(UserError, match="none of its 2 clip"):
        build(tmp_path)
    assert "is empty (0 bytes)" in capsys.readouterr().out
    assert (tmp_path / "work" / "quarantine.csv").exists()


def test_a_class_that_trains_nobody(tmp_path: Path, raw_folder):
    raw_folder()
    with pytest.raises(UserError, match="the class 'peel' has no training clip"):
        build(tmp_path, heads={"action": [*_LABELS, "peel"]})


def test_detections_are_checked_and_named(tmp_path: Path, raw_folder, capsys):
    folder = raw_folder() / "detections"
    folder.mkdir()
    good = {
        "time_s": 0.0,
        "boxes": [{"box": [0.1, 0.1, 0.5, 0.5], "category": "hand", "score": 0.9, "side": "left"}],
    }
    bad = {"time_s": 0.1, "boxes": [{"box": [0.9, 0.1, 0.5, 0.5], "category": "hand", "score": 0.9}]}
    (folder / "v0.mp4.jsonl").write_text(json.dumps(good) + "\n")
    (folder / "v1.mp4.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
    workspace = build(tmp_path)
    videos = read_videos(workspace.index)
    assert videos["v0.mp4"].detections
    assert len(videos["v0.mp4"].detections_sha256) == 64
    assert not videos["v1.mp4"].detections  # its video goes on without them
    (line,) = quarantine(workspace)
    assert (line["clip_id"], line["video"], line["file"], line["row"]) == (
        "",
        "v1.mp4",
        "detections/v1.mp4.jsonl",
        "2",
    )
    assert "detections of 1 video(s) cannot be read and are left out: " in capsys.readouterr().out
    assert len(read_clips(workspace.index)) == 12
