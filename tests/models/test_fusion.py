"""Late fusion: absent modalities change nothing but their flag, and gradients reach what is there alone."""

import pytest
import torch

from models.backbones.stlt import STLT
from models.distill.method import Lesson
from models.distill.omnivorous import alone
from models.distill.umt import UMT, distances
from models.fusion import LateFusion, Sights
from models.network import Network, Output, build, count_parameters, gmacs

BACKBONE = STLT(
    kind="stlt", width=8, spatial_layers=1, temporal_layers=1, attention_heads=2, max_frames=8, dropout=0.0
)
WIDER = BACKBONE.model_copy(update={"width": 12})
CLASSES = {"verb": 3, "noun": 2}


def fusion(**changes) -> LateFusion:
    values = {"head": "joint", "dropout": 0.0, "modality_dropout": 0.0} | changes
    return LateFusion(kind="fused", branches={"left": BACKBONE, "right": WIDER}, **values)


def network(**changes) -> Network:
    torch.manual_seed(0)
    return build(fusion(**changes), {"left": 8, "right": 8}, CLASSES)


def boxes(batch: int, frames: int, seed: int) -> torch.Tensor:
    values = torch.rand(batch, frames, 2, 8, generator=torch.Generator().manual_seed(seed))
    values[..., 5:] = values[..., 5:].mul(2).round()
    return values


def sights(left=(True, True, True), right=(True, True, True)) -> Sights:
    return Sights(
        {"left": boxes(3, 2, 1), "right": boxes(3, 4, 2)},
        {"left": torch.tensor(left), "right": torch.tensor(right)},
    )


def test_features_lie_side_by_side_then_flags():
    net, shown = network().eval(), sights(right=(True, False, True))
    output = net(shown)
    assert output.features.shape == (3, 8 + 12 + 2)
    alone = net.backbone.branch("left")(shown.inputs["left"])[0]
    torch.testing.assert_close(output.features[:, :8], alone)
    assert output.features[:, -2:].tolist() == [[1, 1], [1, 0], [1, 1]]
    assert not output.features[1, 8:20].any()
    assert output.moments.shape == (3, 2, 20)


@pytest.mark.parametrize("head", ["joint", "mean"])
def test_what_stands_where_a_modality_is_absent_changes_nothing(head):
    net = network(head=head).eval()
    shown = sights(right=(True, False, True))
    other = sights(right=(True, False, True))
    other.inputs["right"][1] = torch.nan
    for name, logits in net(shown).logits.items():
        torch.testing.assert_close(net(other).logits[name], logits)


def test_a_branch_in_training_learns_from_clips_that_have_its_modality_alone():
    net = network()
    shown = sights(right=(False, False, False))
    sum(logits.sum() for logits in net(shown).logits.values()).backward()
    assert all(parameter.grad is None for parameter in net.backbone.branch("right").parameters())
    assert any(parameter.grad is not None for parameter in net.backbone.branch("left").parameters())


def test_a_clip_without_anything_gets_an_even_word_from_the_mean():
    output = network(head="mean").eval()(sights(left=(False, True, True), right=(False, True, True)))
    assert output.logits["verb"][0].exp().tolist() == pytest.approx([1 / 3] * 3)


def test_the_mean_of_two_branches_by_hand():
    net = network(head="mean").eval()
    net.heads.temperature[:] = torch.tensor([[2.0, 1.0], [1.0, 4.0]])
    for modality, logits in (("left", [0.0, 0.0, 2 * 1.0986123]), ("right", [0.0, 0.0, 0.0])):
        linear = net.heads.branch(modality).linear["verb_head"]
        linear.weight.data.zero_()
        linear.bias.data = torch.tensor(logits)
    probs = net(sights()).logits["verb"].exp()[0]
    assert probs.tolist() == pytest.approx([(0.2 + 1 / 3) / 2, (0.2 + 1 / 3) / 2, (0.6 + 1 / 3) / 2])


def test_frozen_branches_have_no_gradient_and_stay_in_evaluation():
    net = network()
    net.backbone.freeze()
    net.train()
    assert net.heads.training
    assert not any(module.training for module in net.backbone.modules())
    net(sights()).logits["verb"].sum().backward()
    assert all(parameter.grad is None for parameter in net.backbone.parameters())
    assert net.heads.linear["verb_head"].weight.grad.any()


def test_modality_dropout_hides_in_training_but_never_everything():
    net = network(modality_dropout=0.9)
    flags = torch.cat([net.train()(sights()).features[:, -2:] for _ in range(20)])
    assert flags.sum(1).min() == 1
    assert 1 < flags.sum(1).mean() < 2  # 0.9 hidden each: one, the other, or, where both would be, none
    blind = torch.cat([net(sights(right=(False,) * 3)).features[:, -2:] for _ in range(5)])
    assert (blind == torch.tensor([1.0, 0.0])).all()
    assert (net.eval()(sights()).features[:, -2:] == 1).all()


def test_cost_is_that_of_all_branches_and_the_heads():
    one = Sights(
        {"left": boxes(1, 2, 1), "right": boxes(1, 2, 2)},
        {n: torch.ones(1).bool() for n in ("left", "right")},
    )
    net = network().eval()
    parts = [gmacs(build(own, 8, CLASSES), one.inputs[name]) for name, own in fusion().branches.items()]
    flags = 2 * sum(CLASSES.values()) / 1e9  # the joint classifier reads them too
    assert gmacs(net, one) == pytest.approx(sum(parts) + flags)
    with pytest.raises(ValueError, match="batch of 1"):
        gmacs(net, sights())


@pytest.mark.parametrize("modality", ["left", "right"])
def test_one_branch_alone_says_what_the_whole_says_of_clips_with_that_modality(modality):
    net = network().eval()
    shown = sights(**{other: (False,) * 3 for other in ("left", "right") if other != modality})
    found = alone(net, modality).eval()
    whole = net(shown).logits
    for head, logits in found(shown.inputs[modality]).logits.items():
        torch.testing.assert_close(logits, whole[head])
    assert count_parameters(found) == count_parameters(build(fusion().branches[modality], 8, CLASSES))


def umt(weight: float = 10.0) -> UMT:
    return UMT(kind="umt", feature_weight=weight, widths={"left": 2, "right": 1})


def test_the_pull_of_features_by_hand():
    own = torch.tensor([[1.0, 2.0, 3.0, 1, 1], [1.0, 0.0, 0.0, 1, 0]])
    teachers = torch.tensor([[0.0, 0.0, 1.0, 1, 1], [1.0, 2.0, 0.0, 1, 0]])
    # left: (1 + 4)/2 and 4/2, mean 9/4; right: 4 and absent, mean 2
    assert distances(own, teachers, {"left": 2, "right": 1}).tolist() == pytest.approx([9 / 4, 2.0])
    output = Output(own, own[:, None], {"verb": torch.zeros(2, 4)})
    lesson = Lesson({}, torch.ones(2).bool(), {}, teachers)
    losses = umt(3.0).loss(output, lesson, {"verb": torch.tensor([0, 1])}, torch.nn.Module(), 0.0)
    assert losses.parts["features"].item() == pytest.approx(3 * (9 / 4 + 2))
    assert losses.total.item() == pytest.approx(3 * (9 / 4 + 2) + torch.log(torch.tensor(4.0)).item())


def test_the_pull_reaches_every_branch_and_vanishes_at_the_teachers():
    net = network().eval()
    output = net(sights())
    method = UMT(kind="umt", feature_weight=10.0, widths=net.backbone.widths)
    labels = {"verb": torch.tensor([0, 1, 2]), "noun": torch.tensor([0, 1, 0])}
    there = Lesson({}, torch.ones(3).bool(), {}, output.features.detach())
    assert method.loss(output, there, labels, torch.nn.Module(), 0.0).parts["features"] == 0
    away = there._replace(features=output.features.detach() + 1)
    method.loss(output, away, labels, torch.nn.Module(), 0.0).total.backward()
    for modality in ("left", "right"):
        assert all(
            p.grad is not None and p.grad.isfinite().all() for p in net.backbone.branch(modality).parameters()
        )


def test_features_of_another_layout_are_refused():
    output = Output(torch.zeros(2, 5), torch.zeros(2, 1, 5), {"verb": torch.zeros(2, 4)})
    labels = {"verb": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match="features of the uni-modal teachers"):
        umt().loss(output, None, labels, torch.nn.Module(), 0.0)
    with pytest.raises(ValueError, match="expected"):
        umt().loss(
            output, Lesson({}, torch.ones(2).bool(), {}, torch.zeros(1, 5)), labels, torch.nn.Module(), 0.0
        )
