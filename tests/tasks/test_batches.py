"""Batches: views rendered in their order, and not again while there is room to keep them."""

import gc
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from models.fusion import Sights
from tasks import batches
from tasks.batches import Batch
from tasks.clips import Clip
from tasks.views import View

CLIPS = [Clip(f"c{n}", f"{n}.mp4", 0.0, 1.0, "g", "train", {}, {}) for n in range(3)]
PLACES = [[(0, 0), (1, 0)], [(2, 1)]]
FRAME_BYTES = 4 * 2 * 3 * 8 * 8


class Store:
    """Rows that tell whose they are."""

    def rows(self, video: str) -> int:
        return int(video[0])


class Counting:
    """A renderer of two frames that counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def covers(self, rows: int, clip: Clip) -> bool:
        return True

    def show(self, rows: int, clip: Clip, view: View, size: int) -> np.ndarray:
        self.asked += 1
        return np.full((2, 3, size, size), 10 * rows + view.zoom, np.float32)


def view(clip: Clip, number: int) -> View:
    return View((0.0, 0.5), 0.5, zoom=1.0 + number, across=0.5, down=0.5, flip=False)


def shown(modality: Counting, store: Store, size: int = 8, seed: int | None = None) -> list[list[float]]:
    found = batches.batches(modality, store, CLIPS, size, PLACES, view, seed)
    return [batch.inputs[:, 0, 0, 0, 0].tolist() for batch in found]  # type: ignore[index]


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda views: monkeypatch.setenv("UNDERSTUDY_VIEW_MEMORY_BYTES", str(views * FRAME_BYTES))


@pytest.mark.parametrize(("views", "asked"), [(0, 6), (2, 4), (3, 3)])
def test_what_there_is_room_for_is_rendered_once_and_looks_the_same(
    room: Callable[[int], None], views: int, asked: int
):
    room(views)
    modality, store = Counting(), Store()
    assert shown(modality, store) == shown(modality, store) == [[1.0, 11.0], [22.0]]
    assert modality.asked == asked


def test_another_size_modality_or_store_is_rendered_for_itself(room: Callable[[int], None]):
    room(100)
    modality, store = Counting(), Store()
    for _ in range(2):
        shown(modality, store)
        shown(modality, store, size=4)
        shown(modality, Store())
        shown(Counting(), store)
    assert modality.asked == 3 + 3 + 2 * 3


def test_the_views_of_the_last_seed_make_room_and_those_of_evaluation_stay(room: Callable[[int], None]):
    room(6)
    modality, store = Counting(), Store()
    for seed in (None, 0, 0, None, 1, 1, None):
        shown(modality, store, seed=seed)
    assert modality.asked == 3 + 3 + 3


def test_workers_keep_nothing_and_show_the_same(room: Callable[[int], None], monkeypatch: pytest.MonkeyPatch):
    room(100)
    monkeypatch.setenv("UNDERSTUDY_LOADER_WORKERS", "1")
    # What libraries of other tests left to be done at the end of their threads cannot be done in a fork.
    monkeypatch.setattr(threading, "_threading_atexits", [])
    store = Store()
    assert shown(Counting(), store) == [[1.0, 11.0], [22.0]]
    assert not any(kept.bytes for kept in batches._KEPT[store])


def test_views_of_shards_that_nobody_uses_are_let_go(room: Callable[[int], None]):
    room(100)
    store = Store()
    shown(Counting(), store)
    assert store in batches._KEPT
    before = len(batches._KEPT)
    del store
    gc.collect()
    assert len(batches._KEPT) < before


ROWS, NUMBERS = torch.tensor([4, 2]), torch.tensor([0, 1])
PRESENT = torch.tensor([True, False])


@pytest.fixture(params=["one modality", "several"])
def batch(request: pytest.FixtureRequest) -> Batch:
    shown = torch.ones(2, 3)
    return Batch(
        shown if request.param == "one modality" else Sights({"rgb": shown}, {"rgb": PRESENT}), ROWS, NUMBERS
    )


def tensors(batch: Batch) -> list[torch.Tensor]:
    inputs = batch.inputs
    return [inputs] if isinstance(inputs, torch.Tensor) else [inputs.inputs["rgb"], inputs.present["rgb"]]


def test_inputs_alone_go_to_the_device_and_what_indexes_lists_stays(batch: Batch):
    there = batch.to("meta")
    assert batch.device.type == "cpu"
    assert there.device.type == "meta"
    assert [value.device.type for value in tensors(there)] == ["meta"] * len(tensors(batch))
    assert there.rows is ROWS
    assert there.numbers is NUMBERS


def test_the_loader_pins_the_inputs_of_a_batch(batch: Batch, monkeypatch: pytest.MonkeyPatch):
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda value: pinned.append(value) or value.clone())
    found = pin_memory(batch)
    assert isinstance(found, Batch)
    assert [id(value) for value in pinned] == [id(value) for value in tensors(batch)]
    assert all(torch.equal(*pair) for pair in zip(tensors(found), tensors(batch), strict=True))
    assert found.rows is ROWS


@pytest.mark.parametrize(
    ("name", "there_is_one", "pinned"),
    [("auto", True, True), ("cuda:1", True, True), ("cpu", True, False), ("auto", False, False)],
)
def test_batches_are_pinned_for_a_gpu_alone(
    name: str, there_is_one: bool, pinned: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("UNDERSTUDY_DEVICE", name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there_is_one)
    asked = []
    monkeypatch.setattr(
        batches, "DataLoader", lambda *_, **options: asked.append(options["pin_memory"]) or []
    )
    assert list(batches.batches(Counting(), Store(), CLIPS, 8, PLACES, view)) == []
    assert asked == [pinned]
