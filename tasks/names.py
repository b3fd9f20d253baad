"""Names that strangers gave to files: when they may become paths, and when two are the same."""

import unicodedata
from pathlib import Path, PurePosixPath

_LONGEST_BYTES = 200


def normal(name: str) -> str:
    """The Unicode normal form (NFC) in which names are compared."""
    return unicodedata.normalize("NFC", name)


def unsafe(name: str) -> str:
    """Why `name` must not become a path below a folder; empty if it may."""
    parts = name.split("/")
    if not name.strip():
        return "is empty"
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        return "holds a control character"
    if name.startswith(("/", "~")) or "\\" in name or name[1:2] == ":":
        return "is an absolute path or holds a backslash"
    if any(part in ("", ".", "..") for part in parts):
        return "leaves its folder or holds an empty part"
    if any(len(part.encode()) > _LONGEST_BYTES for part in parts):
        return f"is longer than {_LONGEST_BYTES} bytes"
    return ""


def named_file(folder: Path, name: str) -> Path:
    """`folder`/`name`, spelled as on disk where the disk's Unicode form is another."""
    path = folder / PurePosixPath(name)
    if name.isascii() or path.exists() or not path.parent.is_dir():
        return path
    return next((entry for entry in path.parent.iterdir() if normal(entry.name) == normal(path.name)), path)
