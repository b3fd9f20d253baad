"""Clips as tensors: which clips have a modality, and their views rendered batch by batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tasks.clips import Clip
from tasks.modalities.modality import Modality
from tasks.settings import settings
from tasks.shards import Shards
from tasks.views import View


@dataclass(frozen=True)
class Batch:
    """Rendered views of some clips.

    Attributes:
        inputs: (batch, frames, …) float32 as the modality renders them.
        rows: (batch,) int64, each clip's place in the list it came from.
        numbers: (batch,) int64, which view of the clip it is.
    """

    inputs: Tensor
    rows: Tensor
    numbers: Tensor

    def to(self, device: str | torch.device) -> "Batch":
        """The same batch on `device`."""
        moved = (value.to(device, non_blocking=True) for value in (self.inputs, self.rows, self.numbers))
        return Batch(*moved)


def present(modality: Modality, shards: Shards, clips: Sequence[Clip]) -> np.ndarray:
    """Whether each clip has the modality, bool (clips,)."""
    return np.array([modality.covers(shards.rows(clip.video), clip) for clip in clips], dtype=bool)


class _Rendered(Dataset[tuple[np.ndarray, int, int]]):
    """View `number` of clip `row`, rendered when asked for by the pair (row, number)."""

    def __init__(
        self,
        modality: Modality,
        shards: Shards,
        clips: Sequence[Clip],
        size: int,
        view: Callable[[Clip, int], View],
    ):
        self._modality, self._shards, self._clips = modality, shards, clips
        self._size, self._view = size, view

    def __getitem__(self, place: tuple[int, int]) -> tuple[np.ndarray, int, int]:
        row, number = place
        clip = self._clips[row]
        rows = self._shards.rows(clip.video)
        assert rows is not None, f"{clip.clip_id} has no {self._modality}"
        return self._modality.render(rows, self._view(clip, number), self._size), row, number


def _collate(items: list[tuple[np.ndarray, int, int]]) -> Batch:
    inputs, rows, numbers = zip(*items, strict=True)
    return Batch(torch.from_numpy(np.stack(inputs)), torch.tensor(rows), torch.tensor(numbers))


def batches(
    modality: Modality,
    shards: Shards,
    clips: Sequence[Clip],
    size: int,
    places: Sequence[Sequence[tuple[int, int]]],
    view: Callable[[Clip, int], View],
) -> Iterator[Batch]:
    """Render batch after batch.

    Args:
        modality: renders.
        shards: its rows.
        clips: all that `places` refers to.
        size: side of a rendered picture, pixels.
        places: for each batch, the (row of `clips`, number of the view) pairs in it.
        view: gives view `number` of a clip.
    """
    workers = settings().loader_workers
    loader = DataLoader(
        _Rendered(modality, shards, clips, size, view),
        batch_sampler=[list(batch) for batch in places],
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="fork" if workers else None,
    )
    yield from loader


def chunks(places: Sequence[tuple[int, int]], batch: int) -> list[list[tuple[int, int]]]:
    """`places` in their order, cut into batches of at most `batch`."""
    return [list(places[first : first + batch]) for first in range(0, len(places), batch)]
