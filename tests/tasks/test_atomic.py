"""Atomic writing: a reader sees the old content or the new, never a part."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

import tasks.atomic
import tasks.modalities
from tasks.atomic import code_digest, digest, new_file, new_folder, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(RuntimeError):  # noqa: PT012, SIM117 (the failure is in the middle)
        with new_file(file) as temporary:
            temporary.write_text("half")
            raise RuntimeError
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    folder = tmp_path / "out"
    with new_folder(folder) as new:
        (new / "a").write_text("old")
    with pytest.raises(RuntimeError):  # noqa: PT012, SIM117
        with new_folder(folder) as new:
            (new / "a").write_text("half")
            raise RuntimeError
    assert (folder / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_new_folder_replaces_the_old_as_a_whole(tmp_path):
    for name in ("a", "b"):
        with new_folder(tmp_path / "out") as new:
            (new / name).write_text(name)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["b"]


def test_what_a_killed_writer_left_is_swept_away(tmp_path):
    script = (
        "import os, signal, sys, pathlib\nfrom tasks.atomic import new_folder\n"
        "with new_folder(pathlib.Path(sys.argv[1])) as f:\n"
        "    (f / 'a').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out")], env=os.environ | {"PYTHONPATH": "."}
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    with new_folder(tmp_path / "out") as new:
        (new / "a").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_never_half_removed(tmp_path, monkeypatch):
    with new_folder(tmp_path / "out") as new:
        (new / "a").write_text("before")

    def cut_off(path, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", cut_off)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as new:
        (new / "a").write_text("after")
    assert (tmp_path / "out" / "a").read_text() == "after"
    monkeypatch.undo()
    with new_folder(tmp_path / "out") as new:
        (new / "a").write_text("later")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_json_refuses_what_json_cannot_say(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_digests_name_content():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert code_digest(tasks.atomic) != code_digest(tasks.modalities)
