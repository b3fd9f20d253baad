"""Ensembles, losses, calibration and accuracy against values of the papers' released code.

The values were computed in float64 with github.com/gorjanradevski/multimodal-distillation at commit 5444c66, those of
`mst` with the code of MST-Distill (arXiv 2507.07015) at commit 093b2fe.
They are read, never written; a missing key fails.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.calibration import ece
from models.distill.divergences import Divergence, divergence
from models.distill.kd import KD
from models.distill.method import Lesson, distillation
from models.distill.mst import Joint, balance, mean_divergence, top_k
from models.ensemble import cross_entropies, data_set_weights, mix, weights
from models.metrics import score, score_action
from models.network import Output, Word

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))
CLOSE = {"rtol": 1e-6, "atol": 1e-6}  # the file holds eight decimals


def numbers(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def by_head(values: dict[str, Any]) -> dict[str, Tensor]:
    return {head: numbers(of_head) for head, of_head in values.items()}


@pytest.mark.parametrize("case", range(len(GOLDEN["teacher_ensemble"]["cases"])))
def test_ensemble_weights_and_targets(case: int):
    golden = GOLDEN["teacher_ensemble"]
    expected = golden["cases"][case]
    logits, labels = numbers(golden["teacher_logits"]), numbers(golden["labels"]).long()
    losses, present = cross_entropies(logits, labels), torch.ones(logits.shape[:2], dtype=torch.bool)
    temperature = expected["weights_temperature"]

    per_sample = weights("per_sample", losses, temperature, present)
    torch.testing.assert_close(per_sample, numbers(expected["per_sample_weights"]), **CLOSE)
    data_set = data_set_weights(losses, temperature, present)
    torch.testing.assert_close(data_set, numbers(expected["dataset_weights"]), **CLOSE)
    for kind, name in [("per_sample", "per_sample"), ("data_set", "dataset"), ("uniform", "uniform")]:
        target = mix(logits, weights(kind, losses, temperature, present), "logits")
        expected_target = numbers(expected[f"{name}_target"]).log_softmax(-1)
        torch.testing.assert_close(target, expected_target, **CLOSE)


@pytest.mark.parametrize("case", GOLDEN["distillation_loss"]["cases"])
def test_distillation_losses(case: dict[str, Any]):
    golden = GOLDEN["distillation_loss"]
    numbers_of_case = ("temperature", "distillation_weight", "ground_truth_weight", "head_weights")
    method = KD(
        kind="kd",
        divergence="forward_kl",
        unlabelled_weight=0.0,
        **{name: case[name] for name in numbers_of_case},
    )
    student = Output(torch.zeros(0), torch.zeros(0), by_head(golden["student"]))
    teachings = {head: logits.log_softmax(-1) for head, logits in by_head(golden["teacher"]).items()}
    labels = {head: values.long() for head, values in by_head(golden["labels"]).items()}
    clips = len(labels["verb"])

    losses = method.loss(
        student, Lesson(teachings, torch.ones(clips, dtype=torch.bool), {}), labels, nn.Module(), 0.0
    )

    assert losses.parts["distillation"].item() == pytest.approx(
        case["distillation_weight"] * case["distillation_loss"], abs=1e-6
    )
    assert losses.parts["ground_truth"].item() == pytest.approx(
        case["ground_truth_weight"] * case["ground_truth_loss"], abs=1e-6
    )
    assert losses.total.item() == pytest.approx(case["total"], abs=1e-6)


def test_members_that_teach_each_other_pair_by_pair():
    """MST-Distill's stage 1: Σ CE, and KL over ordered pairs, which is Jeffreys over pairs."""
    golden = GOLDEN["mst"]
    members = [numbers(golden[name]) for name in ("fused", "auxiliary", "student")]
    labels, temperature = numbers(golden["labels"]).long(), golden["temperature"]
    present = torch.ones(len(labels), dtype=torch.bool)
    truth = sum(nn.functional.cross_entropy(logits, labels) for logits in members)

    def compared(kind: Divergence, one: Tensor, other: Tensor) -> Tensor:
        lesson = Lesson({"action": one.log_softmax(-1)}, present, {})
        return distillation(
            {"action": other}, lesson, temperature, compare=lambda q, p, head: divergence(kind, q, p)
        )

    pairs = list(itertools.combinations(members, 2))
    both_ways = sum(compared(kind, *pair) for pair in pairs for kind in ("forward_kl", "reverse_kl"))
    jeffreys = sum(compared("jeffreys", *pair) for pair in pairs)
    assert (truth + both_ways).item() == pytest.approx(golden["stage1_total"], abs=1e-6)
    assert (truth + jeffreys).item() == pytest.approx(golden["stage1_total"], abs=1e-6)


@pytest.mark.parametrize("case", GOLDEN["ece"], ids=lambda case: f"{case['bins']} bins")
def test_calibration_error(case: dict[str, Any]):
    probs, labels = numbers(case["logits"]).softmax(-1), numbers(case["labels"]).long()
    assert ece(probs, labels, case["bins"]) == pytest.approx(case["ece"], abs=1e-7)


def test_verb_noun_and_action_accuracy():
    golden = GOLDEN["verb_noun_action_accuracy"]
    logits = {head: values.mean(dim=1) for head, values in by_head(golden["view_logits"]).items()}
    labels = {head: values.long() for head, values in by_head(golden["labels"]).items()}
    for head, values in logits.items():
        accuracy = score(values, labels[head]).top1.double().mean().item()
        assert 100 * accuracy == pytest.approx(golden["percent"][f"{head}_acc"])
    accuracy = score_action(logits, labels).top1.double().mean().item()
    assert 100 * accuracy == pytest.approx(golden["percent"]["action_acc"])


def test_mst_joint_training():
    golden = GOLDEN["mst"]
    student, fused, auxiliary = (
        {"action": numbers(golden[name])} for name in ("student", "fused", "auxiliary")
    )
    everywhere = torch.ones(len(golden["labels"]), dtype=torch.bool)
    beside = {"fused": Word(fused, everywhere), "auxiliary": Word(auxiliary, everywhere)}
    output = Output(torch.zeros(len(everywhere), 1), torch.zeros(0), student, beside)
    method = Joint(kind="mst_joint", temperature=golden["temperature"])
    losses = method.loss(output, None, {"action": numbers(golden["labels"]).long()}, nn.Module(), 0.0)
    assert losses.total.item() == pytest.approx(golden["stage1_total"], abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_mst_distillation_from_the_picked_specialists(k: int):
    golden = GOLDEN["mst"]
    gate, expected = numbers(golden["gate"]), golden["top_k"][str(k)]
    student = {"action": numbers(golden["student"])}
    apart = torch.stack(
        [
            mean_divergence({"action": said}, student, golden["temperature"])
            for said in numbers(golden["specialised_teacher_logits"])
        ],
        dim=1,
    )
    picked = top_k(gate, k, torch.ones_like(gate, dtype=torch.bool))
    chosen = torch.zeros_like(gate).scatter(1, numbers(expected["chosen"]).long(), 1.0)
    torch.testing.assert_close(picked, chosen)
    assert (picked / k * apart).sum(dim=1).mean().item() == pytest.approx(expected["loss"], abs=1e-6)


def test_mst_load_balance():
    golden = GOLDEN["mst"]
    gate = numbers(golden["gate"])
    assert balance(gate, torch.ones_like(gate, dtype=torch.bool)).item() == pytest.approx(
        golden["load_balance_kl_as_released"], abs=1e-7
    )


def test_the_golden_file_is_whole():
    assert {name: len(GOLDEN[name]["cases"]) for name in ("teacher_ensemble", "distillation_loss")} == {
        "teacher_ensemble": 3,
        "distillation_loss": 9,
    }
    assert [case["bins"] for case in GOLDEN["ece"]] == [10, 15]
