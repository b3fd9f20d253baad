"""The one loop: exact resume, every clip once, rates as drawn, refusal of a loss that is no number."""

import functools
import itertools

import numpy as np
import pytest
import timm
import torch
from torch import nn

from models.backbones.stlt import STLT
from models.distill.kd import KD
from models.distill.method import Lesson
from models.distill.supervised import Supervised
from models.network import build
from tasks.batches import Batch
from tasks.errors import UserError
from tasks.params import Training
from tasks.training import Course, _without_decay, epoch_places, fit, rate_factor

CLIPS, CLASSES = 13, 3
TRAINING = Training(
    epochs=4,
    batch=4,
    learning_rate=0.01,
    weight_decay=0.05,
    warmup_epochs=1,
    decay="cosine",
    clip_norm=1.0,
    ema=0.9,
    precision="float32",
    devices=1,
)
BACKBONE = STLT(
    kind="stlt", width=16, spatial_layers=1, temporal_layers=1, attention_heads=2, max_frames=4, dropout=0.2
)

BY_LABELS = Supervised(kind="supervised", head_weights=None, label_smoothing=0.0)
IN_TWO_HALVES = KD(
    kind="kd",
    temperature=2.0,
    divergence="reverse_then_forward",
    distillation_weight=1.0,
    ground_truth_weight=0.0,
    unlabelled_weight=0.0,
    head_weights=None,
)


def data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(CLIPS, 4, 3, 8, generator=generator)
    inputs[..., 5:] = inputs[..., 5:].mul(2).round()
    return inputs, torch.randint(CLASSES, (CLIPS,), generator=generator)


class Killed(Exception):
    """Stands for SIGKILL: nothing of the loop runs after it."""


def no_loss(total):
    return total * float("nan")


def no_gradient(total):
    return total + (total * 0).sqrt()  # 0 · ∞ backwards


def course(
    checkpoint, training=TRAINING, kill_after=None, spoil=None, told=None, method=BY_LABELS, done=None
):
    inputs, labels = data()
    sure = torch.nn.functional.one_hot((labels + 1) % CLASSES, CLASSES).float()

    def batches(places):
        for place in places:
            rows = torch.tensor([row for row, _ in place])
            yield Batch(inputs[rows], rows, torch.tensor([number for _, number in place]))

    def objective(output, batch, progress):
        if done is not None:
            done.append(progress)
        lesson = Lesson({"action": sure[batch.rows]}, torch.ones(len(batch.rows)).bool(), {})
        truth = {"action": labels[batch.rows]}
        losses = method.loss(output, lesson, truth, torch.nn.Module(), progress)
        return losses._replace(total=spoil(losses.total)) if spoil else losses

    def log(figures):
        if told is not None:
            told.append(figures["epoch"])
        if kill_after is not None and figures["epoch"] == kill_after:
            raise Killed

    def validate(network):
        with torch.inference_mode():
            top1 = (network(inputs).logits["action"].argmax(-1) == labels).float().mean()
        return {"val_loss": 0.0, "val_top1": float(top1)}

    return Course(
        "test",
        training,
        3,
        CLIPS,
        CLIPS,
        batches,
        objective,
        False,
        torch.nn.Module(),
        validate,
        checkpoint,
        lambda _: None,
        log,
    )


def fresh():
    torch.manual_seed(7)
    return build(BACKBONE, 8, {"action": CLASSES})


def same(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize(
    ("training", "method"),
    [
        (TRAINING, BY_LABELS),
        (TRAINING.model_copy(update={"ema": 0.0, "precision": "bfloat16"}), BY_LABELS),
        (TRAINING, IN_TWO_HALVES),
    ],
)
def test_a_killed_training_ends_in_the_same_weights(tmp_path, training, method):
    whole, history = fit(fresh(), course(tmp_path / "whole.pt", training, method=method))
    for epoch in (0, 2):
        with pytest.raises(Killed):
            fit(fresh(), course(tmp_path / "cut.pt", training, kill_after=epoch, method=method))
        (tmp_path / ".cut.pt.left").write_bytes(b"half")  # what a kill in the middle of saving leaves
    torch.manual_seed(99)  # whatever the new process drew before
    told: list[int] = []
    resumed, history_resumed = fit(fresh(), course(tmp_path / "cut.pt", training, told=told, method=method))
    assert told == [0, 1, 2, 3]  # the new MLflow run has the whole curve
    assert same(whole, resumed)
    assert not list(tmp_path.glob(".cut*"))
    strip = functools.partial(map, lambda figures: {k: v for k, v in figures.items() if k != "seconds"})
    assert list(strip(history)) == list(strip(history_resumed))


def test_progress_is_the_share_of_steps_done_whoever_was_killed(tmp_path):
    whole, before, after = [], [], []
    fit(fresh(), course(tmp_path / "whole.pt", done=whole))
    assert whole == pytest.approx(np.arange(12) / 12)  # three steps in each of four epochs
    with pytest.raises(Killed):
        fit(fresh(), course(tmp_path / "cut.pt", kill_after=1, done=before))
    fit(fresh(), course(tmp_path / "cut.pt", done=after))
    assert before + after == whole


def test_the_average_of_a_short_training_is_not_what_it_began_with(tmp_path):
    slow = TRAINING.model_copy(
        update={"ema": 0.999}
    )  # of twelve steps, 0.999^12 would leave all but the beginning
    last = fit(fresh(), course(tmp_path / "last.pt", TRAINING.model_copy(update={"ema": 0.0})))[
        0
    ].state_dict()
    kept, begin = fit(fresh(), course(tmp_path / "kept.pt", slow))[0].state_dict(), fresh().state_dict()

    def far(one, other):
        return sum(float((one[name] - other[name]).square().sum()) for name in one) ** 0.5

    assert far(kept, last) < 0.5 * far(begin, last)


def test_a_finished_training_is_not_done_again(tmp_path):
    network, history = fit(fresh(), course(tmp_path / "a.pt"))
    again, history_again = fit(fresh(), course(tmp_path / "a.pt", spoil=no_loss))
    assert same(network, again)
    assert history == history_again


def test_it_learns(tmp_path):
    chance = 5 / 13  # the most frequent class
    longer = TRAINING.model_copy(update={"epochs": 60, "weight_decay": 0.0, "learning_rate": 0.005})
    _, history = fit(fresh(), course(tmp_path / "a.pt", longer))
    assert history[-1]["val_top1"] > chance


@pytest.mark.parametrize(("what", "spoil"), [("loss", no_loss), ("gradient", no_gradient)])
def test_what_is_no_number_stops_with_epoch_and_remedy_before_it_spoils_weights(tmp_path, what, spoil):
    fit(fresh(), course(tmp_path / "a.pt", TRAINING.model_copy(update={"epochs": 2})))
    network = fresh()
    with pytest.raises(
        UserError, match=rf"the {what} is nan.* in epoch 1, batch 1[\s\S]*method's loss"
    ) as told:
        fit(network, course(tmp_path / "b.pt", spoil=spoil))
    assert not (tmp_path / "b.pt").exists()
    assert same(network, fresh())
    assert "learning_rate" not in str(told.value)  # no step was taken
    assert "float32" not in str(told.value)  # it was that
    counted = itertools.count()
    with pytest.raises(
        UserError, match=rf"the {what} is nan.* in epoch 1, batch 2[\s\S]*lower learning_rate"
    ):
        fit(fresh(), course(tmp_path / "c.pt", spoil=lambda each: spoil(each) if next(counted) else each))


def test_a_step_looks_at_all_its_numbers_at_once(tmp_path, monkeypatch):
    looks = []
    seen = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda value: looks.append(value.shape) or seen(value))
    _, history = fit(fresh(), course(tmp_path / "a.pt", method=IN_TWO_HALVES))
    assert {"train_loss", "train_distillation", "train_ground_truth"} <= history[0].keys()
    assert looks == [(4,)] * 12  # gradient, loss and its two parts, in three steps of each of four epochs


@pytest.mark.parametrize(("clips", "batch"), [(13, 4), (3, 8), (16, 4), (1, 1), (17, 16)])
def test_an_epoch_shows_every_clip_once_in_its_own_order(clips, batch):
    places = epoch_places(clips, clips, batch, seed=1, epoch=5)
    rows = [row for part in places for row, number in part]
    assert sorted(rows) == list(range(clips))
    assert {number for part in places for _, number in part} == {5}
    assert len(places) == max(1, clips // batch)
    assert epoch_places(clips, clips, batch, 1, 5) == places
    if clips > 3:
        assert epoch_places(clips, clips, batch, 1, 6) != places
        assert min(len(part) for part in places) >= min(batch, clips)


def test_epochs_of_a_part_show_all_clips_in_turn():
    """7 clips, 5 an epoch: after 7 epochs each was shown 5 times, in view 0, 1, …, 4."""
    epochs = [epoch_places(7, 5, 2, seed=1, epoch=epoch) for epoch in range(7)]
    assert [[len(part) for part in places] for places in epochs] == [[3, 2]] * 7
    shown = [place for places in epochs for part in places for place in part]
    assert sorted(shown) == [(row, number) for row in range(7) for number in range(5)]
    assert [number for _, number in shown] == sorted(number for _, number in shown)


def test_what_does_not_decay():
    """Biases and norms; what timm's networks name; of torchvision's Swin the positions."""
    timms = timm.create_model("test_vit", num_classes=2)
    torchvisions = nn.Module()
    torchvisions.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
    trained = nn.ModuleList([timms, torchvisions])
    spared = _without_decay(trained)
    still, decaying = timm.optim.param_groups_weight_decay(trained, 0.05, no_weight_decay_list=spared)
    assert (still["weight_decay"], decaying["weight_decay"]) == (0.0, 0.05)
    spared_ones = {id(parameter) for parameter in still["params"]}
    named = {name: id(parameter) in spared_ones for name, parameter in trained.named_parameters()}
    assert named["0.pos_embed"]
    assert named["0.blocks.0.norm1.weight"]
    assert named["1.relative_position_bias_table"]
    assert not named["0.blocks.0.attn.qkv.weight"]


def test_the_rate_rises_falls_and_ends_at_zero():
    factors = np.array([rate_factor(TRAINING, step, 10) for step in range(40)])
    assert factors[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert (np.diff(factors[10:]) < 0).all()
    assert factors[-1] < 0.01
    linear = TRAINING.model_copy(update={"decay": "linear"})
    assert rate_factor(linear, 25, 10) == pytest.approx(0.5)
