"""What the data set holds, for the report: clips, groups and hours of each split, and what is missing."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.clips import SPLITS, Clip
from tasks.modalities import AnyModality
from tasks.shards import Shards


def describe(
    clips: Sequence[Clip], index: Path, shards: Mapping[str, Shards], modalities: Mapping[str, AnyModality]
) -> dict[str, Any]:
    """Count what the index and the extracted modalities hold.

    Returns:
        splits: split → clips, groups, videos, hours, and `missing`: modality → clips without it;
        quarantined: number of clips that ingest set aside;
        problems: modality → video → why it has gaps or is missing there, where a file is damaged.
    """
    unlabelled = [clip for clip in clips if not clip.labelled]
    return {
        "splits": {
            split: _split([clip for clip in clips if clip.split == split], shards, modalities)
            for split in SPLITS
        }
        | ({"unlabelled": _split(unlabelled, shards, modalities)} if unlabelled else {}),
        "quarantined": _quarantined(index / "quarantine.csv"),
        "problems": {name: dict(shards[name].manifest["problems"]) for name in modalities},
    }


def _split(
    clips: Sequence[Clip], shards: Mapping[str, Shards], modalities: Mapping[str, AnyModality]
) -> dict[str, Any]:
    return {
        "clips": len(clips),
        "groups": len({clip.group for clip in clips}),
        "videos": len({clip.video for clip in clips}),
        "hours": sum(clip.duration_s for clip in clips) / 3600,
        "missing": {
            name: sum(not modality.covers(shards[name].rows(clip.video), clip) for clip in clips)
            for name, modality in modalities.items()
        },
    }


def _quarantined(file: Path) -> int:
    with file.open(newline="", encoding="utf-8") as stream:
        return sum(1 for _ in csv.DictReader(stream))


def majority_accuracy(
    train: Sequence[Clip], test: Sequence[Clip], heads: Mapping[str, Sequence[str]], action: str
) -> dict[str, float]:
    """Head → top-1 on `test` of always saying what is most frequent in `train`.

    `action` names the head that stands for the tuple of all heads.
    """
    parts = {action: tuple(heads), **{head: (head,) for head in heads}}
    accuracy = {}
    for head, names in parts.items():
        counts = Counter(tuple(clip.labels[name] for name in names) for clip in train)
        best = min(counts, key=lambda labels: (-counts[labels], labels), default=None)
        right = sum(tuple(clip.labels[name] for name in names) == best for clip in test)
        accuracy[head] = right / len(test)
    return accuracy
