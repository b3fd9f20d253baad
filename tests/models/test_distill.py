"""Every training method in the registry, then what each promises. A method needs an example here to pass."""

import math
from typing import Any, Literal, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from models import distill
from models.distill.dkd import DKD
from models.distill.hints import Hints
from models.distill.kd import KD
from models.distill.method import Hint, HintShape, Lesson, Method, NoHints, Taught, distillation, ground_truth
from models.distill.mst import MST
from models.distill.omnivorous import Omnivorous
from models.distill.rkd import RKD
from models.distill.supervised import Supervised
from models.network import Output, Word

TAUGHT = {
    "temperature": 2.0,
    "divergence": "forward_kl",
    "distillation_weight": 1.0,
    "ground_truth_weight": 0.5,
    "unlabelled_weight": 1.0,
    "head_weights": None,
}
KNOWN = KD(kind="kd", **TAUGHT)
APART = DKD(kind="dkd", non_target_weight=3.0, **TAUGHT)
RELATED = RKD(kind="rkd", distance_weight=25.0, angle_weight=50.0, **TAUGHT)
HINTED = Hints(
    kind="hints", hint_weight=0.5, **TAUGHT | {"distillation_weight": 0.0, "ground_truth_weight": 1.0}
)
ROUTED = MST(
    kind="mst",
    temperature=2.0,
    top_k=1,
    distillation_weight=1.0,
    balance_weight=1.0,
    gate_weight=1.0,
    gate_temperature=1.0,
    gate_width=4,
    head_weights=None,
)
EXAMPLES: list[Method] = [
    Supervised(kind="supervised", head_weights=None, label_smoothing=0.1),
    KNOWN,
    APART,
    RELATED,
    HINTED,
    ROUTED,
    Omnivorous(kind="omnivorous", teachers=["flow"], modality_dropout=0.5, head_weights=None),
]
ALONE = torch.nn.Module()
examples = pytest.mark.parametrize("method", EXAMPLES, ids=lambda method: method.kind)
LABELS = {"verb": torch.tensor([0, 1, 2]), "noun": torch.tensor([1, 0, 1])}


def student(seed: int = 0, dtype: torch.dtype = torch.float32) -> Output:
    generator = torch.Generator().manual_seed(seed)
    logits = {"verb": torch.randn(3, 4, generator=generator), "noun": torch.randn(3, 2, generator=generator)}
    leaves = {head: values.to(dtype).requires_grad_() for head, values in logits.items()}
    moments = torch.randn(3, 2, 5, generator=generator).to(dtype).requires_grad_()
    return Output(moments.mean(1), moments, leaves)


def lesson(seed: int = 1, present: tuple[bool, ...] = (True, True, True)) -> Lesson:
    logits = student(seed).logits
    log_probs = {head: values.detach().log_softmax(-1) for head, values in logits.items()}
    generator = torch.Generator().manual_seed(seed)
    hint = Hint(torch.randn(3, 2, 4, generator=generator), torch.tensor([0, 1, 0]), torch.tensor(present))
    words = {name: Word(log_probs, torch.tensor(present)) for name in ("flow", "audio")}
    return Lesson(log_probs, torch.tensor(present), {"flow": hint}, teachers=words)


def companion(method: Method) -> torch.nn.Module:
    torch.manual_seed(2)
    if isinstance(method, MST):
        method = method.routed(["flow", "audio"], {"verb": 4, "noun": 2})
    return method.companion(5, {"flow": HintShape(2, 4)})


def test_every_method_has_an_example():
    assert set(get_args(get_args(distill.Method)[0])) == {type(method) for method in EXAMPLES}


@examples
def test_a_loss_is_a_scalar_that_teaches_every_head_and_its_parts_are_for_curves(method):
    output = student()
    losses = method.loss(output, lesson(), LABELS, companion(method), 0.0)
    assert losses.total.shape == ()
    assert all(part.shape == () and not part.requires_grad for part in losses.parts.values())
    losses.total.backward()
    assert all(logits.grad.any() for logits in output.logits.values())


@examples
def test_half_precision_is_computed_in_single(method):
    half = method.loss(student(dtype=torch.bfloat16), lesson(), LABELS, companion(method), 0.0).total
    single = method.loss(student(), lesson(), LABELS, companion(method), 0.0).total
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, single, rtol=2e-2, atol=0)


@examples
def test_other_heads_are_refused(method):
    with pytest.raises(ValueError, match="labels"):
        method.loss(student(), lesson(), {"verb": LABELS["verb"]}, companion(method), 0.0)
    weighted = method.model_copy(update={"head_weights": {"verb": 1.0}})
    with pytest.raises(ValueError, match="head_weights"):
        weighted.loss(student(), lesson(), LABELS, ALONE, 0.0)


@examples
def test_params_are_read_by_kind_without_defaults(method):
    fields, adapter = method.model_dump(), TypeAdapter(distill.Method)
    assert adapter.validate_python(fields) == method
    with pytest.raises(ValidationError, match="extra"):
        adapter.validate_python({**fields, "tau": 3})
    for name in fields:
        with pytest.raises(ValidationError):
            adapter.validate_python({key: value for key, value in fields.items() if key != name})


def test_head_weights_multiply_their_heads():
    plain, weighted = (
        Supervised(kind="supervised", head_weights=weights, label_smoothing=0.0)
        .loss(student(), None, LABELS, ALONE, 0.0)
        .total
        for weights in (None, {"verb": 3.0, "noun": 3.0})
    )
    torch.testing.assert_close(weighted, 3 * plain)


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.1, 50))
@settings(deadline=None)
def test_a_divergence_is_never_negative_and_zero_for_the_teacher_itself(seed, temperature):
    taught = lesson(seed)
    assert distillation(student(seed + 1).logits, taught, temperature) > -1e-6 * temperature**2
    itself = {head: log_probs + 3.0 for head, log_probs in taught.log_probs.items()}
    assert distillation(itself, taught, temperature).item() == pytest.approx(0, abs=1e-6 * temperature**2)


def test_a_clip_without_labels_is_taught_at_its_own_weight_and_has_no_cross_entropy():
    some = {head: torch.tensor([values[0], -1, -1]) for head, values in LABELS.items()}
    method = KNOWN.model_copy(
        update={"unlabelled_weight": 0.25, "distillation_weight": {"verb": 1.0, "noun": 0.0}}
    )
    losses = method.loss(student(), lesson(present=(True, True, False)), some, ALONE, 0.0)

    def first(*clips):
        keep = torch.tensor([clip in clips for clip in range(3)])
        return distillation(
            student().logits,
            lesson()._replace(present=keep),
            2.0,
            weights={"verb": torch.tensor([1.0, 0.25, 9.0]), "noun": torch.tensor([0.0, 0.25, 9.0])},
        )

    torch.testing.assert_close(losses.parts["distillation"], first(0, 1).detach())
    of_first = {head: values[:1] for head, values in LABELS.items()}
    alone = ground_truth({head: values[:1] for head, values in student().logits.items()}, of_first, None)
    torch.testing.assert_close(losses.parts["ground_truth"], 0.5 * alone.detach() / 3)


def test_a_divergence_by_hand():
    taught = Lesson({"action": torch.tensor([[0.75, 0.25]]).log()}, torch.tensor([True]), {})
    found = distillation({"action": torch.zeros(1, 2)}, taught, 1.0)
    assert found.item() == pytest.approx(0.130812, abs=1e-5)  # 3/4 log(3/2) + 1/4 log(1/2)


def test_clips_without_a_teacher_learn_from_labels_alone():
    taught = lesson(present=(True, False, True))
    for log_probs in taught.log_probs.values():
        log_probs[1] = torch.nan
    output = student()
    distillation(output.logits, taught, 2.0).backward()
    for logits in output.logits.values():
        assert logits.grad.isfinite().all()
        assert not logits.grad[1].any()
        assert logits.grad[0].any()
    assert KNOWN.loss(student(), taught, LABELS, ALONE, 0.0).total.isfinite()


def test_a_labelled_clip_that_no_teacher_saw_is_not_lost_where_the_lesson_has_all_the_weight():
    output, method = (
        student(),
        KNOWN.model_copy(update={"distillation_weight": 1.0, "ground_truth_weight": 0.0}),
    )
    total = method.loss(output, lesson(present=(False, True, True)), LABELS, ALONE, 0.0).total
    total.backward()
    absent, labels = student(), {head: values[:1] for head, values in LABELS.items()}
    first = {head: values[:1] for head, values in absent.logits.items()}
    (ground_truth(first, labels, None) / 3).backward()
    for head, logits in output.logits.items():
        torch.testing.assert_close(logits.grad[0], absent.logits[head].grad[0])


def test_a_clip_weighs_the_same_whoever_is_absent_beside_it():
    gradients = []
    for present in [(True, True, True), (True, False, False)]:
        output = student()
        distillation(output.logits, lesson(present=present), 2.0).backward()
        gradients.append(output.logits["verb"].grad[0])
    torch.testing.assert_close(*gradients)


def test_certain_teachers_and_certain_students_stay_finite():
    taught = Lesson({"action": torch.tensor([[0.0, -1e4]])}, torch.tensor([True]), {})
    logits = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    loss = distillation({"action": logits}, taught, 0.1)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_kd_refuses_what_it_cannot_learn_from():
    with pytest.raises(ValueError, match="a lesson is needed"):
        KNOWN.loss(student(), None, LABELS, ALONE, 0.0)
    for name in ("temperature", "divergence", "distillation_weight", "unlabelled_weight"):
        with pytest.raises(ValueError, match="must be settled"):
            KNOWN.model_copy(update={name: "auto"}).loss(student(), lesson(), LABELS, ALONE, 0.0)
    with pytest.raises(ValueError, match="the lesson"):
        KNOWN.loss(
            student(), Lesson({"verb": torch.zeros(3, 4)}, torch.ones(3).bool(), {}), LABELS, ALONE, 0.0
        )
    for shape in [(3, 1), (1, 4)]:  # both would broadcast
        taught = lesson()
        taught.log_probs["verb"] = torch.zeros(shape)
        with pytest.raises(ValueError, match="disagree"):
            KNOWN.loss(student(), taught, LABELS, ALONE, 0.0)
    with pytest.raises(ValueError, match="disagree"):
        KNOWN.loss(student(), lesson()._replace(present=torch.tensor([True])), LABELS, ALONE, 0.0)


def test_hints_by_hand():
    """Two clips of two networks: translations of weight 1 and 2 without bias, one clip unseen."""
    translations = HINTED.companion(1, {"flow": HintShape(2, 1)})
    for factor, linear in enumerate(translations.get_submodule("flow_hints").children(), start=1):
        linear.weight.data.fill_(factor)
        linear.bias.data.zero_()
    moments = torch.tensor([[[1.0], [2.0]], [[1.0], [2.0]], [[5.0], [5.0]]])
    hint = Hint(torch.zeros(3, 2, 1), torch.tensor([0, 1, 0]), torch.tensor([True, True, False]))
    output, taught = student()._replace(moments=moments), lesson()._replace(hints={"flow": hint})
    found = HINTED.loss(output, taught, LABELS, translations, 0.0).parts["hints"].item()
    # six moments, those of the unseen clip count as zero; λ_H is one half
    assert found == pytest.approx(0.5 * ((1 + 4) + (4 + 16)) / 6)


def test_a_hint_reaches_the_student_and_the_translation_of_its_network_alone():
    output, taught, translations = student(), lesson(), companion(HINTED)
    hint = taught.hints["flow"]._replace(member=torch.zeros(3, dtype=torch.int64))
    loss = HINTED.loss(output, taught._replace(hints={"flow": hint}), LABELS, translations, 0.0).total
    loss.backward()
    assert output.moments.grad.any()
    first, second = translations.get_submodule("flow_hints").children()
    assert first.weight.grad.any()
    assert second.weight.grad is None or not second.weight.grad.any()


def test_hints_need_a_teacher_that_gives_them_and_the_same_moments():
    with pytest.raises(ValueError, match="hints: true"):
        HINTED.companion(5, {})
    hint = lesson().hints["flow"]._replace(moments=torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="moments"):
        HINTED.loss(student(), lesson()._replace(hints={"flow": hint}), LABELS, companion(HINTED), 0.0)


def test_heads_may_be_taught_and_told_by_weights_of_their_own():
    weights = {
        "distillation_weight": {"verb": 1.0, "noun": 0.0},
        "ground_truth_weight": {"verb": 0.0, "noun": 1.0},
    }
    apart = KNOWN.model_copy(update=weights).loss(student(), lesson(), LABELS, ALONE, 0.0)
    output, taught = student(), lesson()
    verb = distillation(
        {"verb": output.logits["verb"]}, taught._replace(log_probs={"verb": taught.log_probs["verb"]}), 2.0
    )
    noun = torch.nn.functional.cross_entropy(output.logits["noun"], LABELS["noun"])
    torch.testing.assert_close(apart.total, (verb + noun) / 2)
    with pytest.raises(ValueError, match="distillation_weight"):
        KNOWN.model_copy(update={"distillation_weight": {"verb": 1.0}}).loss(
            student(), lesson(), LABELS, ALONE, 0.0
        )


@examples
def test_no_gradient_reaches_the_lesson(method):
    taught = lesson()
    for log_probs in taught.log_probs.values():
        log_probs.requires_grad_()
    taught.hints["flow"].moments.requires_grad_()
    method.loss(student(), taught, LABELS, companion(method), 0.0).total.backward()
    assert all(log_probs.grad is None for log_probs in taught.log_probs.values())
    assert taught.hints["flow"].moments.grad is None


@pytest.mark.parametrize(
    "method", [each for each in EXAMPLES if isinstance(each, Taught)], ids=lambda method: method.kind
)
def test_clips_without_a_teacher_learn_from_labels_alone_by_every_method(method):
    taught, output, layers = lesson(present=(True, True, False)), student(), companion(method)
    for log_probs in taught.log_probs.values():
        log_probs[2] = torch.nan
    unlabelled = {head: torch.tensor([*values[:2].tolist(), -1]) for head, values in LABELS.items()}
    method.loss(output, taught, unlabelled, layers, 0.0).total.backward()
    for values in (*output.logits.values(), *([output.moments] if method.needs_hints else [])):
        assert values.grad is None or values.grad.isfinite().all()
        assert values.grad is None or not values.grad[2].any()


@pytest.mark.parametrize("shape", ["scalar", "column"])
def test_a_comparison_that_is_not_of_each_clip_is_refused(shape: str):
    class Wrong(KD):
        def compare(self, *arguments: Any) -> torch.Tensor:
            found = super().compare(*arguments)
            return found.mean() if shape == "scalar" else found[:, None]

    method = Wrong(kind="kd", **TAUGHT)
    with pytest.raises(ValueError, match=r"compare gave .*; one value a clip is meant, \(3,\)"):
        method.loss(student(), lesson(), LABELS, companion(method), 0.0)


def test_a_class_that_can_be_no_method_is_named_with_its_file():
    class Lossless(Method):
        kind: Literal["lossless"]

    class Misnamed(KD):
        kind: Literal["kd"]

    Lossless.__module__, Misnamed.__module__ = "models.distill.lossless", "models.distill.zscore"
    with pytest.raises(TypeError, match=r"^models/distill/lossless\.py: Lossless lacks loss$"):
        distill.refuse_misfit(Lossless)
    with pytest.raises(TypeError, match=r'zscore\.py: Misnamed must have `kind: Literal\["zscore"\]`'):
        distill.refuse_misfit(Misnamed)


def test_hints_that_nobody_asked_for_refuse():
    """Not by being empty, which a sum over them does not notice."""
    for look in (list, len, dict, lambda hints: hints.values(), lambda hints: hints["flow"], bool):
        with pytest.raises(ValueError, match="did not ask for them"):
            look(NoHints())


def test_the_curriculum_turns_from_reverse_to_forward_at_half_time():
    turning, reverse, forward = (
        KNOWN.model_copy(update={"divergence": name})
        for name in ("reverse_then_forward", "reverse_kl", "forward_kl")
    )

    def total(method: Method, progress: float) -> float:
        return method.loss(student(), lesson(), LABELS, ALONE, progress).total.item()

    for progress in (0.0, 0.49):
        assert total(turning, progress) == total(reverse, progress) != total(forward, progress)
    for progress in (0.5, 0.99):
        assert total(turning, progress) == total(forward, progress) != total(reverse, progress)


def test_smoothed_labels_by_hand():
    """Two classes, log-odds log 3: 0.9 on the label of 3/4 or 1/4, and 0.1 shared evenly."""
    method = Supervised(kind="supervised", head_weights=None, label_smoothing=0.1)
    output = student()._replace(logits={"action": torch.tensor([[3.0, 1.0]]).log()})
    found = method.loss(output, None, {"action": torch.tensor([0])}, ALONE, 0.0).total.item()
    assert found == pytest.approx(-0.95 * math.log(0.75) - 0.05 * math.log(0.25))


def test_hints_of_one_rgb_network_and_no_mix_are_fitnets():
    """Equation 3 of FitNets, half the squared distance summed, up to the constant 2 / width, beside the labels."""
    output, layers = student(), HINTED.companion(5, {"rgb": HintShape(1, 4)})
    hint = Hint(torch.randn(3, 2, 4), torch.zeros(3, dtype=torch.int64), torch.ones(3).bool())
    taught = lesson()._replace(hints={"rgb": hint})
    found = HINTED.loss(output, taught, LABELS, layers, 0.0)
    (regressor,) = layers.get_submodule("rgb_hints").children()
    truth = [torch.nn.functional.cross_entropy(output.logits[head], LABELS[head]) for head in LABELS]
    hinted = torch.nn.functional.mse_loss(regressor(output.moments), hint.moments)
    torch.testing.assert_close(found.total, torch.stack(truth).mean() + 0.5 * hinted)


def test_dkd_by_hand():
    """The label's class 1/2 against 1/4; the others among themselves 1/2, 1/2 against 2/3, 1/3."""
    method = APART.model_copy(update={"temperature": 1.0, "ground_truth_weight": 0.0})
    taught = Lesson({"action": torch.tensor([[0.25, 0.5, 0.25]]).log()}, torch.tensor([True]), {})
    output = student()._replace(logits={"action": torch.tensor([[0.5, 0.25, 0.25]]).log() + 7})
    found = method.loss(output, taught, {"action": torch.tensor([1])}, ALONE, 0.0).total.item()
    target = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    others = 0.5 * math.log(3 / 4) + 0.5 * math.log(3 / 2)
    assert found == pytest.approx(target + 3 * others)


def test_dkd_with_the_teachers_own_weight_of_the_others_is_kd():
    """KL = TCKD + (1 − q_y) NCKD (equation 6), so a β of 1 − q_y gives KD back, clip by clip."""
    taught, output, labels = lesson(), student(), {"verb": LABELS["verb"]}
    for row, label in enumerate(labels["verb"].tolist()):
        one = Lesson({"verb": taught.log_probs["verb"][row : row + 1]}, torch.tensor([True]), {})
        said = output._replace(logits={"verb": output.logits["verb"][row : row + 1]})
        softened = (one.log_probs["verb"][0] / 2).softmax(-1)
        method = APART.model_copy(update={"non_target_weight": 1 - softened[label].item()})
        told = {"verb": torch.tensor([label])}
        torch.testing.assert_close(
            method.loss(said, one, told, ALONE, 0.0).total, KNOWN.loss(said, one, told, ALONE, 0.0).total
        )


def test_dkd_of_two_classes_has_no_others():
    taught, output = lesson(), student()
    found = [
        APART.model_copy(update={"non_target_weight": weight})
        .loss(
            output._replace(logits={"noun": output.logits["noun"]}),
            taught._replace(log_probs={"noun": taught.log_probs["noun"]}),
            {"noun": LABELS["noun"]},
            ALONE,
            0.0,
        )
        .total
        for weight in (0.0, 8.0)
    ]
    torch.testing.assert_close(*found)


def related(student_clips, teacher_clips, member, present=None):
    """The parts of RKD's loss for clips given by their embeddings, each in two moments that average to them."""
    clips = torch.tensor(student_clips, dtype=torch.float64)
    there = torch.ones(len(member)).bool() if present is None else torch.tensor(present)
    theirs = torch.tensor(teacher_clips, dtype=torch.float64)
    hint = Hint(torch.stack([theirs - 1, theirs + 1], 1), torch.tensor(member), there)
    logits = {"action": torch.zeros(len(member), 2, dtype=torch.float64)}
    output = Output(clips, torch.stack([clips + 2, clips - 2], 1), logits)
    taught = Lesson(logits, there, {"flow": hint})
    losses = RELATED.loss(output, taught, {"action": torch.zeros(len(member)).long()}, ALONE, 0.0)
    return losses.parts["distances"].item() / 25, losses.parts["angles"].item() / 50


def test_relations_by_hand():
    """Student on a line at 0, 1, 3; teacher a triangle of sides 3, 4, 5."""
    distance, angle = related([[0.0], [1.0], [3.0]], [[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]], [0, 0, 0])
    # student's distances 1, 3, 2 of mean 2; teacher's 3, 5, 4 of mean 4
    gaps = [3 / 4 - 1 / 2, 5 / 4 - 3 / 2, 4 / 4 - 2 / 2]
    assert distance == pytest.approx(sum(gap**2 / 2 for gap in gaps) / 3)
    # cosines at the clips: student 1, −1, 1; teacher 3/5, 0, 4/5
    gaps = [2 / 5, 1, 1 / 5]
    assert angle == pytest.approx(sum(gap**2 / 2 for gap in gaps) / 3)


def test_relations_do_not_mind_how_features_are_turned_moved_and_scaled():
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    found = related((5 * clips @ turn + 2).tolist(), clips.tolist(), [0] * 6)
    assert found == pytest.approx((0, 0), abs=1e-12)


def test_only_clips_of_one_network_are_related_and_lonely_ones_count_as_zero():
    student_clips, teacher_clips = [[0.0], [1.0], [3.0]], [[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]]
    whole = related(student_clips, teacher_clips, [0, 0, 0])
    doubled = related(student_clips * 2, teacher_clips * 2, [0, 0, 0, 1, 1, 1])
    assert doubled == pytest.approx(whole)
    half = related(student_clips * 2, teacher_clips * 2, [0] * 6, [True] * 3 + [False] * 3)
    assert half == pytest.approx([part / 2 for part in whole])
    assert related(student_clips, teacher_clips, [0, 1, 2]) == (0, 0)
    assert related(student_clips, teacher_clips, [0, 0, 1])[1] == 0  # an angle needs three


def test_clips_in_the_same_place_have_finite_relations():
    output = student()
    moments = torch.zeros(3, 2, 5, requires_grad=True)
    RELATED.loss(output._replace(moments=moments), lesson(), LABELS, ALONE, 0.0).total.backward()
    assert moments.grad.isfinite().all()


def test_two_clips_alike_do_not_drown_the_others():
    """As two black ones among others: between them there is no angle, and its gradient would be as good as infinite."""
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(5, 3, generator=generator)
    teacher = torch.randn(5, 4, generator=generator)

    def gradient(clips: torch.Tensor) -> torch.Tensor:
        moments = clips[:, None].clone().requires_grad_()
        hint = Hint(teacher[:, None], torch.zeros(5).long(), torch.ones(5).bool())
        logits = {"action": torch.zeros(5, 2)}
        taught = Lesson(logits, torch.ones(5).bool(), {"flow": hint})
        output = Output(clips, moments, logits)
        RELATED.loss(output, taught, {"action": torch.zeros(5).long()}, ALONE, 0.0).total.backward()
        return moments.grad

    alike = clips.clone()
    alike[1] = alike[0]
    assert gradient(alike).norm() < 10 * gradient(clips).norm()


@pytest.mark.parametrize("method", [APART, RELATED], ids=lambda method: method.kind)
def test_gradients_are_those_of_the_loss(method):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    moments = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    hint = Hint(
        torch.randn(5, 2, 4, generator=generator, dtype=torch.float64),
        torch.tensor([0, 0, 0, 1, 1]),
        torch.ones(5).bool(),
    )
    log_probs = torch.randn(5, 4, generator=generator, dtype=torch.float64).log_softmax(-1)
    taught = Lesson({"verb": log_probs}, torch.ones(5).bool(), {"flow": hint})
    labels = {"verb": torch.tensor([0, 1, 2, 3, 0])}

    def loss(logits: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
        output = Output(moments.mean(1), moments, {"verb": logits})
        return method.loss(output, taught, labels, ALONE, 0.0).total

    assert torch.autograd.gradcheck(loss, (logits, moments))


def test_relations_need_hints_of_the_same_clips():
    with pytest.raises(ValueError, match="hints: true"):
        RELATED.companion(5, {})
    hint = lesson().hints["flow"]._replace(moments=torch.zeros(2, 2, 4))
    with pytest.raises(ValueError, match="hints are of 2 clips"):
        RELATED.loss(student(), lesson()._replace(hints={"flow": hint}), LABELS, ALONE, 0.0)
