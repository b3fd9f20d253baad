"""What a stage's process settles before it computes: its threads, the order of its sums, the memory that it keeps."""

import ctypes

import cv2
import torch

# Options of mallopt, as glibc's malloc.h numbers them, and their bytes. Blocks below the first go back to the process's
# heap (32 MiB is the most that glibc takes), which keeps up to the second when they are freed and grows by the third.
_MMAP_THRESHOLD = (-3, 32 << 20)
_TRIM_THRESHOLD = (-1, 512 << 20)
_TOP_PAD = (-2, 64 << 20)


def prepare(threads: int) -> None:
    """The same sums in the same order on every run, and no time lost on the memory they are written to.

    Args:
        threads: of torch; the numbers depend on it.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Deterministic mode writes NaN into whatever `torch.empty` returns, for programs that read it before they write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    cv2.setNumThreads(1)
    keep_memory()


def keep_memory() -> None:
    """Let the C library keep what a step frees for the next, which asks for the same again.

    glibc returns large blocks to the kernel, which hands them back page by page, zeroed: a quarter of a step
    (benchmarks/memory.py). Other C libraries have no such options and are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for option, size in (_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD):
        mallopt(option, size)
