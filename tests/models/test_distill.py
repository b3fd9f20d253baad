"""Every training method in the registry, then what each promises. A method needs an example here to pass."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from models import distill
from models.distill.hints import Hints
from models.distill.kd import KD
from models.distill.method import Hint, HintShape, Lesson, Method, distillation, ground_truth
from models.distill.supervised import Supervised
from models.network import Output

KNOWN = KD(
    kind="kd",
    temperature=2.0,
    distillation_weight=1.0,
    ground_truth_weight=0.5,
    unlabelled_weight=1.0,
    head_weights=None,
)
HINTED = Hints(
    kind="hints",
    temperature=2.0,
    distillation_weight=0.0,
    ground_truth_weight=1.0,
    unlabelled_weight=0.0,
    head_weights=None,
    hint_weight=0.5,
)
EXAMPLES: list[Method] = [Supervised(kind="supervised", head_weights=None), KNOWN, HINTED]
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
    return Lesson(log_probs, torch.tensor(present), {"flow": hint})


def companion(method: Method) -> torch.nn.Module:
    torch.manual_seed(2)
    return method.companion(5, {"flow": HintShape(2, 4)})


def test_every_method_has_an_example():
    assert set(get_args(get_args(distill.Method)[0])) == {type(method) for method in EXAMPLES}


@examples
def test_a_loss_is_a_scalar_that_teaches_every_head_and_its_parts_are_for_curves(method):
    output = student()
    losses = method.loss(output, lesson(), LABELS, companion(method))
    assert losses.total.shape == ()
    assert all(part.shape == () and not part.requires_grad for part in losses.parts.values())
    losses.total.backward()
    assert all(logits.grad.any() for logits in output.logits.values())


@examples
def test_half_precision_is_computed_in_single(method):
    half = method.loss(student(dtype=torch.bfloat16), lesson(), LABELS, companion(method)).total
    single = method.loss(student(), lesson(), LABELS, companion(method)).total
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, single, rtol=2e-2, atol=0)


@examples
def test_other_heads_are_refused(method):
    with pytest.raises(ValueError, match="labels"):
        method.loss(student(), lesson(), {"verb": LABELS["verb"]}, companion(method))
    weighted = method.model_copy(update={"head_weights": {"verb": 1.0}})
    with pytest.raises(ValueError, match="head_weights"):
        weighted.loss(student(), lesson(), LABELS, ALONE)


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
        Supervised(kind="supervised", head_weights=weights).loss(student(), None, LABELS, ALONE).total
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
    losses = method.loss(student(), lesson(present=(True, True, False)), some, ALONE)

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
    assert KNOWN.loss(student(), taught, LABELS, ALONE).total.isfinite()


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
        KNOWN.loss(student(), None, LABELS, ALONE)
    with pytest.raises(ValueError, match="must be settled"):
        KNOWN.model_copy(update={"temperature": "auto"}).loss(student(), lesson(), LABELS, ALONE)
    with pytest.raises(ValueError, match="the lesson"):
        KNOWN.loss(student(), Lesson({"verb": torch.zeros(3, 4)}, torch.ones(3).bool(), {}), LABELS, ALONE)
    for shape in [(3, 1), (1, 4)]:  # both would broadcast
        taught = lesson()
        taught.log_probs["verb"] = torch.zeros(shape)
        with pytest.raises(ValueError, match="disagree"):
            KNOWN.loss(student(), taught, LABELS, ALONE)
    with pytest.raises(ValueError, match="disagree"):
        KNOWN.loss(student(), lesson()._replace(present=torch.tensor([True])), LABELS, ALONE)


def test_hints_by_hand():
    """Two clips of two networks: translations of weight 1 and 2 without bias, one clip unseen."""
    translations = HINTED.companion(1, {"flow": HintShape(2, 1)})
    for factor, linear in enumerate(translations.get_submodule("flow_hints").children(), start=1):
        linear.weight.data.fill_(factor)
        linear.bias.data.zero_()
    moments = torch.tensor([[[1.0], [2.0]], [[1.0], [2.0]], [[5.0], [5.0]]])
    hint = Hint(torch.zeros(3, 2, 1), torch.tensor([0, 1, 0]), torch.tensor([True, True, False]))
    output, taught = student()._replace(moments=moments), lesson()._replace(hints={"flow": hint})
    found = HINTED.loss(output, taught, LABELS, translations).parts["hints"].item()
    # six moments, those of the unseen clip count as zero; λ_H is one half
    assert found == pytest.approx(0.5 * ((1 + 4) + (4 + 16)) / 6)


def test_a_hint_reaches_the_student_and_the_translation_of_its_network_alone():
    output, taught, translations = student(), lesson(), companion(HINTED)
    hint = taught.hints["flow"]._replace(member=torch.zeros(3, dtype=torch.int64))
    loss = HINTED.loss(output, taught._replace(hints={"flow": hint}), LABELS, translations).total
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
        HINTED.loss(student(), lesson()._replace(hints={"flow": hint}), LABELS, companion(HINTED))


def test_heads_may_be_taught_and_told_by_weights_of_their_own():
    weights = {
        "distillation_weight": {"verb": 1.0, "noun": 0.0},
        "ground_truth_weight": {"verb": 0.0, "noun": 1.0},
    }
    apart = KNOWN.model_copy(update=weights).loss(student(), lesson(), LABELS, ALONE)
    output, taught = student(), lesson()
    verb = distillation(
        {"verb": output.logits["verb"]}, taught._replace(log_probs={"verb": taught.log_probs["verb"]}), 2.0
    )
    noun = torch.nn.functional.cross_entropy(output.logits["noun"], LABELS["noun"])
    torch.testing.assert_close(apart.total, (verb + noun) / 2)
    with pytest.raises(ValueError, match="distillation_weight"):
        KNOWN.model_copy(update={"distillation_weight": {"verb": 1.0}}).loss(
            student(), lesson(), LABELS, ALONE
        )
