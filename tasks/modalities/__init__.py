"""The modalities: one file each, one line each in registry.py.

The union is made when it is first asked for: audio needs torch, and a process that decodes RGB starts at once without.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.modalities.registry import AnyModality as AnyModality


def __getattr__(name: str) -> Any:
    if name != "AnyModality":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tasks.modalities.registry import AnyModality

    return AnyModality
