"""How `auto` is settled: which students are tried, in which order, and what each head takes from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tasks.clips import Clip
from tasks.distill import _settle
from tasks.params import Params, Training, parse
from tasks.teach import Teachings

ROOT = Path(__file__).parents[2]
HEADS = ("verb", "noun")


@dataclass(frozen=True)
class Scripted:
    """A learner whose trainings take no time: NLL of a head as written down for its method."""

    params: Params
    training: Training
    method: Any
    nlls: Any
    tried: list[Any]
    name: str = "student"

    def train(self, clips, lessons, seed, member, training):
        assert training.epochs == self.params.search.epochs
        self.tried.append(self.method)
        return None, []

    def finish(self, networks):
        nlls = self.nlls(self.method)
        return None, {"action": {"nll": sum(nlls.values())}} | {head: {"nll": nlls[head]} for head in nlls}


def settle(nlls, **method):
    document = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    numbers = {
        "distillation_weight": {"verb": 0.5, "noun": 0.0},
        "ground_truth_weight": 0.5,
        "unlabelled_weight": 0.0,
    }
    document["students"]["student"]["method"] |= numbers | method
    document["search"] |= {
        "temperature": [1.0, 3.0],
        "distillation_weight": [0.0, 0.5, 1.0],
        "divergence": ["forward_kl", "reverse_kl", "reverse_then_forward"],
    }
    params = parse(yaml.safe_dump(document), Path("params.yaml"))
    student = params.students["student"]
    learner = Scripted(params, student.training, student.method, nlls, [])
    nobody = {head: np.zeros((0, 1, size), np.float32) for head, size in params.class_counts.items()}
    heard = {head: np.zeros((1, size), np.float32) for head, size in params.class_counts.items()}
    bank = {"rgb": Teachings(nobody, np.zeros(0, bool), heard, np.ones(1, bool), None)}
    return learner, bank, student


@pytest.fixture(autouse=True)
def no_lesson(monkeypatch):
    """What the lesson says does not matter to a scripted training."""
    monkeypatch.setattr("tasks.distill._lesson", lambda *_: None)


def settled(nlls, clips=(), **method):
    learner, bank, student = settle(nlls, **method)
    found = _settle(learner, student, bank, [], list(clips), [], seed=0)  # type: ignore[arg-type]
    return found.method, learner.tried


def by_temperature_weight_and_divergence(method):
    """Likeliest at τ 3; verbs at λ 1 and nouns at λ 0.5; then by the curriculum, which is bad at any other τ."""
    worse = {"forward_kl": 0.1, "reverse_kl": 0.2, "reverse_then_forward": 0.0}[method.divergence]
    if method.divergence == "reverse_then_forward" and method.temperature != 3.0:
        worse = -5.0
    weights = method.distillation_weight
    weights = weights if isinstance(weights, dict) else dict.fromkeys(HEADS, weights)
    best = {"verb": 1.0, "noun": 0.5}
    return {
        head: 1 + worse + abs(method.temperature - 3) / 10 + abs(weights[head] - best[head]) for head in HEADS
    }


def test_the_divergence_is_settled_after_and_at_the_other_numbers():
    found, tried = settled(
        by_temperature_weight_and_divergence,
        temperature="auto",
        distillation_weight="auto",
        divergence="auto",
    )
    assert found.temperature == 3.0
    assert found.distillation_weight == {"verb": 1.0, "noun": 0.5}
    assert found.ground_truth_weight == {"verb": 0.0, "noun": 0.5}
    assert found.divergence == "reverse_then_forward"
    first, then = tried[:5], tried[5:]  # λ 0 once, two λ at two τ; then the candidates
    assert {method.divergence for method in first} == {"forward_kl"}
    assert [method.divergence for method in then] == ["forward_kl", "reverse_kl", "reverse_then_forward"]
    assert {method.temperature for method in then} == {3.0}
    assert all(method.distillation_weight == {"verb": 1.0, "noun": 0.5} for method in then)


def test_the_divergence_alone_is_tried_at_the_numbers_given():
    found, tried = settled(by_temperature_weight_and_divergence, temperature=3.0, divergence="auto")
    assert (len(tried), found.divergence) == (3, "reverse_then_forward")
    assert found.distillation_weight == {"verb": 0.5, "noun": 0.0}


def test_a_refused_lesson_needs_no_divergence():
    def harmful(method):
        weight = method.distillation_weight
        return dict.fromkeys(HEADS, 1.0 + weight)

    found, tried = settled(harmful, temperature="auto", distillation_weight="auto", divergence="auto")
    assert found.distillation_weight == {"verb": 0.0, "noun": 0.0}
    assert (found.divergence, len(tried)) == ("forward_kl", 5)


NOBODY_LABELLED = Clip("u", "u.mp4", 0.0, 1.0, "u", "unlabelled", {}, {})
EVERYTHING_AUTO = {"temperature": "auto", "distillation_weight": "auto", "unlabelled_weight": "auto"}


def test_clips_without_labels_are_tried_with_every_weight_and_once_without_any_lesson():
    def helpful(method):
        return dict.fromkeys(HEADS, 3.0 - method.unlabelled_weight + method.distillation_weight)

    found, tried = settled(helpful, [NOBODY_LABELLED], **EVERYTHING_AUTO)
    assert sorted((m.temperature, m.distillation_weight, m.unlabelled_weight) for m in tried) == sorted(
        [(temperature, weight, 1.0) for temperature in (1.0, 3.0) for weight in (0.0, 0.5, 1.0)]
        + [(1.0, 0.0, 0.0)]
    )
    assert found.unlabelled_weight == 1.0
    assert found.distillation_weight == {"verb": 0.0, "noun": 0.0}


def test_a_lesson_that_harms_is_refused_for_clips_without_labels_too():
    def harmful(method):
        return dict.fromkeys(HEADS, 1.0 + method.unlabelled_weight + method.distillation_weight)

    found, _ = settled(harmful, [NOBODY_LABELLED], **EVERYTHING_AUTO)
    assert found.unlabelled_weight == 0
    assert found.distillation_weight == {"verb": 0.0, "noun": 0.0}


def test_without_such_clips_there_is_nothing_to_weigh():
    found, tried = settled(by_temperature_weight_and_divergence, **EVERYTHING_AUTO)
    assert {method.unlabelled_weight for method in tried} == {found.unlabelled_weight} == {0.0}


def test_nothing_is_tried_where_nothing_is_auto():
    found, tried = settled(by_temperature_weight_and_divergence)
    assert tried == []
    assert found.divergence == "forward_kl"
