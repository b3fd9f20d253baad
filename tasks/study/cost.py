"""What trainings cost: what is to come, counted from params, and what was, measured by the trainings themselves."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from models.distill import Omnivorous
from models.distill.method import Taught
from tasks.clips import read_clips
from tasks.layout import Workspace
from tasks.params import Params, Student


def clips_shown(params: Params, train_clips: int) -> dict[str, float]:
    """Stage → clips that its trainings show to a network, each counted once an epoch; stages that train alone.

    Counted too: short trials that settle `auto`, full trainings without the lesson, and without its hints, that it may
    be held against, clips without a modality as if they had it. A network of several branches counts as so many.
    """
    seeds = len(params.seeds)

    def rounds(name: str) -> int:  # each network learns from all folds but one
        return max(1, params.folds(name) - 1)

    shown = {}
    for name, teacher in params.teachers.items():
        shown[f"train_teacher@{name}"] = seeds * rounds(name) * teacher.training.epochs * train_clips
    for name, fused in params.fused.items():
        trained = {"ume": 0, "auto": seeds + 1}.get(fused.kind, seeds)  # auto: two kinds, of the first seed
        epochs = trained * rounds(name) * fused.training.epochs
        shown[f"fuse@{name}"] = epochs * len(fused.teachers) * train_clips
    for name, entry in params.specialists.items():
        networks = 1 + len(params.fused[entry.fused].teachers) + len(entry.auxiliaries)
        epochs = seeds * rounds(name) * (entry.training.epochs + entry.masks.training.epochs)
        shown[f"specialise@{name}"] = epochs * networks * train_clips
    for name, student in params.students.items():
        trials = params.search.epochs * _trials(params, student)
        branches = 1 + len(student.method.teachers) if isinstance(student.method, Omnivorous) else 1
        full = seeds * student.training.epochs * branches + trials
        if student.may_be_refused(params.search):  # by labels alone, and once more without hints
            full += seeds * student.training.epochs + (full if student.method.needs_hints else 0)
        shown[f"distill@{name}"] = full * train_clips
    return {stage: float(count) for stage, count in shown.items()}


def _trials(params: Params, student: Student) -> int:
    """How many short trainings settle what is `auto` (tasks/distill.py), at most."""
    method = student.method
    if not isinstance(method, Taught):
        return 0
    grid = 1
    for value, candidates in (
        (method.temperature, params.search.temperature),
        (method.distillation_weight, params.search.distillation_weight),
    ):
        grid *= len(candidates) if value == "auto" else 1
    ensemble = student.ensemble
    if ensemble and ensemble.weights == "per_sample" and ensemble.weights_temperature == "auto":
        grid *= len(params.search.weights_temperature)
    grid += method.unlabelled_weight == "auto"  # no lesson at all
    steps = [grid, len(params.search.divergence) if method.divergence == "auto" else 1]
    return sum(trials + 2 for trials in steps if trials > 1)  # the best and the first once more


def measured_rate(workspaces: Iterable[Workspace]) -> float | None:
    """Clips a second that trainings of these workspaces showed, the median over networks; None without any."""
    rates = []
    for workspace in workspaces:
        if not (workspace.index / "clips.csv").is_file():
            continue
        clips = len(read_clips(workspace.index, "train"))
        for file in sorted((workspace.root / "artifacts").glob("*/*/curves.csv")):
            rates += [clips / seconds for seconds in _seconds_an_epoch(file) if seconds > 0]
    return median(rates) if rates else None


def _seconds_an_epoch(curves: Path) -> list[float]:
    """Of every network, the median over its epochs."""
    networks: dict[tuple[str, str], list[float]] = {}
    with curves.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            networks.setdefault((row["seed"], row["member"]), []).append(float(row["seconds"]))
    return [median(seconds) for seconds in networks.values()]


def training_cost(
    curves: Path, about: Mapping[str, Any], epochs: int, clips: int, beside: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """What the trainings of one model cost, from its curves.csv and its teacher.json or student.json.

    Args:
        curves: its curves.csv.
        about: its teacher.json or student.json.
        epochs: of each training.
        clips: that it learns from.
        beside: teacher.json of each teacher whose network is trained beside its own, as a branch.

    Returns:
        networks: how many were trained, over all seeds; seconds: of all of them, as measured when each was trained,
        wherever that was; seconds_per_seed: seed → the same of that seed; clips: shown, over all of them, those
        without its modality too; gmacs: 10⁹ multiply-adds of their forward passes, GMACs of a view × clips shown.
    """
    per_seed: dict[str, float] = {}
    networks = set()
    with curves.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            networks.add((row["seed"], row["member"]))
            per_seed[row["seed"]] = per_seed.get(row["seed"], 0.0) + float(row["seconds"])
    members = about["members"]
    shown = len(networks) * epochs * clips * ((members - 1) / members if members > 1 else 1)
    return {
        "networks": len(networks),
        "seconds": sum(per_seed.values()),
        "seconds_per_seed": per_seed,
        "clips": shown,
        "gmacs": shown * sum(each["gmacs"] / each["members"] for each in (about, *beside)),
    }
