"""Two stages that want the same training: one does it, the other waits, and MLflow hears of both as they end."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.network import Network
from tasks import ranks
from tasks.batches import Batch
from tasks.clips import Clip, read_clips
from tasks.learner import Hints, Learner, Lessons, Words
from tasks.params import Params
from tasks.stores import tracking
from tasks.train_teacher import teacher_learner
from tasks.training import Epoch
from tasks.views import View, training_view


@pytest.fixture
def learner(
    small_params: dict[str, Any], drawn_workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Learner:
    monkeypatch.chdir(tmp_path)
    return teacher_learner(Params.model_validate(small_params), drawn_workspace(tmp_path), "eyes")


def test_a_training_that_two_stages_want_is_done_once(learner: Learner, capsys: pytest.CaptureFixture[str]):
    clips = read_clips(learner.workspace.index, "train")

    def trained() -> tuple[Network, list[Epoch]]:
        return learner.train(clips, None, 0, 0)

    with ThreadPoolExecutor(2) as stages:
        asked = [stages.submit(trained) for _ in range(2)]
    (one, history), (other, history_of_other) = (stage.result() for stage in asked)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    assert history == history_of_other  # seconds among it: the second trained nothing
    assert capsys.readouterr().out.count("another stage trains the same network, waiting for it") == 1

    store = tracking.client(learner.workspace)
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    runs = store.search_runs(experiments, "tags.stage = 'train_teacher'")
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    assert sorted(run.data.tags["resumed"] for run in runs) == ["False", "True"]


def test_a_copy_is_fetched_before_any_rank_looks_for_a_checkpoint(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Else the first rank would go on from the copy, and the others from nothing."""
    monkeypatch.setenv("UNDERSTUDY_CHECKPOINTS", str(tmp_path / "copies"))
    clips = read_clips(learner.workspace.index, "train")
    learner.train(clips, None, 0, 0)
    (checkpoint,) = tmp_path.glob("**/trainings/*.pt")
    checkpoint.unlink()

    there = []
    monkeypatch.setattr(ranks, "wait_for_all", lambda: there.append(checkpoint.exists()))
    learner.train(clips, None, 0, 0)
    assert there[0]


def test_a_training_hangs_on_whose_clip_is_whose_and_on_the_arithmetic(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
):
    """Ids, moments and labels stay where a wrong `video` in annotations.csv is put right."""
    clips = read_clips(learner.workspace.index, "train")

    def key(clips: list[Clip]) -> str:
        return learner._key(clips, None, (0, 0), 0, learner.training, None)

    one, other, *rest = clips
    swapped = [replace(one, video=other.video), replace(other, video=one.video), *rest]
    assert key(clips) == key(list(clips))
    assert key(swapped) != key(clips)
    before = key(clips)
    monkeypatch.setattr("tasks.inference.version", lambda name: "99" if name == "timm" else version(name))
    assert key(clips) != before


def test_other_weights_may_be_shown_the_views_that_a_lesson_is_of(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
):
    asked = set()

    def noted(clip: Clip, views: Any, seed: int, number: int) -> View:
        asked.add(seed)
        return training_view(clip, views, seed, number)

    monkeypatch.setattr("tasks.learner.training_view", noted)
    clips = read_clips(learner.workspace.index, "train")
    one, _ = learner.train(clips, None, 0, 0)
    other, _ = learner.train(clips, None, 1, 0, views_seed=0)
    assert asked == {0}
    assert any(not torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_lesson_is_of_the_views_of_a_batch_and_lies_where_its_inputs_do():
    """Three clips of two views; view 3 of a clip is its view 1 again."""
    said = np.arange(6, dtype=np.float32).reshape(3, 2, 1)
    seen = np.array([True, False, True])
    lessons = Lessons(
        {"verb": said},
        seen,
        {"eyes": Hints(said[..., None].astype(np.float16), np.array([0, 1, 2]), seen)},
        "",
        features=said.astype(np.float16),
        teachers={"eyes": Words({"verb": -said}, seen)},
    )
    batch = Batch(torch.zeros(2, 4), torch.tensor([2, 1]), torch.tensor([3, 0]))
    lesson = lessons.of(batch)
    assert lesson.log_probs["verb"].tolist() == [[5.0], [2.0]]
    assert lesson.present.tolist() == [True, False]
    assert lesson.hints["eyes"].moments.tolist() == [[[5.0]], [[2.0]]]
    assert lesson.hints["eyes"].member.tolist() == [2, 1]
    assert lesson.features is not None
    assert lesson.features.tolist() == [[5.0], [2.0]]
    assert lesson.teachers is not None
    assert lesson.teachers["eyes"].logits["verb"].tolist() == [[-5.0], [-2.0]]

    there = lessons.of(batch.to("meta"))
    assert there.features is not None
    assert there.teachers is not None
    moved = [there.log_probs["verb"], there.present, *there.hints["eyes"], there.features]
    moved += [there.teachers["eyes"].logits["verb"], there.teachers["eyes"].present]
    assert {value.device.type for value in moved} == {"meta"}
