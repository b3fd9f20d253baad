"""One pipeline a clone, and what a killed one leaves of DVC's files."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows import clone
from flows.clone import Clone
from tasks.errors import UserError


def test_the_root_is_the_nearest_folder_above_with_a_dvc_yaml(project: Clone):
    (project.root / "a" / "b").mkdir(parents=True)
    assert clone.find(project.root / "a" / "b") == project


def test_outside_a_clone_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"no dvc\.yaml"):
        clone.find(tmp_path)


def test_dvcs_scratch_is_for_this_user_alone(project: Clone, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)
    assert project.dvc_site.stat().st_mode & 0o777 == 0o700


def test_a_second_run_is_refused_while_a_process_of_the_first_lives(
    project: Clone, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(clone, "ENDING_S", 0.3)
    with project.only_run() as lock:
        orphan = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    with pytest.raises(UserError, match="another"), project.only_run():
        pass
    orphan.communicate(b"\n")
    with project.only_run():
        pass


@pytest.mark.parametrize("rest", ["", "schema: '2.0'\nstages:\n  ingest:\n    deps:\n    - path: [sou"])
def test_half_a_dvc_lock_is_put_aside_and_the_results_come_back_from_the_run_cache(project: Clone, rest: str):
    subprocess.run(["dvc", "repro", "-q"], cwd=project.root, check=True)
    before = (project.root / "runs.jsonl").read_text()
    (project.root / "dvc.lock").write_text(rest)
    with project.only_run():
        assert not (project.root / "dvc.lock").exists()
    subprocess.run(["dvc", "repro", "-q"], cwd=project.root, check=True)
    assert (project.root / "runs.jsonl").read_text() == before


def test_half_an_rwlock_is_emptied(project: Clone):
    file = project.root / ".dvc" / "tmp" / "rwlock"
    file.write_text('{"write": {"/x": {"pi')
    with project.only_run():
        assert file.read_text() == "{}"


def test_whole_files_are_left_alone(project: Clone):
    subprocess.run(["dvc", "repro", "-q"], cwd=project.root, check=True)
    before = (project.root / "dvc.lock").read_bytes()
    with project.only_run():
        assert (project.root / "dvc.lock").read_bytes() == before
