"""What a release learned from, so that it is not judged by it.

A split that is drawn moves groups when groups are added or taken away: a clip of today's test split may be one that an
earlier version was trained on. Groups stand in a release as hashes, since they may be people's names: nobody reads them
off, though whoever guesses a name can look whether it is there. Names change, so the footage stands beside them.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.atomic import write_json
from tasks.clips import Clip, Video

FILE = "seen.json"
"""Its name in a release folder."""


@dataclass(frozen=True)
class Seen:
    """The clips that are not of the test split: of those something was learned or chosen.

    Attributes:
        groups: their groups, as `group_hash` gives them.
        footage: SHA-256 of a video → the stretches of it that the clips show, in seconds.
    """

    groups: frozenset[str]
    footage: Mapping[str, Sequence[tuple[float, float]]]

    @classmethod
    def of(cls, clips: Iterable[Clip], videos: Mapping[str, Video]) -> "Seen":
        """That of whoever learns from an index."""
        learned = [clip for clip in clips if clip.split != "test"]
        footage: dict[str, list[tuple[float, float]]] = {}
        for clip in learned:
            footage.setdefault(videos[clip.video].sha256, []).append((clip.start_s, clip.stop_s))
        return cls(frozenset(group_hash(clip.group) for clip in learned), footage)

    @classmethod
    def read(cls, release: Path) -> "Seen | None":
        """That of a release folder; None where it was packaged before releases said so (up to 2026-12-01)."""
        if not (release / FILE).is_file():
            return None
        found = json.loads((release / FILE).read_text(encoding="utf-8"))
        footage = {
            video: [(start, stop) for start, stop in spans] for video, spans in found["footage"].items()
        }
        return cls(frozenset(found["groups"]), footage)

    def write(self, release: Path) -> None:
        """Put it into a release folder."""
        footage = {video: sorted(spans) for video, spans in sorted(self.footage.items())}
        write_json(release / FILE, {"groups": sorted(self.groups), "footage": footage})

    def unseen(self, clips: Sequence[Clip], videos: Mapping[str, Video]) -> list[Clip]:
        """The test clips of groups of which nothing was seen: neither the name nor a moment of any clip.

        Args:
            clips: of all splits of an index.
            videos: of the same.
        """
        known = {clip.group for clip in clips if self._knows(clip, videos[clip.video].sha256)}
        return [clip for clip in clips if clip.split == "test" and clip.group not in known]

    def _knows(self, clip: Clip, video_sha256: str) -> bool:
        return group_hash(clip.group) in self.groups or any(
            clip.start_s < stop and start < clip.stop_s for start, stop in self.footage.get(video_sha256, ())
        )


def group_hash(group: str) -> str:
    """What stands for a group."""
    return hashlib.sha256(group.encode()).hexdigest()[:16]
