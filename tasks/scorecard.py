"""What a shipped network said of each test clip: a table in its release, so that versions compare without being run.

Knows tables and files, no networks and no registry.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from tasks.atomic import digest, new_file
from tasks.clips import Clip, Video
from tasks.report import ACTION

FILE = "test_predictions.parquet"
"""Its name in a release folder."""
_COLUMNS = ["clip_id", "head", "true", "predicted", "confidence", "prob_true"]
_FOOTAGE = ["start_s", "stop_s", "video_sha256"]
_SLICE = "slice:"
_LEAST = np.finfo(np.float64).tiny  # a probability that underflowed to 0 has a finite NLL, 708 nats


class Said(NamedTuple):
    """What the network is worth in one head, clip by clip, in the order of the clips' ids.

    Attributes:
        true: (clips,), the classes that the clips show.
        top1: (clips,), float64, 1 where the most probable class is right.
        confidence: (clips,), float64, calibrated probability of that class.
        nll: (clips,), float64, calibrated, in nats.
        slices: slice column → (clips,), its value on every clip.
    """

    true: np.ndarray
    top1: np.ndarray
    confidence: np.ndarray
    nll: np.ndarray
    slices: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Scorecard:
    """One network on the test split.

    Attributes:
        table: a row for each clip and head, in the order of both: clip_id, head, true, predicted, confidence,
            prob_true (both calibrated); start_s, stop_s and video_sha256, what the clip shows (releases up to
            2026-11-30 lack them); and a column `slice:<name>` for each slice.
    """

    table: pd.DataFrame

    @classmethod
    def of(
        cls,
        predictions: pd.DataFrame,
        name: str,
        seed: int,
        clips: Sequence[Clip],
        videos: Mapping[str, Video],
    ) -> "Scorecard | None":
        """That of one network of a report; None where the report lacks it.

        Args:
            predictions: as reports/predictions.parquet.
            name: of the model.
            seed: that it was trained with.
            clips: of the test split, for their slices and what they show.
            videos: of the index.
        """
        own = predictions[(predictions["name"] == name) & (predictions["seed"] == seed)]
        if own.empty:
            return None
        by_id = {clip.clip_id: clip for clip in clips}
        table = own[_COLUMNS].sort_values(["head", "clip_id"], ignore_index=True)
        shown = [by_id[clip_id] for clip_id in table["clip_id"]]
        table["start_s"] = [float(clip.start_s) for clip in shown]
        table["stop_s"] = [float(clip.stop_s) for clip in shown]
        table["video_sha256"] = [videos[clip.video].sha256 for clip in shown]
        for column in sorted({column for clip in clips for column in clip.slices}):
            table[_SLICE + column] = [clip.slices.get(column, "") for clip in shown]
        return cls(table)

    @classmethod
    def read(cls, release: Path) -> "Scorecard | None":
        """That of a release folder; None where it was packaged before releases had one."""
        return cls(pd.read_parquet(release / FILE)) if (release / FILE).is_file() else None

    def write(self, release: Path) -> None:
        """Put it into a release folder."""
        with new_file(release / FILE) as temporary:
            self.table.to_parquet(temporary, index=False)

    def only(self, clips: Collection[str]) -> "Scorecard":
        """The same of these clips alone, by their ids."""
        return Scorecard(self.table[self.table["clip_id"].isin(list(clips))].reset_index(drop=True))

    @property
    def digest(self) -> str:
        """Names the test clips, what they show and their labels: two scorecards compare where it is the same."""
        footage = [column for column in _FOOTAGE if column in self.table]
        return digest(self.table[["head", "clip_id", "true", *footage]].to_numpy().tolist())

    def since(self, then: "Scorecard") -> "Scorecard":
        """The same of the clips alone that `then` was not scored on, or with other labels."""
        known = then._names
        both = self.table.merge(then.table[known].drop_duplicates(), how="left", on=known, indicator="where")
        return self.only(both.loc[both["where"] == "left_only", "clip_id"])

    def same_answers(self, then: "Scorecard", head: str) -> float | None:
        """The share of clips that got the same class then, of those that both were scored on; None where none was."""
        columns = [*then._names, "predicted"]
        ours, theirs = (
            each.table.loc[each.table["head"] == head, columns].drop_duplicates(then._names)
            for each in (self, then)
        )
        both = ours.merge(theirs, on=then._names, suffixes=("", "_then"))
        return float((both["predicted"] == both["predicted_then"]).mean()) if len(both) else None

    @property
    def _names(self) -> list[str]:
        """The columns by which its rows are known again in another, whatever the clips are called there."""
        return ["head", "true", *(_FOOTAGE if set(_FOOTAGE) <= set(self.table) else ["clip_id"])]

    @property
    def clip_ids(self) -> set[str]:
        """The test clips."""
        return set(self.table["clip_id"])

    @property
    def heads(self) -> list[str]:
        """The heads that were scored."""
        return list(dict.fromkeys(self.table["head"]))

    @property
    def clips(self) -> int:
        """Number of test clips."""
        return int(self.table["clip_id"].nunique())

    def _right(self, head: str) -> "pd.Series[bool]":
        """Whether the most probable class is right, clip by clip.

        Of an action that is put together: whether its heads are. Its names are joined by spaces, which classes may hold
        too: "put" + "down cup" is not "put down" + "cup". A head of the data's own may have such names as well; what is
        put together has the product of its heads' confidences.
        """
        table = self.table.assign(right=self.table["true"] == self.table["predicted"])
        own, parts = table[table["head"] == head], table[table["head"] != head]
        if head == ACTION:
            words = parts.groupby("clip_id")["true"].agg(" ".join).reindex(own["clip_id"], fill_value="")
            sure = parts.groupby("clip_id")["confidence"].prod().reindex(own["clip_id"], fill_value=np.nan)
            # in any order: the table has heads by the alphabet, an action names them as params do
            same = [sorted(text.split()) for text in words] == [sorted(text.split()) for text in own["true"]]
            if same and np.allclose(sure, own["confidence"], rtol=1e-4):
                return parts.groupby("clip_id")["right"].all().reindex(own["clip_id"])
        return own["right"]

    def said(self, head: str) -> Said:
        """What is known of one head, which it has."""
        rows = self.table[self.table["head"] == head]
        return Said(
            true=rows["true"].to_numpy(),
            top1=self._right(head).to_numpy(np.float64),
            confidence=np.array(rows["confidence"], np.float64),
            nll=-np.log(rows["prob_true"].to_numpy(np.float64).clip(_LEAST)),
            slices={
                column.removeprefix(_SLICE): rows[column].to_numpy()
                for column in rows.columns
                if column.startswith(_SLICE)
            },
        )
