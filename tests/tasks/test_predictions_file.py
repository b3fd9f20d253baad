"""Predictions of many videos as a file, by the command and killed in the middle."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest

from tasks.errors import UserError
from tasks.predict import identify
from tasks.predictions_file import _journal, find, write

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory, rgb_student):
    """A folder with a tiny network that looks at RGB."""
    folder = tmp_path_factory.mktemp("model") / "student"
    folder.mkdir()
    rgb_student().save(folder)
    return folder


@pytest.fixture
def videos(films, tmp_path):
    """A folder of seven files: five videos, of which one lies deeper, one text, one that ends otherwise."""
    folder = tmp_path / "videos"
    for number in range(4):
        films.write(folder / f"v{number}.mp4", films.grey(6 + number))
    films.write(folder / "deeper" / "UPPER.MKV", films.grey(5))
    (folder / "broken.mp4").write_text("not a video")
    (folder / "notes.txt").write_text("left alone")
    return folder


def test_folders_and_patterns_are_videos_each_once(videos, monkeypatch):
    monkeypatch.chdir(videos)
    everything = ["broken.mp4", "deeper/UPPER.MKV", "v0.mp4", "v1.mp4", "v2.mp4", "v3.mp4"]
    assert list(map(str, find(["."]))) == everything
    assert list(map(str, find(["v[13].mp4", "v1.mp4"]))) == ["v1.mp4", "v3.mp4"]
    assert list(map(str, find(["**/*.MKV", "notes.txt", "nowhere.mp4"]))) == [
        "deeper/UPPER.MKV",
        "notes.txt",
        "nowhere.mp4",
    ]
    Path("what?.mp4").write_bytes(Path("v0.mp4").read_bytes())
    assert list(map(str, find(["what?.mp4"]))) == ["what?.mp4"]
    (videos / "empty").mkdir()
    with pytest.raises(UserError, match="holds no video"):
        find(["empty"])
    with pytest.raises(UserError, match="no file fits the pattern"):
        find(["*.webm"])


def test_a_row_a_video_in_every_format(model, videos, tmp_path):
    student, asked = identify(str(model)), find([str(videos)])
    written = {
        suffix: write(asked, student, tmp_path / f"said{suffix}", batch=4, top=2, span=None)
        for suffix in (".jsonl", ".csv", ".parquet")
    }
    assert {(found.videos, found.failed, found.resumed) for found in written.values()} == {(6, 1, 0)}
    lines = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [Path(line["video"]).name for line in lines] == [video.name for video in asked]
    broken, whole = lines[0], lines[2]
    assert "not a video" in broken["error"]
    assert (broken["verb"], broken["verb_probs"], broken["stop_s"]) == (None, {}, None)
    assert whole["error"] is None
    assert whole["stop_s"] == pytest.approx(0.6)
    assert len(whole["verb_probs"]) == 2
    assert whole["verb"] == max(whole["verb_probs"], key=whole["verb_probs"].get)
    assert (whole["model"], whole["version"], whole["digest"]) == ("student", "", student.digest)

    table = pyarrow.parquet.read_table(tmp_path / "said.parquet").to_pylist()
    assert [
        row | {"verb_probs": dict(row["verb_probs"]), "noun_probs": dict(row["noun_probs"])} for row in table
    ] == lines
    with (tmp_path / "said.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["video"] for row in rows] == [line["video"] for line in lines]
    assert json.loads(rows[2]["noun_probs"]) == whole["noun_probs"]
    assert list(tmp_path.glob("*.partial")) == []


def test_names_of_strangers_fit_into_every_format(films, model, tmp_path):
    folder = tmp_path / "videos"
    one = films.write(folder / "one.mp4", films.grey(4)).read_bytes()
    names = ["two\nlines.mp4", '=cmd,"quoted".mp4', "ключ.mp4", os.fsdecode(b"\xff.mp4")]
    for name in names:
        (folder / name).write_bytes(one)
    asked, student = find([str(folder)]), identify(str(model))
    for suffix in (".jsonl", ".csv", ".parquet"):
        assert write(asked, student, tmp_path / f"said{suffix}", 8, 1, None).failed == 0
    with (tmp_path / "said.csv").open(newline="", encoding="utf-8") as stream:
        found = {Path(row["video"]).name for row in csv.DictReader(stream)}
    assert found == {"one.mp4", "two\nlines.mp4", '=cmd,"quoted".mp4', "ключ.mp4", "\\xff.mp4"}


def test_what_cannot_be_written_is_said_before_anything_is_read(model, tmp_path):
    student = identify(str(model))
    with pytest.raises(UserError, match=r"unknown ending\n.*\.parquet, \.csv, \.jsonl"):
        write([Path("a.mp4")], student, tmp_path / "said.txt", 1, None, None)
    with pytest.raises(UserError, match="its folder is not there"):
        write([Path("a.mp4")], student, tmp_path / "no" / "said.csv", 1, None, None)
    with _journal(tmp_path / "said.csv"), pytest.raises(UserError, match="being written by another process"):
        write([Path("a.mp4")], student, tmp_path / "said.csv", 1, None, None)


def predict_command(videos, model, out):
    options = ["--model", str(model), "--out", str(out), "--batch", "2"]
    return [sys.executable, "-m", "flows.cli", "predict", str(videos), *options]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_killed_it_goes_on_and_ends_with_the_same_file(films, model, tmp_path, suffix):
    folder = tmp_path / "videos"
    for number in range(30):
        films.write(folder / f"v{number:02}.mp4", films.grey(4 + number % 5))
    whole, again = tmp_path / f"whole{suffix}", tmp_path / f"again{suffix}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(out):
        return subprocess.run(
            predict_command(folder, model, out),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    first = run(whole)
    assert first.returncode == 0, first.stderr
    assert "predict 30/30 videos, 0 s left" in first.stdout
    assert "30 videos, 0 cannot be read; by student (" in first.stdout

    process = subprocess.Popen(
        predict_command(folder, model, again), cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
    )
    journal = tmp_path / f"again{suffix}.partial"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and (
        not journal.exists() or len(journal.read_bytes().splitlines()) < 4
    ):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not again.exists()
    done = len(journal.read_text().splitlines()) - 1
    assert 3 <= done < 15
    with journal.open("ab") as stream:
        stream.write(
            '[{"video": "half a lette"ü'.encode()[:-1]
        )  # as a kill in the middle of a write leaves it
    resumed = run(again)
    assert resumed.returncode == 0, resumed.stderr
    assert again.read_bytes() == whole.read_bytes()
    assert not journal.exists()
    first_said = int(resumed.stdout.split("predict ")[1].split("/")[0])
    assert first_said == 2 * done


def test_another_model_or_another_list_begins_anew(films, model, tmp_path):
    a, b = (films.write(tmp_path / f"{name}.mp4", films.grey(4)) for name in "ab")
    student, out = identify(str(model)), tmp_path / "said.jsonl"
    journal = tmp_path / "said.jsonl.partial"
    journal.write_text(json.dumps({"key": "of another run"}) + "\n[]\n")
    assert write([a, b], student, out, 1, None, None).resumed == 0
    assert len(out.read_text().splitlines()) == 2
