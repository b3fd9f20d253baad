"""Which groups become train, val and test where the annotations leave it open. A pure function."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tasks.clips import SPLITS, Split
from tasks.datasets.annotations import AnnotatedClip


@dataclass(frozen=True)
class Member:
    """What splitting looks at of a clip: its group, its class (of the first head), its split or empty."""

    group: str
    label: str
    split: str


def members(clips: Iterable[AnnotatedClip], heads: Iterable[str]) -> list[Member]:
    """What splitting looks at of the labelled clips: the class is that of the first of `heads`."""
    head = next(iter(heads))
    return [
        Member(clip.group or clip.video, clip.labels[head], clip.split) for clip in clips if clip.labelled
    ]


def split_groups(
    members: Sequence[Member], validation_share: float, test_share: float, seed: int
) -> dict[str, Split]:
    """Group → split, every class shared out as evenly as whole groups allow.

    Splits that the annotations give stay. Groups without one are drawn; where the annotations give no val (or
    no test) at all and leave nothing open, it is carved out of train. Groups go, largest first and ties in an
    order drawn by `seed`, to the split in which they bring the classes closest to their shares. What given splits
    hold more or less than their share is the others' in proportion. Every class keeps a group in train and every
    split with a share gets a group, where there are enough.

    Args:
        members: one a clip.
        validation_share, test_share: shares of the clips, 0 to 1.
        seed: of the order among groups of equal size.
    """
    counts = _class_counts(members)
    given = {member.group: member.split for member in members if member.split}
    shares = {"train": 1 - validation_share - test_share, "val": validation_share, "test": test_share}
    open_groups = set(counts) - set(given)
    wanted = {split for split in SPLITS if shares[split] > 0}
    if not open_groups:
        absent = wanted - set(given.values())
        open_groups = {group for group, split in given.items() if split == "train"} if absent else set()
        wanted = absent | {"train"}
    split_of: dict[str, Split] = {
        group: split  # type: ignore[misc]  # check() has refused other words
        for group, split in given.items()
        if group not in open_groups
    }
    order = sorted(open_groups, key=lambda group: (-counts[group].total(), _draw(seed, group)))
    held = {split: Counter[str]() for split in SPLITS}
    for group, split in split_of.items():
        held[split].update(counts[group])
    drawn = sum((counts[group] for group in order), Counter[str]())
    aims = _aims(drawn, held, {split: shares[split] for split in SPLITS if split in wanted})
    totals = Counter(member.label for member in members)
    for group in order:
        chosen = _closest(counts[group], held, totals, aims)
        split_of[group] = chosen
        held[chosen].update(counts[group])
    _teach_every_class(order, counts, split_of)
    _fill_empty(order, counts, split_of, wanted)
    return split_of


def _class_counts(members: Sequence[Member]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for member in members:
        counts.setdefault(member.group, Counter())[member.label] += 1
    return counts


def _draw(seed: int, group: str) -> bytes:
    return hashlib.sha256(f"{seed}/{group}".encode()).digest()


def _aims(
    drawn: Counter[str], held: Mapping[Split, Counter[str]], shares: dict[Split, float]
) -> dict[Split, dict[str, float]]:
    """How many clips of each class the splits of `shares` should end with, the `drawn` ones shared out among them.

    A split that was given more than its share of all these gets none.
    """
    while True:
        among = sum((held[split] for split in shares), Counter(drawn))
        whole = sum(shares.values())
        full = [
            split
            for split, share in shares.items()
            if held[split].total() > share / whole * among.total() and len(shares) > 1
        ]
        if not full:
            return {
                split: {label: share / whole * count for label, count in among.items()}
                for split, share in shares.items()
            }
        shares = {split: share for split, share in shares.items() if split not in full}


def _closest(
    group: Counter[str],
    held: Mapping[Split, Counter[str]],
    totals: Counter[str],
    aims: Mapping[Split, Mapping[str, float]],
) -> Split:
    """The split in which a group of these classes lowers the squared distance from its aims most."""

    def change(split: Split) -> float:
        return sum(
            (count**2 + 2 * count * (held[split][label] - aims[split][label])) / totals[label]
            for label, count in group.items()
        )

    return min(aims, key=change)


def _teach_every_class(
    order: Sequence[str], counts: Mapping[str, Counter[str]], split_of: dict[str, Split]
) -> None:
    """Move the smallest group of a class to train where train has none."""
    taught = {label for group, split in split_of.items() if split == "train" for label in counts[group]}
    for group in reversed(order):
        if not counts[group].keys() <= taught:
            split_of[group] = "train"
            taught |= counts[group].keys()


def _fill_empty(
    order: Sequence[str], counts: Mapping[str, Counter[str]], split_of: dict[str, Split], wanted: set[Split]
) -> None:
    """Give an empty split the smallest group that the others can spare."""
    for split in SPLITS:
        if split not in wanted or split in split_of.values():
            continue
        spare = next((group for group in reversed(order) if _can_spare(group, counts, split_of)), None)
        if spare is not None:
            split_of[spare] = split


def _can_spare(group: str, counts: Mapping[str, Counter[str]], split_of: Mapping[str, Split]) -> bool:
    companions = [other for other, split in split_of.items() if split == split_of[group] and other != group]
    if split_of[group] != "train":
        return bool(companions)
    return all(any(counts[other][label] for other in companions) for label in counts[group])
