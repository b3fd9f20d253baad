"""Clips as tensors: which clips have a modality, and their views rendered batch by batch.

Epochs come back to the same views, so what was rendered is kept in memory as long as there is room for it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.fusion import Sights
from tasks import ranks
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
        rows: (batch,) int64 on the CPU, where the lists are, each clip's place in the list it came from.
        numbers: (batch,) int64 on the CPU, which view of the clip it is.
    """

    inputs: Tensor | Sights
    rows: Tensor
    numbers: Tensor

    @property
    def device(self) -> torch.device:
        """Where the inputs are."""
        inputs = self.inputs
        return (inputs if isinstance(inputs, Tensor) else next(iter(inputs.inputs.values()))).device

    def to(self, device: str | torch.device) -> "Batch":
        """The same batch, its inputs on `device`."""
        return self._with(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The same batch, its inputs in memory that a GPU copies from by itself; the data loader asks for it."""
        return self._with(lambda value: value.pin_memory())

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        if isinstance(self.inputs, Tensor):
            return replace(self, inputs=change(self.inputs))
        parts = ({name: change(value) for name, value in part.items()} for part in self.inputs)
        return replace(self, inputs=Sights(*parts))


def present(modality: Renderer, shards: RowStore, clips: Sequence[Clip]) -> np.ndarray:
    """Whether each clip has the modality, of several any, bool (clips,)."""
    return np.array([modality.covers(shards.rows(clip.video), clip) for clip in clips], dtype=bool)


@dataclass
class _Kept:
    """Rendered views of one modality. The first ones stay: epochs go round, and the latest would be needed last.

    Attributes:
        modality, size: how they were rendered.
        seed: of the training that they are views for; None for evaluation views.
    """

    modality: Renderer
    size: int
    seed: int | None
    views: dict[tuple[str, View], np.ndarray | Rendered] = field(default_factory=dict)
    bytes: int = 0

    def keep(self, clip: Clip, view: View, shown: np.ndarray | Rendered, room: int) -> None:
        """Keep what `clip` shows in `view` if it takes at most `room` bytes."""
        needed = sum(array.nbytes for array, _ in shown.values()) if isinstance(shown, dict) else shown.nbytes
        if needed <= room:
            self.views[clip.clip_id, view] = shown
            self.bytes += needed


_KEPT: WeakKeyDictionary[RowStore, list[_Kept]] = WeakKeyDictionary()
"""What was rendered from shards that are in use."""


def _kept_of(shards: RowStore, modality: Renderer, size: int, seed: int | None) -> _Kept:
    several = _KEPT.setdefault(shards, [])
    if seed is not None:  # a stage goes from seed to seed: the last one's views make room
        several[:] = [kept for kept in several if kept.seed in (None, seed)]
    for kept in several:
        if (kept.size, kept.seed) == (size, seed) and kept.modality == modality:
            return kept
    several.append(_Kept(modality, size, seed))
    return several[-1]


class _Rendered(Dataset[tuple[np.ndarray | Rendered, int, int]]):
    """View `number` of clip `row`, rendered when asked for by the pair (row, number)."""

    def __init__(
        self,
        modality: Renderer,
        shards: RowStore,
        clips: Sequence[Clip],
        size: int,
        view: Callable[[Clip, int], View],
        seed: int | None,
    ):
        self._modality, self._shards, self._clips = modality, shards, clips
        self._size, self._view = size, view
        self._kept = _kept_of(shards, modality, size, seed)
        # A worker's memory ends with the epoch; it would only be filled.
        self._room = 0 if settings().loader_workers else settings().view_memory_bytes // ranks.count()

    def __getitem__(self, place: tuple[int, int]) -> tuple[np.ndarray | Rendered, int, int]:
        row, number = place
        clip = self._clips[row]
        view = self._view(clip, number)
        shown = self._kept.views.get((clip.clip_id, view))
        if shown is None:
            shown = self._modality.show(self._shards.rows(clip.video), clip, view, self._size)
            taken = sum(kept.bytes for several in _KEPT.values() for kept in several)
            self._kept.keep(clip, view, shown, self._room - taken)
        return shown, row, number


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
    seed: int | None = None,
) -> Iterator[Batch]:
    """Render batch after batch.

    Args:
        modality: renders, or several do.
        shards: its rows.
        clips: all that `places` refers to.
        size: side of a rendered picture, pixels.
        places: for each batch, the (row of `clips`, number of the view) pairs in it.
        view: gives view `number` of a clip.
        seed: of the training that these are views for; None for evaluation views.
    """
    workers = settings().loader_workers
    loader = DataLoader(
        _Rendered(modality, shards, clips, size, view, seed),
        batch_sampler=[list(batch) for batch in places],
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=_is_for_a_gpu(),
        multiprocessing_context="fork" if workers else None,
    )
    yield from loader


def _is_for_a_gpu() -> bool:
    """Whether networks run on a GPU here, by settings."""
    name = settings().device
    return (name == "auto" or name.startswith("cuda")) and torch.cuda.is_available()


def chunks(places: Sequence[tuple[int, int]], batch: int) -> list[list[tuple[int, int]]]:
    """`places` in their order, cut into batches of at most `batch`."""
    return [list(places[first : first + batch]) for first in range(0, len(places), batch)]
