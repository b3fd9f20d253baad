"""How a full disk shows itself: Python, git, SQLite and DVC each say it in the words below."""

import re

_FULL = re.compile(r"No space left on device|Disk quota exceeded|database or disk is full")


def is_full(said: object) -> bool:
    """Whether an error, or a line that a program printed, is about a full disk."""
    return _FULL.search(str(said)) is not None
