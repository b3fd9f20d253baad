"""The trained models of a workspace, and what they say of its clips."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.network import Logits
from tasks.answers import Question
from tasks.clips import Clip, Split, label_indices, read_clips
from tasks.errors import UserError
from tasks.layout import Workspace
from tasks.networks import Committee, Spec
from tasks.params import Params
from tasks.report.predictions import Prediction
from tasks.senses import Senses, SharedShards
from tasks.settings import settings
from tasks.shards import Shards

Seeds = dict[int, Prediction]
"""Seed → what the model trained with it said."""


@dataclass(frozen=True)
class Trained:
    """Every teacher and student that params name, and the clips they may be asked about.

    Attributes:
        params: what they were trained with.
        all_clips: the clips of all splits.
        shards: modality → its shards.
        folders: model → its folder, teachers first.
        about: model → its teacher.json or student.json.
        answers: where is kept what they say.
    """

    params: Params
    all_clips: Sequence[Clip]
    shards: Mapping[str, Shards]
    folders: Mapping[str, Path]
    about: Mapping[str, Mapping[str, Any]]
    answers: Path

    @classmethod
    def of(cls, params: Params, workspace: Workspace) -> "Trained":
        """Look up what `params` names in the workspace.

        Raises:
            UserError: a model was not trained.
        """
        files = {name: workspace.teacher(name) / "teacher.json" for name in params.teachers}
        files |= {name: workspace.fused(name) / "teacher.json" for name in params.fused}
        files |= {name: workspace.student(name) / "student.json" for name in params.students}
        return cls(
            params=params,
            all_clips=read_clips(workspace.index),
            shards={name: Shards(workspace.modality(name)) for name in params.modalities},
            folders={name: file.parent for name, file in files.items()},
            about={name: _read(file) for name, file in files.items()},
            answers=workspace.root / settings().work / "answers",
        )

    def clips(self, split: Split) -> list[Clip]:
        """The clips of one split."""
        return [clip for clip in self.all_clips if clip.split == split]

    def labels(self, split: Split) -> dict[str, Tensor]:
        """Head → class index of the split's clips, int64 (clips,)."""
        found = label_indices(self.clips(split), self.params.data.heads)
        return {head: torch.from_numpy(values) for head, values in found.items()}

    @property
    def views(self) -> tuple[int, int]:
        """(clips, crops) that rows are scored with: the fewest of the sweep, what deployment costs."""
        return min(self.params.evaluate.clips), min(self.params.evaluate.crops)

    def class_shares(self) -> Logits:
        """What a model says of a clip that it cannot see.

        Head → (classes,), log of every class's share of the training clips, counted with one clip more in
        each class, so that none is impossible.
        """
        labels, sizes = self.labels("train"), self.params.class_counts
        counts = {head: torch.bincount(labels[head], minlength=size) + 1.0 for head, size in sizes.items()}
        return {head: (values / values.sum()).log() for head, values in counts.items()}

    def _shards_of(self, spec: Spec) -> Shards | SharedShards:
        if isinstance(spec.modality_params, Senses):
            return SharedShards({name: self.shards[name] for name in spec.modality_params.of})
        return self.shards[spec.modality]

    def ask(self, name: str, split: Split) -> Seeds:
        """What a model says of the clips of a split, with as many views as rows are scored with."""
        return self._ask(name, split, [self.views[0]], [self.views[1]])[self.views]

    def ask_by_views(self, name: str, split: Split) -> dict[tuple[int, int], Seeds]:
        """What a model says with every number of (clips, crops) of params.evaluate."""
        return self._ask(name, split, self.params.evaluate.clips, self.params.evaluate.crops)

    def _ask(
        self, name: str, split: Split, counts: Sequence[int], crops: Sequence[int]
    ) -> dict[tuple[int, int], Seeds]:
        clips, unseen = self.clips(split), self.class_shares()
        found: dict[tuple[int, int], Seeds] = {}
        for seed in self.params.seeds:
            weights = self.folders[name] / f"seed-{seed}"
            committee = Committee.load(weights)
            shards = self._shards_of(committee.spec)
            asked = Question(committee, weights, shards, clips, counts, crops)
            by_views, present = asked.answered(self.answers)
            for views, logits in by_views.items():
                found.setdefault(views, {})[seed] = predict(committee, logits, present, unseen)
        return found


def predict(
    committee: Committee, logits: Mapping[str, np.ndarray], present: np.ndarray, unseen: Logits
) -> Prediction:
    """Average the views, then calibrate; where a clip cannot be seen, say `unseen`.

    Args:
        committee: gives the temperature.
        logits: head → (clips, views, classes).
        present: (clips,), bool.
        unseen: head → (classes,), log-probabilities.
    """
    seen = torch.from_numpy(present)
    raw = {head: torch.from_numpy(values).mean(dim=1) for head, values in logits.items()}

    def guessed(values: Logits) -> Logits:
        return {head: torch.where(seen[:, None], each, unseen[head]) for head, each in values.items()}

    return Prediction(guessed(raw), guessed(committee.calibrated(raw)), seen)


def _read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("this model was not trained", file=file, remedy="run `dvc repro`") from None
    return found
