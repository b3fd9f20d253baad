"""A process beside this one that decodes what strangers send, and that may hang or die as decoders do on bad bytes.

It is a module of ours run by itself: a JSON request a line in, a JSON answer a line out.
"""

import contextlib
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, Self

from tasks.stores.video import VideoError


class DecodingStopped(VideoError):
    """The process that decoded died or had to be killed; it may fare otherwise another time."""


class Aside:
    """One such process, started when it is first asked and anew whenever it had to be killed.

    Args:
        module: what it runs; ends in `serve`.
        timeout_s: an answer that takes longer ends the process.
    """

    def __init__(self, module: str, timeout_s: float):
        self._module = module
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request, one at a time.

        Raises:
            DecodingStopped: it took too long, or the decoder crashed.
            VideoError: the video cannot be read; the message says why.
        """
        answer: dict[str, Any] = json.loads(self._exchange(json.dumps(request).encode() + b"\n"))
        if "error" in answer:
            raise VideoError(answer["error"])
        return answer

    def _exchange(self, line: bytes) -> bytes:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        answer, deadline = bytearray(), monotonic() + self._timeout_s
        with contextlib.suppress(BrokenPipeError), selectors.DefaultSelector() as selector:
            process.stdin.write(line)
            process.stdin.flush()
            selector.register(process.stdout, selectors.EVENT_READ)
            while not answer.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - monotonic())):
                    self.close()
                    raise DecodingStopped(f"decoding took longer than {self._timeout_s:g} s")
                block = os.read(process.stdout.fileno(), 1 << 16)
                if not block:
                    break
                answer += block
        if not answer.endswith(b"\n"):
            self.close()
            raise DecodingStopped(f"the decoder crashed on it (exit status {process.returncode})")
        return bytes(answer)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                # -P: a folder `tasks` where the process happens to stand is not ours
                [sys.executable, "-P", "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            )
        return self._process

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


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Be that process: answer requests until there are no more; what goes wrong is the answer's `error`."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process goes first
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what decoders print must not mix with the answers
    for line in sys.stdin:
        print(json.dumps(_caught(answer, json.loads(line))), file=answers, flush=True)


def _caught(answer: Callable[[dict[str, Any]], dict[str, Any]], request: dict[str, Any]) -> dict[str, Any]:
    try:
        return answer(request)
    except VideoError as error:
        return {"error": str(error)}
    except Exception as error:  # whatever else bad bytes provoke is this video's fault, not the others'
        return {"error": f"cannot be read ({type(error).__name__}: {error})"}
