"""One pipeline a clone, and what a killed one leaves of DVC's files."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flows import clone
from flows.clone import Clone
from flows.newest import check_out_newest
from tasks.errors import InfrastructureError, UserError
from tasks.settings import dvc_scratch


def test_the_root_is_the_nearest_folder_above_with_a_dvc_yaml(project: Clone):
    (project.root / "a" / "b").mkdir(parents=True)
    assert clone.find(project.root / "a" / "b") == project


def test_outside_a_clone_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"no dvc\.yaml"):
        clone.find(tmp_path)


def test_dvcs_scratch_is_for_this_user_alone(project: Clone, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)
    assert dvc_scratch(project.root).stat().st_mode & 0o777 == 0o700


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


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "schema: '2.0'\nstages:\n  ingest:\n    deps:\n    - path: [sou",
        "schema: '2.0'\nstages:\n  ingest:\n    cmd: true\n    deps:\n",  # YAML, but none of DVC's
    ],
)
def test_half_a_dvc_lock_is_put_aside_and_the_results_come_back_from_the_run_cache(project: Clone, rest: str):
    subprocess.run(["dvc", "repro", "-q"], cwd=project.root, check=True)
    before = (project.root / "runs.jsonl").read_text()
    (project.root / "dvc.lock").write_text(rest)
    with project.only_run():
        assert not (project.root / "dvc.lock").exists()
    subprocess.run(["dvc", "repro", "-q"], cwd=project.root, check=True)
    assert (project.root / "runs.jsonl").read_text() == before


@pytest.fixture
def cloned(project: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """A clone of the project, which is committed and one commit ahead of it."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "t")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "t@example.org")
    (project.root / ".gitignore").write_text(".understudy/\n")
    for command in ("add .", "commit -qm first"):
        project.git(*command.split())
    subprocess.run(["git", "clone", "-q", str(project.root), "cloned"], cwd=tmp_path, check=True)
    (project.root / "stage.py").write_text("print('newer')\n")
    (project.root / "zzz.py").write_text("print('new')\n")
    for command in ("add .", "commit -qm second"):
        project.git(*command.split())
    return Clone(tmp_path / "cloned")


def kill_git_half_way(cloned: Clone, commit: str, lock: int) -> None:
    """Check out until git comes to zzz.py, which has it killed."""
    (cloned.root / ".git" / "info" / "attributes").write_text("zzz.py filter=kill\n")
    cloned.git("config", "filter.kill.smudge", "kill -9 $PPID; true")
    with pytest.raises(UserError):
        cloned.check_out(commit, lock)
    cloned.git("config", "--unset", "filter.kill.smudge")
    assert (cloned.root / ".git" / "index.lock").exists()


def test_a_killed_checkout_is_ended_and_what_a_person_changed_stays(cloned: Clone):
    cloned.fetch()
    with cloned.only_run() as lock:
        kill_git_half_way(cloned, "origin/HEAD", lock)
    assert cloned.uncommitted()
    with cloned.only_run() as lock:
        cloned.finish_check_out(lock)
        assert not cloned.uncommitted()
        assert cloned.git("rev-parse", "HEAD") == cloned.git("rev-parse", "origin/HEAD")
        (cloned.root / "stage.py").write_text("print('mine')\n")
        cloned.finish_check_out(lock)
    assert cloned.uncommitted() == ["stage.py"]


def test_what_a_person_changed_in_a_coordinators_clone_is_not_overwritten(
    cloned: Clone, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("UNDERSTUDY_CLONE", str(cloned.root))
    (cloned.root / "stage.py").write_text("print('mine')\n")
    with pytest.raises(UserError, match=r"stage\.py in .* is not committed"):
        check_out_newest()
    assert (cloned.root / "stage.py").read_text() == "print('mine')\n"


def test_the_newest_commit_is_there_after_a_killed_checkout(
    cloned: Clone, project: Clone, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("UNDERSTUDY_CLONE", str(cloned.root))
    cloned.fetch()
    with cloned.only_run() as lock:
        kill_git_half_way(cloned, "origin/HEAD", lock)
    for command in ("rm -q zzz.py", "commit -qm third"):
        project.git(*command.split())
    assert check_out_newest() == {"directory": str(cloned.root)}
    assert cloned.git("rev-parse", "HEAD") == project.git("rev-parse", "HEAD")
    assert not cloned.uncommitted()


def test_a_fetch_is_tried_again_and_then_said(cloned: Clone, project: Clone, monkeypatch: pytest.MonkeyPatch):
    away = project.root.with_name("away")
    project.root.rename(away)
    monkeypatch.setattr(clone, "PAUSES_S", (0.0, 0.0))
    with pytest.raises(InfrastructureError, match=r"failed 3 times: .*clone"):
        cloned.fetch()
    monkeypatch.setattr(clone, "PAUSES_S", (1.0, 1.0, 1.0))
    threading.Timer(0.5, away.rename, [project.root]).start()
    cloned.fetch()
    assert cloned.git("rev-parse", "origin/HEAD") == project.git("rev-parse", "HEAD")


def test_a_branch_that_took_the_name_of_a_folder_stops_no_fetch(
    cloned: Clone, project: Clone, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(clone, "PAUSES_S", ())
    project.git("branch", "feature")
    cloned.fetch()
    project.git("branch", "-D", "feature")
    project.git("branch", "feature/mst")
    cloned.fetch()
    assert cloned.git("rev-parse", "origin/feature/mst") == project.git("rev-parse", "HEAD")


def test_a_fetch_from_a_host_that_never_answers_ends(cloned: Clone, monkeypatch: pytest.MonkeyPatch):
    cloned.git("remote", "set-url", "origin", "ssh://host/project")
    cloned.git("config", "core.sshCommand", "sleep 5;")
    monkeypatch.setattr(clone, "PAUSES_S", ())
    monkeypatch.setattr(clone, "FETCH_S", 0.3)
    with pytest.raises(InfrastructureError, match=r"git fetch took more than 0\.3 s"):
        cloned.fetch()


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
