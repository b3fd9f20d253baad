"""Several modalities looked at together: each renders the same view, and a clip may lack any of them but one."""

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import torch

from models.fusion import Sights
from tasks.atomic import digest
from tasks.clips import Clip
from tasks.modalities import AnyModality
from tasks.section import Section
from tasks.shards import Rows, Shards
from tasks.views import View

Rendered = dict[str, tuple[np.ndarray, bool]]
"""Modality → a view as it renders it, zeros where the clip lacks it, and whether the clip has it."""


class Senses(Section):
    """What a network of several branches sees."""

    kind: Literal["senses"]
    of: dict[str, AnyModality]

    @property
    def channels(self) -> dict[str, int]:
        """Modality → values of a pixel or box."""
        return {name: modality.channels for name, modality in self.of.items()}

    def covers(self, rows: Mapping[str, Rows] | None, clip: Clip) -> bool:
        """Whether `clip` has at least one of the modalities; `rows` of its video."""
        return rows is not None and any(
            modality.covers(rows.get(name), clip) for name, modality in self.of.items()
        )

    def show(self, rows: Mapping[str, Rows], clip: Clip, view: View, size: int) -> Rendered:
        """One view of `clip` by every modality."""
        rendered: Rendered = {}
        for name, modality in self.of.items():
            own = rows.get(name)
            if own is not None and modality.covers(own, clip):
                rendered[name] = modality.render(own, view, size), True
            else:
                rendered[name] = np.zeros(modality.shape(len(view.times_s), size), np.float32), False
        return rendered

    def example(self, frames: int, size: int) -> Sights:
        """An input of one clip that has all modalities, zeros, in the shapes that they render."""
        inputs = {name: torch.zeros(1, *modality.shape(frames, size)) for name, modality in self.of.items()}
        return Sights(inputs, {name: torch.ones(1, dtype=torch.bool) for name in self.of})


class SharedShards:
    """The shards of several modalities, read as one."""

    def __init__(self, shards: Mapping[str, Shards]):
        self._shards = dict(shards)

    @property
    def digest(self) -> str:
        """Names the content of all."""
        return digest({name: shards.digest for name, shards in self._shards.items()})

    def rows(self, video: str) -> dict[str, Rows]:
        """Modality → the rows of `video`, of those that it has."""
        found = {name: shards.rows(video) for name, shards in self._shards.items()}
        return {name: rows for name, rows in found.items() if rows is not None}


def stack(rendered: Iterable[Rendered]) -> Sights:
    """Views of several clips as one batch."""
    clips = list(rendered)
    return Sights(
        {name: torch.from_numpy(np.stack([clip[name][0] for clip in clips])) for name in clips[0]},
        {name: torch.tensor([clip[name][1] for clip in clips]) for name in clips[0]},
    )
