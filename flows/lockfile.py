"""dvc.lock as what machines tell each other: the entries of stages that no commit holds yet."""

from collections.abc import Mapping
from typing import Any

import yaml

from flows.clone import Clone
from tasks.atomic import write_text

Entry = dict[str, Any]
"""What dvc.lock says of a stage: cmd, deps, params, outs, with their hashes."""


def entries(clone: Clone) -> dict[str, Entry]:
    """Stage → its entry; none where there is no dvc.lock yet."""
    return dict(_read(clone).get("stages", {}))


def merge(clone: Clone, fresh: Mapping[str, Entry]) -> None:
    """Put the entries in the place of those of the same stages. Nobody else may write the file meanwhile."""
    lock = _read(clone)
    lock["stages"] = {**lock.get("stages", {}), **fresh}
    write_text(clone.root / "dvc.lock", yaml.safe_dump(lock, sort_keys=False))


def outputs(entry: Entry) -> Entry:
    """The part of an entry that stages after this one need: what it made."""
    return {"cmd": entry["cmd"], "outs": entry.get("outs", [])}


def _read(clone: Clone) -> dict[str, Any]:
    file = clone.root / "dvc.lock"
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {"schema": "2.0"}
