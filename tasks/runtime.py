"""What a stage's process settles before it computes: its threads, the order of its sums, the memory that it keeps."""

import ctypes

import cv2
import torch

# mallopt's options, glibc's malloc.h, and how many bytes: 32 MiB is the most that it takes as the least block of a
# mapping of its own; what is larger still goes back at once, and of the rest all but 512 MiB.
_OPTIONS = {"MMAP_THRESHOLD": (-3, 32 << 20), "TRIM_THRESHOLD": (-1, 512 << 20), "TOP_PAD": (-2, 64 << 20)}


def prepare(threads: int) -> None:
    """The same sums in the same order on every run, and no time lost on the memory they are written to.

    Args:
        threads: of torch; the numbers depend on it.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Deterministic mode writes NaN into whatever `torch.empty` returns, all of which is overwritten right after.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    cv2.setNumThreads(1)
    keep_memory()


def keep_memory() -> None:
    """Let the C library keep what a step frees for the next, which asks for the same again.

    glibc returns large blocks to the kernel, which hands them back page by page, zeroed: about a fifth of a step
    (benchmarks/memory.py). Other C libraries have no such options and are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for option, size in _OPTIONS.values():
        mallopt(option, size)
