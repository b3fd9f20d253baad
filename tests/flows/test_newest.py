"""A coordinator's clone follows its origin, with a real git and DVC; as a pull step in tests/infra/test_deploy.py."""

import subprocess
from pathlib import Path

import pytest

from flows.newest import check_out_newest, keep_commit


def git(folder: Path, *arguments: str) -> str:
    own = ["-c", "user.name=team", "-c", "user.email=team@localhost"]
    command = ["git", "-C", str(folder), *own, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """The origin (bare, default branch `old`), a person's clone, the coordinator's."""
    origin, person, clone = tmp_path / "origin", tmp_path / "person", tmp_path / "clone"
    git(tmp_path, "init", "-q", "--bare", "--initial-branch=old", str(origin))
    git(tmp_path, "clone", "-q", str(origin), str(person))
    git(person, "checkout", "-q", "-B", "old")
    (person / ".dvc").mkdir()
    (person / ".dvc" / "config").touch()
    (person / "dvc.yaml").write_text("stages: {}\n")
    (person / ".gitignore").write_text("/.understudy\n/.dvc/tmp\n/.dvc/cache\n")
    git(person, "add", ".")
    git(person, "commit", "-qm", "first")
    git(person, "push", "-q", "origin", "old")
    git(tmp_path, "clone", "-q", str(origin), str(clone))
    monkeypatch.setenv("UNDERSTUDY_CLONE", str(clone))
    return origin, person, clone


def test_a_default_branch_that_was_renamed_is_followed(places: tuple[Path, Path, Path]):
    origin, person, clone = places
    git(origin, "branch", "--move", "old", "new")  # HEAD of the bare origin goes along
    git(person, "commit", "-qm", "second", "--allow-empty")
    git(person, "push", "-q", "origin", "HEAD:new")
    assert check_out_newest() == {"directory": str(clone)}
    assert git(clone, "rev-parse", "HEAD") == git(origin, "rev-parse", "new")


def test_an_origin_that_names_no_default_branch_costs_no_run(
    places: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
):
    origin, person, clone = places
    git(origin, "symbolic-ref", "HEAD", "refs/heads/nowhere")
    git(person, "commit", "-qm", "second", "--allow-empty")
    git(person, "push", "-q", "origin", "old")
    check_out_newest()
    assert git(clone, "rev-parse", "HEAD") == git(origin, "rev-parse", "old")
    assert "origin/HEAD stays as it was" in capsys.readouterr().out


def test_a_clone_that_is_kept_stays_at_its_commit(places: tuple[Path, Path, Path]):
    _, person, clone = places
    before = git(clone, "rev-parse", "HEAD")
    git(person, "commit", "-qm", "second", "--allow-empty")
    git(person, "push", "-q", "origin", "old")
    assert keep_commit() == {"directory": str(clone)}
    assert git(clone, "rev-parse", "HEAD") == before
