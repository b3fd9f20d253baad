"""Which groups a release learned from, so that it is not judged by their clips.

A split that is drawn moves groups when groups are added or taken away: a clip of today's test split may be one that an
earlier version was trained on. Groups stand in a release as hashes, since they may be people's names: nobody reads them
off, though whoever guesses a name can look whether it is there.
"""

import hashlib
import json
from collections.abc import Collection, Iterable
from pathlib import Path

from tasks.atomic import write_json
from tasks.clips import Clip, read_clips
from tasks.layout import Workspace

FILE = "seen_groups.json"
"""Its name in a release folder."""


def write_seen(release: Path, clips: Iterable[Clip]) -> None:
    """Put into a release folder which groups are not of the test split: of those something was learned or chosen."""
    write_json(release / FILE, sorted({group_hash(clip.group) for clip in clips if clip.split != "test"}))


def seen_groups(release: Path) -> frozenset[str]:
    """The groups that a release learned from; none known where it was packaged before releases said so."""
    file = release / FILE
    return frozenset(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else frozenset()


def unseen_test_clips(workspace: Workspace, known: Collection[str]) -> list[Clip]:
    """The test clips of groups that are not `known`."""
    return [clip for clip in read_clips(workspace.index, "test") if group_hash(clip.group) not in known]


def group_hash(group: str) -> str:
    """What stands for a group."""
    return hashlib.sha256(group.encode()).hexdigest()[:16]
