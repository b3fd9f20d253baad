"""Copies of checkpoints where all workers see them: a training that died with its machine goes on, on another.

The setting `checkpoints` names the place, a folder or s3://bucket/prefix. A copy is named as the checkpoint, by
everything the training depends on, and by how many epochs it holds. A place that cannot be reached costs a warning,
never a training.
"""

import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from uuid import uuid4

import fsspec
import torch

from tasks import ranks
from tasks.atomic import new_file
from tasks.settings import settings

EVERY_S = 30.0
"""Between two copies of one training, at least: half a minute of work is worth no more than the bytes of a copy."""
_COPY = re.compile(r"-(\d{6})\.pt")
_log = logging.getLogger(__name__)


class Copies:
    """The copies of one checkpoint.

    Args:
        place: a folder or an address that fsspec knows.
        checkpoint: the local file, which `fetch` may write and `offer` reads.
    """

    def __init__(self, place: str, checkpoint: Path):
        self._place, self._checkpoint = place, checkpoint
        self._change = threading.Condition()
        self._offered, self._kept, self._closed = 0, 0, False
        self._thread = threading.Thread(target=self._copy_on, name="checkpoint-copies", daemon=True)

    def fetch(self) -> None:
        """Take the newest copy, if it holds more epochs than the local file."""
        try:
            found = self._copies()
            if not found or max(found) <= _epochs(self._checkpoint):
                return
            with new_file(self._checkpoint) as temporary:
                self._system.get_file(found[max(found)], str(temporary))
                _epochs(temporary)  # one that cannot be read takes no checkpoint's place
            self._kept = max(found)
            _log.warning("goes on from a copy of %d epochs in %s", max(found), self._place)
        except Exception as error:  # each kind of store has its own
            self._complain("fetched", error)

    def offer(self, epochs: int) -> None:
        """The local file now holds so many epochs: have it copied when there is time."""
        with self._change:
            self._offered = epochs
            if not self._thread.ident:
                self._thread.start()
            self._change.notify()

    def close(self) -> None:
        """Copy what is still to be copied."""
        with self._change:
            self._closed = True
            self._change.notify()
        if self._thread.ident:
            self._thread.join()

    def _copy_on(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._offered > self._kept or self._closed)
                epochs = self._offered
                if epochs <= self._kept:
                    return
            try:
                self._copy(epochs)
            except Exception as error:
                self._complain("copied", error)
            self._kept = epochs
            until = time.monotonic() + EVERY_S
            with self._change:
                self._change.wait_for(lambda: self._closed, until - time.monotonic())

    def _copy(self, epochs: int) -> None:
        older = self._copies()
        folder = self._folder
        self._system.makedirs(folder, exist_ok=True)
        name = f"{self._checkpoint.stem}-{epochs:06d}.pt"
        part = f"{folder}/.{name}.{uuid4().hex}"  # a worker taken for dead may be writing the same copy
        self._system.put_file(str(self._checkpoint), part)
        self._system.mv(part, f"{folder}/{name}")  # whole or not at all
        for held, copy in older.items():
            if held < epochs:
                self._system.rm_file(copy)

    def _copies(self) -> dict[int, str]:
        """Epochs → the copy that holds so many."""
        self._system, self._folder = fsspec.core.url_to_fs(self._place)
        self._system.invalidate_cache()
        found = self._system.glob(f"{self._folder}/{self._checkpoint.stem}-*.pt")
        names = {
            path: _COPY.fullmatch(PurePosixPath(path).name, len(self._checkpoint.stem)) for path in found
        }
        return {int(match[1]): path for path, match in names.items() if match}

    def _complain(self, what: str, error: Exception) -> None:
        _log.warning("the checkpoint was not %s (UNDERSTUDY_CHECKPOINTS=%s): %s", what, self._place, error)


@contextmanager
def copies(checkpoint: Path) -> Iterator[Copies | None]:
    """The copies of a checkpoint, the newest fetched; None where nobody wants any, or another rank sees to it."""
    place = settings().checkpoints
    if not place or not ranks.is_first():
        yield None
        return
    opened = Copies(place.rstrip("/"), checkpoint)
    opened.fetch()
    try:
        yield opened
    finally:
        opened.close()


def _epochs(checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    return len(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["history"])
