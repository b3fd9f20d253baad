"""MST-Distill: the paper's losses, masks that are their own, a gate that learns and pulls at nobody."""

import math

import pytest
import torch

from models.backbones.stlt import STLT
from models.distill.method import Lesson
from models.distill.mst import (
    LAYERS,
    MST,
    ChannelMask,
    Joint,
    Masks,
    MomentMask,
    Specialists,
    Together,
    balance,
    gate_log_probs,
    look,
    masked,
    new_mask,
    taught_gate,
    top_k,
)
from models.fusion import LateFusion, Sights, branch_key
from models.network import Network, Output, Word, build

BACKBONE = STLT(
    kind="stlt", width=8, spatial_layers=1, temporal_layers=1, attention_heads=2, max_frames=8, dropout=0.0
)
FUSED = LateFusion(
    kind="fused",
    branches={"rgb": BACKBONE, "flow": BACKBONE},
    head="joint",
    dropout=0.0,
    modality_dropout=0.0,
)
CLASSES = {"verb": 3, "noun": 2}
ALONE = torch.nn.Module()
LABELS = {"verb": torch.tensor([0, 1, 2, 0]), "noun": torch.tensor([1, 0, 1, 0])}
METHOD = MST(
    kind="mst",
    temperature=2.0,
    top_k=1,
    distillation_weight=1.0,
    balance_weight=0.5,
    gate_weight=1.0,
    gate_temperature=1.0,
    gate_width=8,
    head_weights=None,
)


def sights(flow=(True, True, False, True)) -> Sights:
    generator = torch.Generator().manual_seed(1)
    inputs = {name: torch.rand(4, 2, 2, 8, generator=generator) for name in ("rgb", "flow", "audio")}
    for values in inputs.values():
        values[..., 5:] = values[..., 5:].mul(2).round()
    everywhere = torch.ones(4, dtype=torch.bool)
    return Sights(inputs, {"rgb": everywhere, "flow": torch.tensor(flow), "audio": everywhere})


def together() -> Together:
    torch.manual_seed(0)
    channels = {"rgb": 8, "flow": 8}
    teachers = {
        "both": build(FUSED, channels, CLASSES),
        "ears": build(BACKBONE, 8, CLASSES),
        "flow": build(BACKBONE, 8, CLASSES),
    }
    sees = {"both": None, "ears": "audio", "flow": "flow"}
    return Together(build(BACKBONE, 8, CLASSES), teachers, sees, "rgb")


def specialists() -> Specialists:
    torch.manual_seed(1)
    return Specialists(together(), 6, 3)


def test_members_speak_of_the_clips_that_they_see():
    net = together().eval()
    output = net(sights())
    assert list(output.beside) == ["both", "ears", "flow"]
    assert output.beside["flow"].present.tolist() == [True, True, False, True]
    assert output.beside["both"].present.all()
    alone = net.teacher("ears")(sights().inputs["audio"]).logits
    torch.testing.assert_close(output.beside["ears"].logits["verb"], alone["verb"])
    nobody = net(sights(flow=(False,) * 4)).beside["flow"]
    assert nobody.logits["verb"].shape == (4, 3)
    assert not nobody.present.any()


def test_stage_1_teaches_all_members_and_ignores_clips_that_a_member_does_not_see():
    net, method = together(), Joint(kind="mst_joint", temperature=2.0)
    output = net(sights())
    unseen = method.loss(output, None, LABELS, ALONE, 0.0).total.item()
    output.beside["flow"].logits["verb"].data[2] = 7.0
    losses = method.loss(output, None, LABELS, ALONE, 0.0)
    assert losses.total.item() == pytest.approx(unseen)
    assert losses.total.item() == pytest.approx(sum(part.item() for part in losses.parts.values()))
    losses.total.backward()
    for member in [Network(net.backbone, net.heads), *(net.teacher(name) for name in net.modalities)]:
        assert any(parameter.grad.any() for parameter in member.parameters() if parameter.grad is not None)


def test_stage_2_trains_every_mask_and_nothing_else():
    net, method = specialists(), Masks(kind="mst_masks", temperature=2.0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    assert not net.backbone.training
    assert not net.teacher("both").training
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1.0)
    method.loss(net(sights()), None, LABELS, ALONE, 0.0).total.backward()
    optimizer.step()
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert all(name.startswith("masks.") for name in moved)
    for specialist in net.names:
        assert any(name.startswith(f"masks.{branch_key(specialist)}.") for name in moved)


def test_each_mask_is_trained_by_its_own_specialist_alone():
    net, method = specialists(), Masks(kind="mst_masks", temperature=2.0)
    losses = method.losses(net(sights()))
    assert list(losses) == [f"{name}-{layer}" for name in ("both", "ears", "flow") for layer in LAYERS]
    losses["both-moments"].sum().backward()
    touched = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched
    assert all(name.startswith(f"masks.{branch_key('both-moments')}.") for name in touched)
    assert losses["flow-features"][2] == 0  # no flow, no word


def test_specialists_of_one_teacher_wear_one_mask_each():
    """Defect a of the released code: the second specialist ran through both masks."""
    net = specialists().eval()
    x, teacher = sights(), net.teacher("ears")
    said = net(x).beside
    for layer in LAYERS:
        alone = masked(
            teacher, look(teacher, x.inputs["audio"]), layer, net.masks[branch_key(f"ears-{layer}")]
        ).logits
        torch.testing.assert_close(said[f"ears-{layer}"].logits["verb"], alone["verb"])
    assert not torch.equal(said["ears-moments"].logits["verb"], said["ears-features"].logits["verb"])


def test_the_best_masks_are_kept_each_by_its_own_loss():
    net = specialists()
    names = list(net.names)
    net.keep(dict.fromkeys(names, 2.0))
    first = {name: value.clone() for name, value in net.masks.state_dict().items()}
    for parameter in net.masks.parameters():
        parameter.data += 1
    net.keep({name: 1.0 if name == names[0] else 3.0 for name in names})
    for name, value in net.kept.state_dict().items():
        newer = name.startswith(f"{branch_key(names[0])}.")
        assert torch.equal(value, net.masks.state_dict()[name] if newer else first[name])
    assert net.least.tolist() == [1.0, *[2.0] * (len(names) - 1)]
    x = sights()
    own = net.specialist(names[1])(x).logits["verb"]
    net.masks.load_state_dict(first)
    torch.testing.assert_close(own, net.eval()(x).beside[names[1]].logits["verb"])


@pytest.mark.parametrize("layer", LAYERS)
def test_a_mask_wide_open_is_the_teacher_and_a_shut_one_hears_nothing(layer):
    network = together().teacher("both").eval()
    mask = new_mask(network, layer, 6, 3)
    x = sights()
    for bias, expected in ((50.0, network(x).logits), (-50.0, None)):
        for part in mask.modules():
            if isinstance(part, (MomentMask, ChannelMask)):
                part.gate.weight.data.zero_()
                part.gate.bias.data.fill_(bias)
        said = masked(network, look(network, x), layer, mask).logits
        if expected is not None:
            torch.testing.assert_close(said["verb"], expected["verb"])
        else:
            full = [row for row in range(4) if row != 2]  # the flags still tell who lacks flow
            assert torch.allclose(said["verb"][full], said["verb"][:1].expand(3, -1), atol=1e-5)


@pytest.mark.parametrize("name", ["both-moments", "both-features", "ears-moments", "ears-features"])
def test_a_teacher_looks_at_a_clip_once(name):
    net = specialists().eval()
    specialist, x = net.specialist(name), sights()
    looks = []
    part = specialist.backbone.branch("rgb") if name.startswith("both") else specialist.backbone
    part.register_forward_hook(lambda *_: looks.append(1))
    seen = specialist(x if name.startswith("both") else x.inputs["audio"])
    assert looks == [1]
    torch.testing.assert_close(seen.logits["verb"], net(x).beside[name].logits["verb"])
    assert looks == [1, 1]  # once for both masks of a teacher
    torch.testing.assert_close(specialist.heads(seen.features)["verb"], seen.logits["verb"])


@pytest.mark.parametrize("kind", [MomentMask, ChannelMask])
def test_a_mask_only_ever_weakens(kind):
    torch.manual_seed(0)
    z = torch.randn(3, 5, 8) if kind is MomentMask else torch.randn(3, 8)
    found = kind(8, 6, 3)(z)
    assert found.shape == z.shape
    assert (found.abs() <= z.abs()).all()
    assert (found * z >= 0).all()


def test_masks_stay_small():
    wide = build(BACKBONE.model_copy(update={"width": 1024}), 8, CLASSES)
    for layer in LAYERS:
        count = sum(parameter.numel() for parameter in new_mask(wide, layer, 24, 3).parameters())
        assert count < 60_000  # the released code has 535 million


def lesson(seed: int = 3, absent: int | None = None) -> Lesson:
    generator = torch.Generator().manual_seed(seed)
    words = {}
    for number, name in enumerate(("a", "b", "c")):
        present = torch.ones(4, dtype=torch.bool)
        if absent is not None:
            present[absent] = False
        logits = {
            head: torch.randn(4, size, generator=generator).log_softmax(-1).requires_grad_()
            for head, size in CLASSES.items()
        }
        words[name] = Word(logits, present if number < 2 else torch.ones(4, dtype=torch.bool))
    return Lesson({}, torch.ones(4, dtype=torch.bool), {}, teachers=words)


def student(seed: int = 5) -> Output:
    generator = torch.Generator().manual_seed(seed)
    logits = {
        head: torch.randn(4, size, generator=generator).requires_grad_() for head, size in CLASSES.items()
    }
    return Output(torch.zeros(4, 8), torch.zeros(4, 1, 8), logits)


def routed(**changes) -> tuple[MST, torch.nn.Module]:
    torch.manual_seed(4)
    method = METHOD.model_copy(update=changes).routed(["a", "b", "c"], CLASSES)
    return method, method.companion(8, {})


def gradients(**changes):
    """Of the student, the gate and the teachers, by the loss with these weights."""
    method, gate = routed(**changes)
    output, taught = student(), lesson()
    method.loss(output, taught, LABELS, gate, 0.0).total.backward()
    of_teachers = [v.grad for word in taught.teachers.values() for v in word.logits.values()]
    return output.logits["verb"].grad, [p.grad for p in gate.parameters()], of_teachers


def test_the_gate_learns_and_no_teacher_does():
    _, gate, teachers = gradients()
    assert all(grad is not None and grad.any() for grad in gate)
    assert all(grad is None for grad in teachers)


def test_nothing_of_the_gate_leaks_into_the_student():
    none = {"gate_weight": 0.0, "balance_weight": 0.0}
    plain, _, _ = gradients(**none)
    pulled, _, _ = gradients(gate_weight=100.0, balance_weight=100.0)
    torch.testing.assert_close(plain, pulled)


def test_distillation_teaches_the_student_and_not_the_gate():
    student_grad, gate, _ = gradients(gate_weight=0.0, balance_weight=0.0)
    assert student_grad.any()
    assert all(grad is None or not grad.any() for grad in gate)


def test_the_gate_learns_to_pick_who_is_right():
    """Specialist a knows verb 0, b the others: what the student sees tells which."""
    method, gate = routed(gate_temperature=0.1, balance_weight=0.0)
    shown = {"verb": 4.0 * torch.eye(3)[[0, 1, 2, 0]], "noun": torch.zeros(4, 2)}
    truth = torch.tensor([0, 1, 2, 0])
    right, wrong = 5.0 * torch.eye(3)[truth], torch.zeros(4, 3)
    knows = (truth == 0)[:, None]
    words = {
        "a": Word(
            {"verb": torch.where(knows, right, wrong), "noun": torch.zeros(4, 2)}, torch.ones(4).bool()
        ),
        "b": Word(
            {"verb": torch.where(knows, wrong, right), "noun": torch.zeros(4, 2)}, torch.ones(4).bool()
        ),
        "c": Word({"verb": wrong, "noun": torch.zeros(4, 2)}, torch.ones(4).bool()),
    }
    taught = Lesson({}, torch.ones(4).bool(), {}, teachers=words)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.05)
    labels = {"verb": truth, "noun": torch.tensor([0, 1, 0, 1])}
    for _ in range(100):
        optimizer.zero_grad()
        method.loss(
            Output(torch.zeros(4, 8), torch.zeros(4, 1, 8), shown), taught, labels, gate, 0.0
        ).total.backward()
        optimizer.step()
    picked = gate_log_probs(gate, shown, torch.ones(4, 3).bool()).argmax(1)
    assert picked.tolist() == [0, 1, 1, 0]


def test_only_specialists_that_see_the_clip_are_picked():
    method, gate = routed(top_k=2)
    taught = lesson(absent=1)
    for word in list(taught.teachers.values())[:2]:
        for values in word.logits.values():
            values.data[1] = torch.nan
    losses = method.loss(student(), taught, LABELS, gate, 0.0)
    assert losses.total.isfinite()
    present = torch.tensor([[True, True, True], [False, False, True]])
    log_gate = gate_log_probs(gate, {h: v[:2] for h, v in student().logits.items()}, present)
    assert log_gate.exp()[1].tolist() == pytest.approx([0, 0, 1])
    assert top_k(log_gate.exp(), 2, present)[1].tolist() == [0, 0, 1]
    shares = {name: value.item() for name, value in losses.figures.items() if name.startswith("route/")}
    assert sum(shares.values()) == pytest.approx((2 + 1 + 2 + 2) / 4 / 2)


def test_the_gates_lesson_by_hand():
    errors = torch.tensor([[0.0, torch.log(torch.tensor(3.0))], [9.0, 9.0]])
    present = torch.tensor([[True, True], [False, False]])
    found = taught_gate(torch.full((2, 2), 0.5).log(), errors, present, 1.0)
    assert found.item() == pytest.approx(0.130812 / 2, abs=1e-5)  # KL((3/4, 1/4) ‖ even), over two clips


def test_the_gate_is_taught_at_any_small_temperature():
    """Where a specialist is absent the others' lesson is the same: −errors / γ may be as low as one likes."""
    errors, present = torch.tensor([[12.0, 15.0, 1.0]]), torch.tensor([[True, True, False]])
    log_gate = torch.tensor([[0.5, 0.5, 0.0]]).log()
    for gamma in (0.01, 1e-3, 1e-6):
        assert taught_gate(log_gate, errors, present, gamma).item() == pytest.approx(math.log(2))


def test_a_balanced_gate_costs_nothing():
    every = torch.ones(2, 2, dtype=torch.bool)
    assert balance(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), every).item() == pytest.approx(0, abs=1e-7)
    assert balance(torch.tensor([[0.9, 0.1]]), every[:1]).item() == pytest.approx(
        (0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)) / 2
    )
    assert balance(torch.zeros(0, 2), every[:0]).item() == 0


@pytest.mark.parametrize("apart", [10.0, 46.0, 80.0])
def test_a_gate_that_is_all_but_shut_can_open_again(apart: float):
    scores = torch.tensor([[apart, 0.0]], requires_grad=True)
    balance(scores.softmax(dim=1), torch.ones(1, 2, dtype=torch.bool)).backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[0.25, -0.25]]), rtol=1e-3, atol=0)


def test_a_specialist_of_half_of_the_clips_is_owed_its_share_of_those_alone():
    present = torch.tensor([[True, True], [True, False]])
    assert balance(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), present).item() == pytest.approx(0, abs=1e-7)
    assert (
        balance(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), present).item() > 0.01
    )  # even over the batch, not by clip
    nobody_hears = torch.tensor([[True, False], [True, False]])
    gate = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    loss = balance(gate, nobody_hears)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-7)
    assert torch.isfinite(gate.grad).all()


def test_mst_refuses_what_it_cannot_learn_from():
    with pytest.raises(ValueError, match="learns from specialists"):
        METHOD.companion(8, {})
    with pytest.raises(ValueError, match="there are 1"):
        METHOD.model_copy(update={"top_k": 2}).routed(["a"], CLASSES)
    method, gate = routed()
    with pytest.raises(ValueError, match="a lesson of specialists"):
        method.loss(student(), None, LABELS, gate, 0.0)
