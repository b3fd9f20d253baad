"""Whose fault it is that a file cannot be read: its own, which is kept, or the machine's, which passes."""

import errno
from pathlib import Path

from tasks.errors import InfrastructureError

_FULL = {errno.ENOSPC, errno.EDQUOT}
PASSING = {*_FULL, errno.EIO, errno.EROFS, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""What the machine fails by and not the file: kept as the file's fault it would never be tried again."""


def of_machine(error: Exception) -> InfrastructureError | None:
    """An error of the operating system as one that is worth trying again, here or elsewhere; None for any other."""
    if not isinstance(error, OSError) or error.errno not in PASSING:
        return None
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in _FULL:
        return InfrastructureError(
            f"the disk is full{where}; nothing half-written was kept\n"
            "  → make room and run again: what was finished is still there"
        )
    return InfrastructureError(
        f"this machine failed: {error.strerror}{where}\n"
        "  → look at its disks, mounts and limits, then run again: what was finished is still there"
    )


def read_through(path: Path) -> None:
    """Read every byte of a file: to a decoder, a file system that does not answer looks like a broken file.

    Raises:
        InfrastructureError: that is not possible.
    """
    try:
        with path.open("rb") as file:
            while file.read(1 << 20):
                pass
    except OSError as error:
        raise InfrastructureError(f"{path} cannot be read: {error.strerror}") from error
