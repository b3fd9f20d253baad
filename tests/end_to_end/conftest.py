"""Clones in small (`benchmarks.small`), shared by all tests that need one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.small import SECRET, SPLITS, Workspace, make_clone, shipped, tiny, with_fusion


@pytest.fixture(scope="session")
def small_clone(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A clone of this working tree with tiny data and params, nothing run yet."""
    return make_clone(tmp_path_factory.mktemp("end_to_end") / "clone", tiny(shipped()), SPLITS)


@pytest.fixture(scope="session")
def team_clone(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A clone with more test clips, one teacher and one student, nothing run yet."""
    params = tiny(shipped())
    detections = params["teachers"]["detections"] | {"folds": 1}
    params |= {"teachers": {"detections": detections}}
    params["modalities"] = {name: params["modalities"][name] for name in ("rgb", "detections")}
    params["students"] = {"baseline": params["students"]["baseline"]}
    params["views"] |= {"per_clip": 4}
    splits = ("train",) * 8 + ("val",) * 2 + ("test",) * 6
    return make_clone(tmp_path_factory.mktemp("team") / "clone", params, splits)


@pytest.fixture(scope="session")
def secret_holders() -> Callable[..., list[Path]]:
    """The files below folders that hold a secret; by default the one that every command knows."""

    def found(*folders: Path, secret: str = SECRET) -> list[Path]:
        files = (file for folder in folders for file in folder.rglob("*") if file.is_file())
        return [file for file in files if secret.encode() in file.read_bytes()]

    return found


def _finished(clone: Workspace) -> Workspace:
    done = clone.understudy("run", "--verbose")
    assert done.returncode == 0, done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    return clone


@pytest.fixture(scope="session")
def finished(small_clone: Workspace) -> Workspace:
    """The clone after its first `understudy run --verbose`."""
    return _finished(small_clone)


@pytest.fixture(scope="session")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A clone with a fused teacher, specialists and a routed student, after its first run."""
    params = with_fusion(tiny(shipped()))
    return _finished(make_clone(tmp_path_factory.mktemp("fused") / "clone", params, SPLITS))
