"""Writing so that a reader never sees half a file, and naming content by its digest."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from tasks import ranks


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to; on success it is synced and renamed to `path`, on failure removed.

    Of the ranks of a stage (`tasks.ranks`) the first alone has something to show; what others write is dropped.
    """
    if not ranks.is_first():
        with tempfile.TemporaryDirectory() as dropped:
            yield Path(dropped) / path.name
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; on success it takes the place of `path` as a whole, on failure it goes.

    What was at `path` is moved aside before it is removed: killed in between, `path` is the old folder, the new one or
    missing, never a part of one. Leftovers of a run that was killed are removed first: a stage has one writer (see
    `tasks.__main__`), so whatever lies there belongs to nobody. What ranks but the first write is dropped.
    """
    if not ranks.is_first():
        with tempfile.TemporaryDirectory() as dropped:
            yield Path(dropped)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in (*path.parent.glob(f".{path.name}.new-*"), *path.parent.glob(f".{path.name}.old-*")):
        shutil.rmtree(leftover)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        for file in temporary.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)  # some writers make private files
            _sync(file)
        replaced = temporary.with_name(temporary.name.replace(".new-", ".old-"))
        if path.exists():
            path.rename(replaced)
        temporary.rename(path)
        _sync(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def alone(lock: Path, busy: str = "") -> Iterator[None]:
    """Be the only one of this machine that holds `lock`, a file; wait while another does. A kill lets go of it.

    The first rank of a stage holds it for all of them.

    Args:
        busy: said where another holds it.
    """
    if not ranks.is_first():
        yield
        return
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if busy:
                print(busy, flush=True)
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def digest(*values: Any) -> str:
    """A stable hexadecimal name (SHA-256, 32 digits) of JSON-able values."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def code_digest(*modules: ModuleType) -> str:
    """Names the source of modules (of a package: all its files), so that a change of code is seen as one."""
    files: list[Path] = []
    for module in modules:
        assert module.__file__ is not None
        file = Path(module.__file__)
        files += sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    return digest([file_digest(file) for file in files])


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
