"""Whose fault it is that a file cannot be read: its own, which is kept, or the machine's, which passes."""

import errno
from pathlib import Path

from tasks.errors import InfrastructureError

PASSING = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.ESTALE}
"""What the machine fails by and not the file: kept as the file's fault it would never be tried again."""


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
