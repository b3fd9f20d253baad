"""Run a command that must not outlive whoever asked for it: `python -I -S tether.py COMMAND…`.

The asker holds the other end of this process's standard input. When that end closes, because the asker
cancelled or because it was killed in any way, SIGKILL included, the whole process group gets SIGTERM and,
`GRACE_S` later, SIGKILL. Start it as the leader of a session of its own. Standard library only: it is started
without site-packages, which takes 20 ms.
"""

import os
import signal
import subprocess
import sys
import threading
import time

GRACE_S = 1.0


def _end_with_asker(gone: threading.Event) -> None:
    os.read(0, 1)  # returns at end of file only: nobody writes
    gone.set()
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)


def _run(command: list[str]) -> int:
    """The exit code of `command`, in the shell's way: 128 + the signal's number where a signal ended it."""
    # A handler, not SIG_IGN: the command would inherit that one.
    signal.signal(signal.SIGTERM, lambda *_: None)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    gone = threading.Event()
    end = threading.Thread(target=_end_with_asker, args=[gone], daemon=True)
    end.start()
    code = child.wait()
    if gone.is_set():  # the command may be dead and what it started not: stay until SIGKILL ends all of us
        end.join()
    if code:  # what the command leaves running when it fails has nobody left to report to
        os.killpg(0, signal.SIGTERM)
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(_run(sys.argv[1:]))
