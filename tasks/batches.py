"""Clips as tensors: which clips have a modality, and their views rendered batch by batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.fusion import Sights
from tasks.clips import Clip
from tasks.senses import Rendered, stack
from tasks.settings import settings
from tasks.views import View


class Renderer(Protocol):
    """A modality, or several looked at together: what of a video's rows a network sees."""

    def covers(self, rows: Any, clip: Clip) -> bool:
        """Whether there is something of `clip` to be seen."""

    def show(self, rows: Any, clip: Clip, view: View, size: int) -> np.ndarray | Rendered:
        """One view of `clip`."""


class RowStore(Protocol):
    """Where the rows of videos are, of one modality or of several: what a renderer is given."""

    def rows(self, video: str) -> Any:
        """The rows of `video`, or None."""


@dataclass(frozen=True)
class Batch:
    """Rendered views of some clips.

    Attributes:
        inputs: (batch, frames, …) float32 as the modality renders them, or what several modalities show.
        rows: (batch,) int64, each clip's place in the list it came from.
        numbers: (batch,) int64, which view of the clip it is.
    """

    inputs: Tensor | Sights
    rows: Tensor
    numbers: Tensor

    def to(self, device: str | torch.device) -> "Batch":
        """The same batch on `device`."""

        def move(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=True)

        inputs = (
            move(self.inputs)
            if isinstance(self.inputs, Tensor)
            else Sights(*({name: move(value) for name, value in part.items()} for part in self.inputs))
        )
        return Batch(inputs, move(self.rows), move(self.numbers))


def present(modality: Renderer, shards: RowStore, clips: Sequence[Clip]) -> np.ndarray:
    """Whether each clip has the modality, of several any, bool (clips,)."""
    return np.array([modality.covers(shards.rows(clip.video), clip) for clip in clips], dtype=bool)


class _Rendered(Dataset[tuple[np.ndarray | Rendered, int, int]]):
    """View `number` of clip `row`, rendered when asked for by the pair (row, number)."""

    def __init__(
        self,
        modality: Renderer,
        shards: RowStore,
        clips: Sequence[Clip],
        size: int,
        view: Callable[[Clip, int], View],
    ):
        self._modality, self._shards, self._clips = modality, shards, clips
        self._size, self._view = size, view

    def __getitem__(self, place: tuple[int, int]) -> tuple[np.ndarray | Rendered, int, int]:
        row, number = place
        clip = self._clips[row]
        rows = self._shards.rows(clip.video)
        return self._modality.show(rows, clip, self._view(clip, number), self._size), row, number


def _collate(items: list[tuple[np.ndarray | Rendered, int, int]]) -> Batch:
    shown, rows, numbers = zip(*items, strict=True)
    several = isinstance(shown[0], dict)
    inputs = stack(shown) if several else torch.from_numpy(np.stack(shown))
    return Batch(inputs, torch.tensor(rows), torch.tensor(numbers))


def batches(
    modality: Renderer,
    shards: RowStore,
    clips: Sequence[Clip],
    size: int,
    places: Sequence[Sequence[tuple[int, int]]],
    view: Callable[[Clip, int], View],
) -> Iterator[Batch]:
    """Render batch after batch.

    Args:
        modality: renders, or several do.
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
