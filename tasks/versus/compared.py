"""What there is to say of two versions: who they are, their figures and what changed, class by class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tasks.pairing import Paired, Part, by_class, by_slice, paired, unpaired
from tasks.params import Evaluate
from tasks.report import ACTION
from tasks.scorecard import Said, Scorecard

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_FACTS = {
    "student": "student",
    "role": "role",
    "method": "method",
    "lesson": "lesson",
    "teachers": "teachers",
    "seed": "seed",
    "data": "data set",
    "git_commit": "git commit",
    "gate_verdict": "gate",
}
"""Version tag → what a reader calls it."""


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        version: its number.
        aliases: that name it.
        facts: what it was made from, in words.
        scorecard: what it said of the test clips.
    """

    version: str
    aliases: Sequence[str]
    facts: Mapping[str, str]
    scorecard: Scorecard

    @property
    def title(self) -> str:
        """As `version 2 (challenger)`."""
        return f"version {self.version}" + (f" ({', '.join(self.aliases)})" if self.aliases else "")

    @classmethod
    def of(cls, version: "ModelVersion", scorecard: Scorecard) -> "Side":
        """From what the registry knows."""
        made = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
        facts = {words: version.tags[tag] for tag, words in _FACTS.items() if version.tags.get(tag)}
        return cls(
            str(version.version),
            list(version.aliases),
            facts | {"registered": f"{made:%Y-%m-%d %H:%M} UTC"},
            scorecard,
        )


@dataclass(frozen=True)
class Versus:
    """Two versions compared.

    Attributes:
        sides: the first and the second.
        unlike: why they are not paired; empty where they are.
        heads: head → figure (top1, ece, nll) → both.
        classes: head → its classes, those that lose most first; empty where they are not paired.
        slices: likewise.
    """

    sides: tuple[Side, Side]
    unlike: str
    heads: Mapping[str, Mapping[str, Paired]]
    classes: Mapping[str, Sequence[Part]]
    slices: Sequence[Part]

    @property
    def head(self) -> str:
        """The head that a reader looks at first."""
        return ACTION if ACTION in self.heads else next(iter(self.heads))

    def said(self, side: Side) -> Said:
        """What a side said in that head."""
        return side.scorecard.said(self.head)

    @property
    def claim(self) -> str:
        """One sentence, no better than measured."""
        first, second = self.sides
        top1 = self.heads[self.head]["top1"]
        told = (
            f"{100 * top1.after:.1f} % of the {self.head} right against {100 * top1.before:.1f} % "
            f"of version {first.version}"
        )
        if top1.interval is None:
            return f"Version {second.version}: {told}; {self.unlike}, so nothing follows from it."
        low, high = (100 * bound for bound in top1.interval)
        word = "is better" if low > 0 else "is worse" if high < 0 else "cannot be told from it"
        points = f"{100 * top1.change:+.1f} points [{low:+.1f}, {high:+.1f}]"
        return f"Version {second.version} {word}: {told}, {points}."


def compared(first: Side, second: Side, evaluate: Evaluate) -> Versus:
    """Compare two versions, paired by clip where both were scored on the same test clips.

    Args:
        evaluate: bins of the ECE and resamples of the intervals.
    """
    ours, theirs = first.scorecard, second.scorecard
    shared = [head for head in ours.heads if head in theirs.heads]
    if ours.digest != theirs.digest:
        unlike = f"they were scored on other test clips ({ours.clips} and {theirs.clips}) or labels"
        heads = {head: unpaired(ours.said(head), theirs.said(head), evaluate) for head in shared}
        return Versus((first, second), unlike, heads, {}, [])
    said = {head: (ours.said(head), theirs.said(head)) for head in shared}
    single = [head for head in shared if head != ACTION] or shared
    return Versus(
        (first, second),
        "",
        {head: paired(*both, evaluate) for head, both in said.items()},
        {head: by_class(*said[head]) for head in single},
        by_slice(*said[ACTION if ACTION in said else shared[0]]),
    )
