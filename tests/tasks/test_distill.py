"""How `auto` is settled: which students are tried, in which order, and what each head takes from them."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from tasks.clips import Clip
from tasks.distill import Trial, _bank, _Made, _preferred, _settle, _students, _without_hints
from tasks.params import Params, Training, parse
from tasks.teach import Teachings

ROOT = Path(__file__).parents[2]
HEADS = ("verb", "noun")


def validation_clips(count, groups=None):
    """Clips of so many groups, one after the other, or each its own."""
    size = count // (groups or count)
    return [Clip(f"c{i}", "v.mp4", i, i + 1, f"g{i // size}", "val", {}, {}) for i in range(count)]


@dataclass(frozen=True)
class Scripted:
    """A learner whose trainings take no time: NLL of a head as written down for its method."""

    params: Params
    training: Training
    method: Any
    nlls: Any
    tried: list[Any]
    name: str = "student"
    unsure: Any = field(default_factory=dict)
    lucky: Any = field(default_factory=dict)
    by: str = "temperature"
    seeds: list[int] = field(default_factory=list)
    validation: list[Clip] = field(default_factory=lambda: validation_clips(20))

    def train(self, clips, lessons, seed, member, training, views_seed):
        assert views_seed == 0, "a lesson is of the views of its own seed"
        assert training.epochs == self.params.search.epochs
        self.tried.append(self.method)
        self.seeds.append(seed)
        return None, []

    def finish(self, members):
        return None, {}

    def losses(self):
        """Of 20 clips: the scripted NLL, and by how much it differs from clip to clip, where that is scripted, too."""
        spread = np.linspace(-1, 1, 20)
        luck = self.lucky.get((getattr(self.method, self.by), self.seeds[-1]), 0.0)
        nlls = {head: nll - luck for head, nll in self.nlls(self.method).items()}
        each = {
            head: nll + spread * self.unsure.get(self.method.temperature, 0.0) for head, nll in nlls.items()
        }
        return {"action": sum(each.values())} | each


def settle(nlls, folds=3, **method):
    document = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    numbers = {
        "distillation_weight": {"verb": 0.5, "noun": 0.0},
        "ground_truth_weight": 0.5,
        "unlabelled_weight": 0.0,
    }
    document["students"]["student"]["method"] |= numbers | method
    for teacher in document["teachers"].values():
        teacher["folds"] = folds
    document["search"] |= {
        "temperature": [1.0, 3.0],
        "distillation_weight": [0.0, 0.5, 1.0],
        "divergence": ["forward_kl", "reverse_kl", "reverse_then_forward"],
    }
    params = parse(yaml.safe_dump(document), Path("params.yaml"))
    student = params.students["student"]
    learner = Scripted(params, student.training, student.method, nlls, [])
    nobody = {head: np.zeros((0, 1, size), np.float32) for head, size in params.class_counts.items()}
    heard = {head: np.zeros((1, 1, size), np.float32) for head, size in params.class_counts.items()}
    bank = {"rgb": Teachings(nobody, np.zeros(0, bool), heard, np.ones(1, bool), None)}
    return learner, bank, student


@pytest.fixture(autouse=True)
def no_lesson(monkeypatch):
    """What the lesson says does not matter to a scripted training."""
    monkeypatch.setattr("tasks.distill._lesson", lambda *_: None)
    monkeypatch.setattr("tasks.distill._losses", lambda learner, _: learner.losses())


def settled(nlls, clips=(), unsure=None, **method):
    learner, bank, student = settle(nlls, **method)
    learner = replace(learner, unsure=unsure or {})
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
    first, again, heads, then, last = tried[:5], tried[5:7], tried[7:9], tried[9:12], tried[12:]
    # λ 0 once, two λ at two τ; the first and the best of them; the best and the one that verbs prefer; the
    # divergences; the first and the best of them
    assert [(method.temperature, method.distillation_weight) for method in again] == [(1.0, 0.5), (3.0, 0.5)]
    assert [(method.temperature, method.distillation_weight) for method in heads] == [(3.0, 0.5), (3.0, 1.0)]
    assert [method.divergence for method in last] == ["forward_kl", "reverse_then_forward"]
    assert {method.divergence for method in first} == {"forward_kl"}
    assert [method.divergence for method in then] == ["forward_kl", "reverse_kl", "reverse_then_forward"]
    assert {method.temperature for method in then} == {3.0}
    assert all(method.distillation_weight == {"verb": 1.0, "noun": 0.5} for method in then)


def test_the_divergence_alone_is_tried_at_the_numbers_given():
    found, tried = settled(by_temperature_weight_and_divergence, temperature=3.0, divergence="auto")
    assert (len(tried), found.divergence) == (3 + 2, "reverse_then_forward")
    assert found.distillation_weight == {"verb": 0.5, "noun": 0.0}


def harmful(method):
    """The less of a lesson, the likelier."""
    weight = method.distillation_weight
    weights = weight if isinstance(weight, dict) else dict.fromkeys(HEADS, weight)
    return {head: 1.0 + method.unlabelled_weight + weights[head] for head in HEADS}


@pytest.mark.parametrize(("unsure", "chosen"), [(0.0, 3.0), (0.2, 3.0), (2.0, 1.0)])
def test_the_first_candidate_stays_unless_another_is_better_beyond_chance(unsure, chosen):
    """Both heads gain 0.2 at τ 3, by how much differs from clip to clip: a standard error of 0.14 × `unsure` each."""

    def better_at_three(method):
        return dict.fromkeys(HEADS, 1.0 - 0.1 * (method.temperature - 1))

    found, _ = settled(better_at_three, unsure={3.0: unsure}, temperature="auto")
    assert found.temperature == chosen


@pytest.mark.parametrize(("lucky", "chosen"), [({0}, 1.0), ({0, 1}, 3.0)])
def test_what_wins_by_one_seed_alone_is_not_chosen(lucky, chosen):
    learner, bank, student = settle(lambda _: dict.fromkeys(HEADS, 1.0), temperature="auto")
    learner = replace(learner, lucky={(3.0, seed): 0.3 for seed in lucky})
    found = _settle(learner, student, bank, [], [], [], seed=0)  # type: ignore[arg-type]
    assert found.method.temperature == chosen
    assert learner.seeds == [0, 0, 1, 1]


def test_a_weight_that_wins_by_one_seed_alone_is_not_chosen_for_a_head_either():
    """λ 1 is likelier by 0.3 on the first seed, and less likely by as much on the other."""

    def nlls(method):
        return dict.fromkeys(HEADS, 1.0 + 0.01 * (method.distillation_weight == 0))

    learner, bank, student = settle(nlls, distillation_weight="auto")
    learner = replace(learner, lucky={(1.0, 0): 0.3, (1.0, 1): -0.3}, by="distillation_weight")
    found = _settle(learner, student, bank, [], [], [], seed=0).method  # type: ignore[arg-type]
    assert found.distillation_weight == {"verb": 0.5, "noun": 0.5}


def test_of_one_group_nothing_is_tried_and_the_first_candidates_stay(capsys):
    learner, bank, student = settle(
        by_temperature_weight_and_divergence,
        temperature="auto",
        distillation_weight="auto",
        divergence="auto",
    )
    learner = replace(learner, validation=validation_clips(20, groups=1))
    found = _settle(learner, student, bank, [], [], [], seed=0).method  # type: ignore[arg-type]
    assert learner.tried == []
    assert (found.temperature, found.divergence) == (1.0, "forward_kl")
    assert found.distillation_weight == {"verb": 0.5, "noun": 0.5}, "the first with a lesson"
    assert "validation is one group" in capsys.readouterr().out


def test_of_few_groups_more_is_asked():
    """Both heads gain 0.2 at τ 3 on average, by group more or less: ten groups tell that much, two do not."""

    def better_at_three(method):
        return dict.fromkeys(HEADS, 1.0 - 0.1 * (method.temperature - 1))

    chosen = {}
    for groups in (10, 2):
        learner, bank, student = settle(better_at_three, temperature="auto")
        learner = replace(learner, unsure={3.0: 0.5}, validation=validation_clips(20, groups))
        found = _settle(learner, student, bank, [], [], [], seed=0)  # type: ignore[arg-type]
        chosen[groups] = found.method.temperature
    assert chosen == {10: 3.0, 2: 1.0}


def test_short_trials_refuse_no_lesson():
    found, tried = settled(harmful, temperature="auto", distillation_weight="auto", divergence="auto")
    assert found.distillation_weight == 0.5  # the least harmful one
    assert (found.divergence, len(tried)) == ("forward_kl", 5 + 2 + 3)


def test_one_head_may_do_without():
    def useful_for_verbs(method):
        weight = method.distillation_weight
        return {"verb": 1.0 - weight, "noun": 1.0 + weight / 2}

    found, _ = settled(useful_for_verbs, distillation_weight="auto")
    assert found.distillation_weight == {"verb": 1.0, "noun": 0.0}


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


def test_teachers_that_were_not_cross_fitted_speak_of_clips_without_labels_alone():
    found, tried = settled(harmful, [NOBODY_LABELLED], folds=1, **EVERYTHING_AUTO)
    assert {method.distillation_weight for method in tried} == {0.0}
    assert (found.distillation_weight, found.unlabelled_weight) == ({"verb": 0.0, "noun": 0.0}, 1.0)
    _, tried = settled(harmful, folds=1, **EVERYTHING_AUTO)
    assert {method.distillation_weight for method in tried} == {0.0, 0.5, 1.0}


def test_where_such_clips_are_left_out_the_teachers_word_on_labelled_ones_is_weighed():
    """Else there would be no lesson at all, whatever the search may choose from."""
    wanted = {"distillation_weight": "auto", "unlabelled_weight": 0.0}
    _, tried = settled(harmful, [NOBODY_LABELLED], folds=1, **wanted)
    assert {method.distillation_weight for method in tried} == {0.0, 0.5, 1.0}


def test_short_trials_do_not_refuse_clips_without_labels():
    found, _ = settled(harmful, [NOBODY_LABELLED], **EVERYTHING_AUTO)
    assert found.unlabelled_weight == 1.0
    assert found.distillation_weight == {"verb": 0.0, "noun": 0.0}


@pytest.mark.parametrize("rivals", [1, 4, 10])
def test_chance_moves_a_choice_as_rarely_among_many_as_between_two(rivals):
    random = np.random.default_rng(0)
    kept = 0
    for _ in range(400):
        losses = random.normal(1.0, 0.3, (rivals + 1, 40))
        alone = np.arange(40)
        found = [Trial(None, {"action": values}, alone) for values in losses]  # type: ignore[arg-type]
        kept += _preferred(found) is found[0]
    assert 0.8 < kept / 400 < 0.93


def made(*losses, method="hints"):
    """Students of seeds 0, 1, … that stand for the NLL of the action of three validation clips."""
    return {
        seed: _Made(method, np.array(nlls), {}, [], {"temperature": 1.0})  # type: ignore[arg-type]
        for seed, nlls in enumerate(losses)
    }


@pytest.mark.parametrize(
    ("by_labels", "refused"),
    [
        (
            ((1.0, 1.1, 1.2), (2.0, 1.9, 1.8)),
            True,
        ),  # likelier by 0.1 with every clip, as a mean over the seeds
        (((1.0, 1.1, 1.2), (2.4, 1.9, 1.4)), False),  # by 0.1 too, with a standard error of 0.12
        (((1.2, 1.3, 1.4), (2.2, 2.1, 2.0)), False),  # less likely
    ],
)
def test_trained_to_the_end_a_lesson_stays_unless_labels_are_likelier_beyond_chance(
    monkeypatch, by_labels, refused
):
    monkeypatch.setattr("tasks.distill._losses", lambda _, committee: {"action": committee})
    taught, untold = made((1.1, 1.2, 1.3), (2.1, 2.0, 1.9), method="kd"), made(*by_labels)
    monkeypatch.setattr("tasks.distill._trained", lambda *_: taught)
    monkeypatch.setattr("tasks.distill._by_labels", lambda *_: untold)
    learner, _, student = settle(harmful, distillation_weight="auto")
    learner = replace(learner, validation=validation_clips(3))
    kept = _students(learner, _without_hints(student), [], [], [])  # type: ignore[arg-type]
    for seed, one in kept.items():
        assert one.committee is (untold if refused else taught)[seed].committee
        assert one.chosen["temperature"] == 1.0
        assert one.chosen["refusal"]["refused"] is refused
        assert one.chosen["refusal"]["lesson"] == pytest.approx(1.6)
        assert one.chosen["refusal"]["labels"] == pytest.approx(np.mean(by_labels))


@pytest.mark.parametrize(
    ("hinted", "plain", "method", "tried", "first"),
    [
        (1.0, 1.0, "hints", ["hints"], 1.0),  # the lesson stays as it is
        (1.4, 1.1, "kd", ["hints", "kd"], 1.1),  # it stays without its hints
        (1.4, 1.3, "kd", ["hints", "kd"], 1.2),  # nothing of it stays
    ],
)
def test_hints_are_refused_before_the_lesson_is(monkeypatch, hinted, plain, method, tried, first):
    trained = []

    def scripted(learner, student, *_):
        assert learner.method is student.method
        assert student.method.distillation_weight == "auto"
        trained.append(student.method.kind)
        nll = hinted if student.method.kind == "hints" else plain
        return made((nll, nll, nll), method=student.method.kind)

    monkeypatch.setattr("tasks.distill._trained", scripted)
    monkeypatch.setattr("tasks.distill._by_labels", lambda *_: made((1.2, 1.2, 1.2), method="supervised"))
    monkeypatch.setattr("tasks.distill._losses", lambda _, committee: {"action": committee})
    learner, _, student = settle(harmful, distillation_weight="auto")
    learner = replace(learner, validation=validation_clips(3))
    (kept,) = _students(learner, student, [], [], []).values()  # type: ignore[arg-type]
    assert (kept.method, trained, kept.committee[0]) == (method, tried, first)  # type: ignore[index]
    verdict = kept.chosen["refusal"]
    assert verdict["refused"] is (first == 1.2)
    assert verdict.get("hints") == (None if method == "hints" else pytest.approx(hinted))


@pytest.mark.parametrize(
    ("method", "may"),
    [
        ({"distillation_weight": "auto"}, True),
        ({"distillation_weight": 0.5, "unlabelled_weight": "auto"}, True),
        ({"temperature": "auto", "divergence": "auto"}, False),
    ],
)
def test_only_an_auto_weight_may_be_refused(method, may):
    learner, _, student = settle(harmful, **method)
    assert student.may_be_refused(learner.params.search) is may


def test_without_such_clips_there_is_nothing_to_weigh():
    found, tried = settled(by_temperature_weight_and_divergence, **EVERYTHING_AUTO)
    assert {method.unlabelled_weight for method in tried} == {found.unlabelled_weight} == {0.0}


def test_a_weight_of_clips_that_are_not_there_makes_no_lesson():
    """λ_U is a number, as on the sample, and every clip is labelled: λ_KD = 0 is the baseline, and no lesson."""
    found, tried = settled(harmful, **(EVERYTHING_AUTO | {"unlabelled_weight": 1.0}))
    assert {method.unlabelled_weight for method in tried} == {0.0}
    assert found.distillation_weight == 0.5, "whether labels alone are better is not for short trials to say"


def test_nothing_is_tried_where_nothing_is_auto():
    found, tried = settled(by_temperature_weight_and_divergence)
    assert tried == []
    assert found.divergence == "forward_kl"


def test_only_who_learns_from_hints_is_given_any(monkeypatch):
    """A training is named by its whole lesson: hints that `kd` never looks at would have it done anew."""
    monkeypatch.setattr("tasks.distill.load_bank", lambda *arguments: arguments[-1])
    learner, _, student = settle(harmful)
    learner = SimpleNamespace(workspace=SimpleNamespace(teachings=Path("artifacts/teachings")))
    assert student.method.kind == "hints"
    assert _bank(learner, student, 0, [], []) is True  # type: ignore[arg-type]
    assert _bank(learner, _without_hints(student), 0, [], []) is False  # type: ignore[arg-type]
