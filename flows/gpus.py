"""The GPUs of this machine, each lent to one stage at a time. Counted without torch, which a flow has no use for."""

import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tasks.settings import settings

VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible() -> list[str]:
    """The GPUs that stages may use, as CUDA names them; none where the setting `device` names one or the CPU.

    Those of CUDA_VISIBLE_DEVICES where that is set (CUDA stops reading at the first -1), else all that the
    driver's own tool lists.
    """
    if settings().device not in ("auto", "cuda"):
        return []
    if (given := os.environ.get(VARIABLE)) is not None:
        names = [name.strip() for name in given.split(",") if name.strip()]
        return names[: names.index("-1")] if "-1" in names else names
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):  # no driver, no GPU
        return []
    return listed.stdout.split()


class Gpus:
    """Lends every GPU to one stage at a time.

    With one GPU or none there is nothing to choose: stages then share it, as many as there are slots.
    """

    def __init__(self, names: Sequence[str]):
        self._free = list(names) if len(names) > 1 else []
        self._all = len(self._free)
        self._change = threading.Condition()
        self._closed = False

    @contextmanager
    def lent(self, count: int) -> Iterator[dict[str, str]]:
        """Wait for so many GPUs that are free; the environment that shows them and no other.

        Who wants more than there are gets all, and says so itself.

        Raises:
            InterruptedError: `close` was called meanwhile.
        """
        if not self._all:
            yield {}
            return
        count = min(count, self._all)
        with self._change:
            self._change.wait_for(lambda: len(self._free) >= count or self._closed)
            if self._closed:
                raise InterruptedError("no GPU is lent any more, the run was cancelled")
            names, self._free = self._free[:count], self._free[count:]
        try:
            yield {VARIABLE: ",".join(names)}
        finally:
            with self._change:
                self._free += names
                self._change.notify_all()

    def close(self) -> None:
        """Lend no more: who waits gets an InterruptedError."""
        with self._change:
            self._closed = True
            self._change.notify_all()
