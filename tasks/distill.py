"""Stage `distill@<student>`: RGB and a lesson in, a student out. The baseline is a student of labels alone."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models.distill.kd import KD
from models.distill.method import Method, Taught
from models.distill.mst import MST
from models.distill.omnivorous import Omnivorous, alone
from models.distill.supervised import Supervised
from models.metrics import score, score_action
from models.preference import is_preferred, standard_error
from tasks.atomic import new_folder, write_json
from tasks.clips import Clip, group_numbers, label_indices, read_clips, taught_clips
from tasks.errors import UserError
from tasks.layout import Workspace
from tasks.learner import Learner, Lessons, write_curves
from tasks.lessons import Mixed, apart, mixed
from tasks.networks import Committee, Spec
from tasks.omnivorous import omnivore
from tasks.params import MODALITY, Params, Student
from tasks.precision import try_bfloat16
from tasks.shards import Shards
from tasks.teach import Teachings, load_bank
from tasks.training import Epoch

_ACTION = "action"


@dataclass(frozen=True)
class Trial:
    """A student with numbers in place of `auto`, and what a short training of it came to.

    Attributes:
        student: the numbers.
        losses: NLL of every validation clip, float64 (clips,): of the action and of each head, calibrated.
        groups: a number for each of these clips, the same within a group, (clips,).
    """

    student: Student
    losses: Mapping[str, np.ndarray]
    groups: np.ndarray


@dataclass(frozen=True)
class _Made:
    """The student of one seed.

    Attributes:
        method: the kind that it was taught by.
        committee: the network with its temperature.
        figures: on validation.
        history: of its training.
        chosen: what was settled, for student.json.
    """

    method: str
    committee: Committee
    figures: dict[str, dict[str, float]]
    history: list[Epoch]
    chosen: dict[str, Any]


def run(params: Params, workspace: Workspace, item: str | None) -> None:
    """Train the student `item` for every seed and write artifacts/students/<item>."""
    assert item is not None
    student = params.students[item]
    shards = Shards(workspace.modality(MODALITY))
    modality = params.modalities[MODALITY]
    validation = read_clips(workspace.index, "val")
    learner = Learner(
        params=params,
        workspace=workspace,
        stage="distill",
        name=item,
        spec=Spec(
            modality=MODALITY,
            modality_params=modality,
            views=params.views,
            heads=params.data.heads,
            backbone=student.backbone,
        ),
        training=student.training,
        method=student.method,
        shards=shards,
        validation=[clip for clip in validation if modality.covers(shards.rows(clip.video), clip)],
    )
    clips = taught_clips(workspace.index) if student.hears_teachers else read_clips(workspace.index, "train")
    distill(learner, student, clips, validation, workspace.student(item))


def distill(learner: Learner, student: Student, train: list[Clip], validation: list[Clip], out: Path) -> None:
    """Train `student` on the RGB of the clips of `train` and write the folder `out`.

    An epoch shows as many clips as there are labelled ones, so that those without labels cost no training time and
    baseline and student have the same budget.
    """
    params = learner.params
    seen = [clip for clip, there in zip(train, learner.seen(train), strict=True) if there]
    if not seen:
        raise UserError("no training clip has RGB frames", remedy="see data/index/quarantine.csv")
    learner.check()
    try_bfloat16(omnivore(learner) if isinstance(student.method, Omnivorous) else learner)
    with new_folder(out) as folder:
        made = _students(learner, student, train, seen, validation)
        for seed, one in made.items():
            (folder / f"seed-{seed}").mkdir()
            one.committee.save(folder / f"seed-{seed}")
        cost = learner.cost()
        write_curves(folder / "curves.csv", {(seed, 0): one.history for seed, one in made.items()})
        write_json(
            folder / "student.json",
            {
                "name": learner.name,
                "role": "baseline" if student.method.hears == "labels" else "student",
                "method": next(iter(made.values())).method,
                "inference_modalities": [MODALITY],
                "seeds": params.seeds,
                "members": 1,
                "params_count": cost["params_count"],
                "gmacs": cost["gmacs"],
                "validation": {str(seed): one.figures for seed, one in made.items()},
                "chosen": {str(seed): one.chosen for seed, one in made.items()},
            },
        )


def _students(
    learner: Learner, student: Student, train: list[Clip], seen: list[Clip], validation: list[Clip]
) -> dict[int, _Made]:
    """The students of all seeds. Where `auto` may refuse the lesson: first its hints, then the rest of it."""
    made = _trained(learner, student, train, seen, validation)
    if not student.may_be_refused(learner.params.search):
        return made
    by_labels = _by_labels(learner, student, seen)
    verdict = _verdict(learner, made, by_labels)
    if verdict["refused"] and student.method.needs_hints:
        print(f"auto {learner.name}: once more, without hints")
        plain = _without_hints(student)
        made = _trained(replace(learner, method=plain.method), plain, train, seen, validation)
        verdict = _verdict(learner, made, by_labels) | {"hints": verdict["lesson"]}
    kept = by_labels if verdict["refused"] else made
    return {
        seed: replace(kept[seed], method=one.method, chosen=one.chosen | {"refusal": verdict})
        for seed, one in made.items()
    }


def _without_hints(student: Student) -> Student:
    """The student that hears the same mix, by the same numbers and what is yet to be settled of them."""
    heard = {name: getattr(student.method, name) for name in Taught.model_fields if name != "kind"}
    return student.model_copy(update={"method": KD(kind="kd", **heard)})


def _trained(
    learner: Learner, student: Student, train: list[Clip], seen: list[Clip], validation: list[Clip]
) -> dict[int, _Made]:
    """The student trained for every seed, as its params have it, what is `auto` settled on the first."""
    made: dict[int, _Made] = {}
    settled: Student | None = None
    for seed in learner.params.seeds:
        bank = _bank(learner, student, seed, train, validation)
        if settled is None:  # once, on the first seed: a choice a seed would be a method of its own
            settled = _settle(learner, student, bank, train, seen, validation, seed)
        lesson = _lesson(learner, settled, bank, train, validation)
        method: Method = settled.method
        if isinstance(method, MST) and bank is not None:
            method = method.routed(list(bank), learner.params.class_counts)
        learner = replace(learner, method=method)
        shown = _shown(settled, seen)
        if isinstance(method, Omnivorous):
            fused, history = omnivore(learner).train(shown, None, seed, 0)
            network = alone(fused, MODALITY)
        else:
            network, history = learner.train(shown, _of(lesson, train, shown), seed, 0)
        chosen = _told(settled, lesson) | _routed(bank, history)
        made[seed] = _Made(method.kind, *learner.finish([network]), history, chosen)
    return made


def _by_labels(learner: Learner, student: Student, seen: list[Clip]) -> dict[int, _Made]:
    """The same students without any lesson, from the trainings of a baseline where its params are the same."""
    assert isinstance(student.method, Taught)
    method = Supervised(kind="supervised", head_weights=student.method.head_weights, label_smoothing=0.0)
    labelled = [clip for clip in seen if clip.labelled]
    learner = replace(learner, method=method)
    made = {}
    for seed in learner.params.seeds:
        network, history = learner.train(labelled, None, seed, 0)
        made[seed] = _Made(method.kind, *learner.finish([network]), history, {})
    return made


def _verdict(
    learner: Learner, taught: Mapping[int, _Made], by_labels: Mapping[int, _Made]
) -> dict[str, float | bool | None]:
    """Whether the lesson is refused, as validation's actions are likelier by labels alone, and by what figures.

    Trained to the end, not for a trial: a lesson pays late (Beyer et al., CVPR 2022, arXiv 2106.05237). Likelier beyond
    chance, as in `_preferred`: where validation cannot tell the two apart the lesson stays, as it also calibrates.

    Returns:
        for student.json: NLL of the action in nats, mean over clips and seeds, by the `lesson` and by `labels` alone;
        `error`, the standard error of their difference, None of a single group; `refused`.
    """

    def losses(made: Mapping[int, _Made]) -> np.ndarray:
        of_seeds = [_losses(learner, one.committee)[_ACTION] for one in made.values()]
        return np.asarray(np.mean(of_seeds, axis=0))

    told, untold, groups = losses(taught), losses(by_labels), group_numbers(learner.validation)
    error = standard_error(told - untold, groups)
    refused = is_preferred(told - untold, groups)
    print(
        f"auto {learner.name}: validation NLL of the action {told.mean():.4f} by the lesson, {untold.mean():.4f} by "
        f"labels alone, standard error of the difference {error:.4f}: "
        + ("the lesson is refused" if refused else "the lesson stays")
    )
    return {
        "lesson": float(told.mean()),
        "labels": float(untold.mean()),
        "error": error if np.isfinite(error) else None,
        "refused": refused,
    }


def _bank(
    learner: Learner, student: Student, seed: int, train: list[Clip], validation: list[Clip]
) -> dict[str, Teachings] | None:
    """The teachings that the student learns from, and nothing else: a training is named by its whole lesson.

    None for one of labels alone.
    """
    if not student.hears_teachers:
        return None
    if isinstance(student.method, MST):
        source = student.learns_from.rpartition("/")[2]
        names = learner.params.specialists[source].names
        return load_bank(learner.workspace.specialists(source), names, seed, train, validation)
    assert student.ensemble is not None
    teachers, hints = student.ensemble.teachers, student.method.needs_hints
    return load_bank(learner.workspace.teachings, teachers, seed, train, validation, hints)


def _lesson(
    learner: Learner,
    student: Student,
    bank: dict[str, Teachings] | None,
    train: list[Clip],
    validation: list[Clip],
) -> Mixed | None:
    """What the student is told of the clips of `train`; None for one of labels alone."""
    if bank is None:
        return None
    if student.ensemble is None:
        return apart(bank)
    heads, taught = learner.params.data.heads, {clip.group for clip in train if clip.labelled}
    return mixed(
        student.ensemble,
        bank,
        label_indices(train, heads),
        label_indices(validation, heads),
        list(learner.params.search.weights_temperature),
        held_out=all(learner.params.folds(name) > 1 for name in bank),
        strangers=np.array([clip.group not in taught for clip in train]),
        train_groups=group_numbers(train),
        val_groups=group_numbers(validation),
    )


def _of(lesson: Mixed | None, train: list[Clip], shown: list[Clip]) -> Lessons | None:
    """The lessons of the clips `shown`, in their order."""
    if lesson is None:
        return None
    ids = {clip.clip_id for clip in shown}
    return lesson.lessons.take([row for row, clip in enumerate(train) if clip.clip_id in ids])


def _shown(student: Student, seen: list[Clip]) -> list[Clip]:
    """The clips that the student learns something from."""
    if isinstance(student.method, Taught) and student.method.unlabelled_weight:
        return seen
    return [clip for clip in seen if clip.labelled]


def _routed(bank: dict[str, Teachings] | None, history: list[Epoch]) -> dict[str, Any]:
    """How the gate of method mst spread the clips over the specialists in the last epoch; nothing without a gate.

    For each, its mean probability and the share of the clips for which it was among the top K, over K.
    """
    last = history[-1]
    routing = {
        name: {"probability": last[f"train_gate/{name}"], "share": last[f"train_route/{name}"]}
        for name in bank or {}
        if f"train_gate/{name}" in last
    }
    return {"routing": routing} if routing else {}


def _told(student: Student, lesson: Mixed | None) -> dict[str, Any]:
    """The settled numbers, for student.json."""
    if lesson is None or not isinstance(student.method, Taught):
        return {}
    return {
        "temperature": student.method.temperature,
        "divergence": student.method.divergence,
        "distillation_weight": student.method.distillation_weight,
        "ground_truth_weight": student.method.ground_truth_weight,
        "unlabelled_weight": student.method.unlabelled_weight,
        "weights_temperature": lesson.weights_temperature,
        "mix_temperature": lesson.temperature,
        "unlabelled_mix_temperature": lesson.unlabelled_temperature,
        "teacher_weights": lesson.weights,
    }


def _settle(
    learner: Learner,
    student: Student,
    bank: dict[str, Teachings] | None,
    train: list[Clip],
    seen: list[Clip],
    validation: list[Clip],
    seed: int,
) -> Student:
    """The student with every `auto` replaced by what did best on validation in a short training.

    γ of data-set weights needs no training and is left to `mixed`. λ_KD and λ_GT add up to one; λ_KD = 0 is
    the baseline, tried once whatever τ, for a head that is better off without. The first candidates are taken unless
    others are likelier on validation beyond chance (`_preferred`), twice: a training differs from the next by more than
    the choice of clips tells, so what wins is trained once more beside the first candidate, from another seed, and has
    to win again. Where validation is one group nothing could win, and nothing is tried. First τ, γ and λ_KD by the
    action, then λ_KD by every head. Whether any lesson is better than none is not for short trials to say, as lessons
    pay late: if all heads would be without, they keep the λ_KD of the best trial with a lesson, and `_students`
    decides. The divergence is settled last, at these numbers, and is forward KL until then: a full grid would take as
    many times longer as there are candidates.
    """
    if bank is None or not isinstance(student.method, Taught):
        return student
    training = learner.training.model_copy(update={"epochs": learner.params.search.epochs})
    if training.warmup_epochs >= training.epochs:
        training = training.model_copy(update={"warmup_epochs": training.epochs - 1})

    groups = group_numbers(learner.validation)

    def tried(trials: list[Student], weights_seed: int = seed) -> list[Trial]:
        if len(set(groups)) == 1:
            print(
                f"auto {learner.name}: the first candidate stays, none is tried: validation is one group, which says "
                "nothing of others"
            )
            alike = dict.fromkeys([_ACTION, *learner.params.class_counts], np.zeros(len(groups)))
            return [Trial(trial, alike, groups) for trial in trials]
        found = []
        for trial in trials:
            trying = replace(learner, method=trial.method)
            lesson = _lesson(learner, trial, bank, train, validation)
            shown = _shown(trial, seen)
            told = _of(lesson, train, shown)
            # the lesson is of this seed's views, whatever the weights begin from
            network, _ = trying.train(shown, told, weights_seed, 0, training, views_seed=seed)
            losses = _losses(trying, trying.finish([network])[0])
            means = ", ".join(f"{head} {values.mean():.4f}" for head, values in losses.items())
            print(f"auto {learner.name}: {_described(trial)} → validation NLL {means}")
            found.append(Trial(trial, losses, groups))
        return found

    def twice_preferred(found: list[Trial], heads: Iterable[str] = (_ACTION,)) -> dict[str, Trial]:
        first, best = found[0], {head: _preferred(found, head) for head in heads}
        rivals = [trial for trial in found[1:] if any(trial is winner for winner in best.values())]
        if not rivals:
            return best
        print(f"auto {learner.name}: what won once more beside the first candidate, from another seed")
        again = tried([first.student, *(rival.student for rival in rivals)], seed + 1)
        won = {id(trial): repeated for trial, repeated in zip([first, *rivals], again, strict=True)}
        return {
            head: winner if _preferred([again[0], won[id(winner)]], head) is won[id(winner)] else first
            for head, winner in best.items()
        }

    trials = list(_trials(student, learner, any(not clip.labelled for clip in seen)))
    best = trials[0]
    if len(trials) > 1:
        found = tried(trials)
        taught = [trial for trial in found if _is_taught(trial.student)]
        best = twice_preferred(taught or found)[_ACTION].student
        if student.method.distillation_weight == "auto":
            by_head = twice_preferred(_alike(best, found), learner.params.class_counts)
            shares = {head: _weight(trial.student) for head, trial in by_head.items()}
            if any(shares.values()) or _tuned(best)["unlabelled_weight"]:
                best = _with_shares(best, shares)
    if student.method.divergence == "auto" and _is_taught(best):
        divergences = [_with(best, divergence=name) for name in learner.params.search.divergence]
        best = twice_preferred(tried(divergences))[_ACTION].student
    if best != student:
        print(f"auto {learner.name}: chosen {_described(best)}")
    return best


def _losses(learner: Learner, committee: Committee) -> dict[str, np.ndarray]:
    """NLL of every validation clip after the fitted temperature, of the action and of each head."""
    logits, labels = learner.predictions(committee)
    calibrated = committee.calibrated(logits)
    losses = {_ACTION: score_action(calibrated, labels).nll}
    losses |= {head: score(values, labels[head]).nll for head, values in calibrated.items()}
    return {head: values.double().numpy() for head, values in losses.items()}


def _preferred(found: list[Trial], head: str = _ACTION) -> Trial:
    """The first trial, unless another is likelier on validation beyond chance (`is_preferred`).

    Short trainings on few clips differ by chance. The order of the candidates in params.yaml says what is preferred
    where validation cannot tell.
    """
    first, best = found[0], min(found, key=lambda trial: float(trial.losses[head].mean()))
    gain = first.losses[head] - best.losses[head]
    return best if is_preferred(gain, first.groups, len(found) - 1) else first


def _is_taught(student: Student) -> bool:
    """Whether it listens to the teachers' mixed prediction anywhere."""
    assert isinstance(student.method, Taught)
    weight = student.method.distillation_weight
    of_labelled = any(weight.values()) if isinstance(weight, dict) else weight != 0
    return of_labelled or student.method.unlabelled_weight != 0


def _alike(best: Student, found: list[Trial]) -> list[Trial]:
    """The trials among which every head has its λ_KD chosen: the best one first, then others with its τ, γ and λ_U.

    The trial without any lesson is λ_KD = 0 of every τ and γ; so it counts too, if the best one has λ_U = 0 as well.
    """
    is_silent_too = _tuned(best)["unlabelled_weight"] == 0
    alike = [
        trial
        for trial in found
        if _tuned(trial.student) == _tuned(best) or (is_silent_too and not _is_taught(trial.student))
    ]
    return sorted(alike, key=lambda trial: trial.student != best)


def _weight(student: Student) -> float:
    """The one λ_KD of a trial."""
    assert isinstance(student.method, Taught)
    assert isinstance(student.method.distillation_weight, float)
    return student.method.distillation_weight


def _tuned(student: Student) -> dict[str, Any]:
    """What `auto` settled for all heads at once."""
    assert isinstance(student.method, Taught)
    assert student.ensemble is not None
    return {
        "temperature": student.method.temperature,
        "weights_temperature": student.ensemble.weights_temperature,
        "unlabelled_weight": student.method.unlabelled_weight,
    }


def _with_shares(student: Student, shares: dict[str, float]) -> Student:
    told = {head: 1 - share for head, share in shares.items()}
    return _with(student, distillation_weight=shares, ground_truth_weight=told)


def _with(student: Student, **numbers: Any) -> Student:
    return student.model_copy(update={"method": student.method.model_copy(update=numbers)})


def _described(student: Student) -> str:
    assert isinstance(student.method, Taught)
    assert student.ensemble is not None
    return (
        f"λ {student.method.distillation_weight}, λ_U {student.method.unlabelled_weight:g}, "
        f"τ {student.method.temperature:g}, {student.method.divergence}, γ {student.ensemble.weights_temperature}"
    )


def _trials(student: Student, learner: Learner, unlabelled: bool) -> Any:
    """Every student that `auto` may stand for, each once, a divergence yet to be settled being forward KL.

    Where the student learns from `unlabelled` clips and a teacher was not cross-fitted, teachers speak of those alone:
    what they say of labelled ones is what they memorised, and short trials like it.
    """
    method, search = student.method, learner.params.search
    assert isinstance(method, Taught)
    assert student.ensemble is not None
    shares: list[Any] = (
        search.distillation_weight if method.distillation_weight == "auto" else [method.distillation_weight]
    )
    if unlabelled and method.unlabelled_weight and method.distillation_weight == "auto":
        memorised = any(learner.params.folds(name) == 1 for name in student.ensemble.teachers)
        shares = [0.0] if memorised else shares
    temperatures = search.temperature if method.temperature == "auto" else [method.temperature]
    per_sample = student.ensemble.weights == "per_sample" and student.ensemble.weights_temperature == "auto"
    gammas: list[Any] = (
        list(search.weights_temperature) if per_sample else [student.ensemble.weights_temperature]
    )
    divergence = "forward_kl" if method.divergence == "auto" else method.divergence
    told_of: list[Any] = [method.unlabelled_weight]
    if method.unlabelled_weight == "auto":
        told_of = [1.0, 0.0] if unlabelled else [0.0]
    elif method.distillation_weight == "auto" and not unlabelled:
        told_of = [0.0]  # else λ_KD = 0 would look like a lesson, though there is nobody to hear it
    for share, temperature, gamma, told in itertools.product(shares, temperatures, gammas, told_of):
        silent = share == 0 and told == 0
        if silent and (temperature, gamma) != (temperatures[0], gammas[0]):
            continue
        if len(told_of) > 1 and told == 0 and not silent:
            continue
        truth = 1 - share if method.distillation_weight == "auto" else method.ground_truth_weight
        update = {
            "temperature": temperature,
            "divergence": divergence,
            "distillation_weight": share,
            "ground_truth_weight": truth,
            "unlabelled_weight": told,
        }
        yield student.model_copy(
            update={
                "method": method.model_copy(update=update),
                "ensemble": student.ensemble.model_copy(update={"weights_temperature": gamma}),
            }
        )
