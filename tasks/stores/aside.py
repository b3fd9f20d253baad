"""A process beside this one that decodes what strangers send, and that may hang or die as decoders do on bad bytes.

It is a module of ours run by itself: a JSON request a line in, a JSON answer a line out.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, Self

from tasks.errors import InfrastructureError
from tasks.stores.faults import PASSING
from tasks.stores.video import VideoError

_START_S = 120.0
"""It imports large libraries, on a busy machine from a cold disk."""
_END_S = 5.0
"""A process that has closed its output ends by then of what ended it."""
_KEPT = {"PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "UNDERSTUDY_MAX_VIDEO_BYTES"}
_KEPT_GROUPS = ("LC_", "OMP_", "MKL_", "OPENBLAS_")
"""Of the environment, what decoding needs: a bad video that takes the decoder over finds no password there."""


class DecodingStopped(VideoError):
    """The process that decoded crashed or took too long; it may fare otherwise another time."""


class NotStarted(InfrastructureError):
    """The process that decodes cannot be started on this machine; of no video is known whether it can be read."""


class Aside:
    """One such process, started when it is first asked and anew whenever it had to be killed.

    Args:
        module: what it runs; ends in `serve`.
        timeout_s: an answer that takes longer ends the process; its start does not count.
    """

    def __init__(self, module: str, timeout_s: float):
        self._module = module
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request, one at a time.

        Raises:
            DecodingStopped: it took too long, or the decoder crashed.
            VideoError: the video cannot be read; the message says why.
            NotStarted: the process cannot be started.
            InfrastructureError: somebody killed it; no fault of the video.
        """
        process = self._started()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._line(process, self._timeout_s))
        if "passing" in answer:
            raise DecodingStopped(answer["passing"])
        if "error" in answer:
            raise VideoError(answer["error"])
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        """The process, when it has imported what it needs."""
        self.start()
        assert self._process is not None
        if not self._ready:
            try:
                self._line(self._process, _START_S)
            except DecodingStopped as error:
                raise NotStarted(
                    f"the process that decodes videos does not start ({error}); "
                    f"`python -m {self._module}` says why"
                ) from None
            self._ready = True
        return self._process

    def _line(self, process: subprocess.Popen[bytes], timeout_s: float) -> bytes:
        """What the process says next; without it, the process is ended."""
        assert process.stdout is not None
        said, deadline = bytearray(), monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not said.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - monotonic())):
                    self.close()
                    raise DecodingStopped(f"decoding took longer than {timeout_s:g} s")
                block = os.read(process.stdout.fileno(), 1 << 16)
                if not block:
                    status = self._ended(process)
                    if status == -signal.SIGKILL:
                        raise InfrastructureError("the decoder was killed, as when memory runs out")
                    raise DecodingStopped(f"the decoder crashed on it (exit status {status})")
                said += block
        return bytes(said)

    def _ended(self, process: subprocess.Popen[bytes]) -> int | None:
        """How the process ended that says no more; None if it had not."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
        status = process.returncode  # before `close`, which kills what is left
        self.close()
        return status

    def start(self) -> None:
        """Start the process unless it runs; it is not waited for.

        Raises:
            NotStarted: this machine starts no process.
        """
        if self._process is None:
            self._ready = False
            try:
                self._process = subprocess.Popen(
                    # -P: a folder `tasks` where the process happens to stand is not ours
                    [sys.executable, "-P", "-m", self._module],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=_environment(),
                )
            except OSError as error:
                raise NotStarted(
                    f"the process that decodes videos cannot be started: {error.strerror}"
                ) from None

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _environment() -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_GROUPS)
    }
    return kept | {"PYTHONPATH": str(Path(__file__).parents[2])}


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Be that process: answer requests until there are no more.

    What goes wrong is the answer's `error`, or `passing` where the machine may be at fault.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process goes first
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what decoders print must not mix with the answers
    print(json.dumps({}), file=answers, flush=True)  # ready
    for line in sys.stdin:
        print(json.dumps(_caught(answer, json.loads(line))), file=answers, flush=True)


def _caught(answer: Callable[[dict[str, Any]], dict[str, Any]], request: dict[str, Any]) -> dict[str, Any]:
    try:
        return answer(request)
    except VideoError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"passing": "cannot be read: memory runs out"}
    except OSError as error:
        reason = f"cannot be read ({type(error).__name__}: {error})"
        return {"passing" if error.errno in PASSING else "error": reason}
    except Exception as error:  # whatever else bad bytes provoke is this video's fault, not the others'
        return {"error": f"cannot be read ({type(error).__name__}: {error})"}
