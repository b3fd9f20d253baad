"""Stage `teach@<teacher>`: what a teacher says of every training view, out-of-fold and calibrated.

A training view is a pure function of (clip, seed, number), so this bank is computed once and reused by every
student, method and sweep. A clip's teaching comes from the one network that never saw the clip's group; with
folds: 1 there is none, and the teaching is what the network memorised (methods.md, defect 2). A group in which
nobody labelled a clip was seen by no network: its teachings are the mean of all. Where that one network saw no other
clip of a class either, as of one that a single group holds, it would be sure of another: of such clips it says nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save

from models.calibration import fit_temperature
from tasks.atomic import new_folder, write_json
from tasks.clips import NO_LABEL, Clip, label_indices, read_clips, taught_clips
from tasks.errors import UserError
from tasks.inference import training_view_logits
from tasks.layout import Workspace
from tasks.learner import Hints, Learner
from tasks.networks import Committee
from tasks.params import Params
from tasks.train_teacher import NO_FOLD, fold_of, teacher_learner


@dataclass(frozen=True)
class Teachings:
    """The bank of one teacher and seed: calibrated logits.

    Attributes:
        train: head → float32 (clips, views, classes), for the training clips in the order of the index, then for the
            unlabelled ones.
        train_present: bool (clips,): the clip has the teacher's modality, and who speaks of it knows its classes.
        val: head → float32 (clips, views, classes), for the validation clips: what a mix is weighed and calibrated on,
            hence views like those that a lesson is made of.
        val_present: bool (clips,).
        hints: what the networks made of every moment of the training views, where params ask for it (and `load` was
            asked).
    """

    train: dict[str, np.ndarray]
    train_present: np.ndarray
    val: dict[str, np.ndarray]
    val_present: np.ndarray
    hints: Hints | None

    def save(self, file: Path) -> None:
        """Write to one safetensors file."""
        tensors = {f"train/{head}": values for head, values in self.train.items()}
        tensors |= {f"val/{head}": values for head, values in self.val.items()}
        tensors |= {"train_present": self.train_present, "val_present": self.val_present}
        if self.hints is not None:
            tensors |= {"hints_moments": self.hints.moments, "hints_member": self.hints.member}
        file.write_bytes(save(tensors))

    @classmethod
    def load(cls, file: Path, hints: bool = False) -> "Teachings":
        """Read what `save` wrote; hints, which are far larger than all else, where they are wanted."""
        with safe_open(file, "numpy") as stored:
            names = [name for name in stored.keys() if hints or not name.startswith("hints_")]  # noqa: SIM118
            tensors = {name: stored.get_tensor(name) for name in names}

        def part(split: str) -> dict[str, np.ndarray]:
            prefix = f"{split}/"
            return {
                name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
            }

        present = tensors["train_present"]
        given = None
        if "hints_moments" in tensors:
            member = tensors["hints_member"]
            given = Hints(tensors["hints_moments"], member, present & (member != NO_FOLD))
        return cls(part("train"), present, part("val"), tensors["val_present"], given)


def run(params: Params, workspace: Workspace, item: str | None) -> None:
    """Write artifacts/teachings/<item> for every seed."""
    assert item is not None
    with new_folder(workspace.teachings / item) as folder:
        learner = teacher_learner(params, workspace, item)
        write_teachings(learner, workspace.teacher(item), folder, params.teachers[item].hints)


def write_teachings(learner: Learner, trained: Path, folder: Path, hints: bool) -> None:
    """Write what a teacher says, for every seed, into `folder`, which exists.

    Args:
        learner: what its networks share.
        trained: the folder of its networks.
        hints: see `teach`.
    """
    params, index = learner.params, learner.workspace.index
    train, validation = taught_clips(index), read_clips(index, "val")
    for seed in params.seeds:
        committee = Committee.load(trained / f"seed-{seed}")
        said = teach(learner, committee, train, validation, seed, hints)
        said.save(folder / f"seed-{seed}.safetensors")
        print(f"teach {learner.name}: {len(train)} clips × {params.views.per_clip} views, seed {seed}")
    write_clip_names(folder, train, validation)


def write_clip_names(folder: Path, train: list[Clip], validation: list[Clip]) -> None:
    """Write clips.json: which clips the teachings of a folder are of, in their order."""
    names = {"train": [clip.clip_id for clip in train], "val": [clip.clip_id for clip in validation]}
    write_json(folder / "clips.json", names)


def teach(
    learner: Learner,
    committee: Committee,
    train: list[Clip],
    validation: list[Clip],
    seed: int,
    hints: bool,
) -> Teachings:
    """What the committee says of the views of the clips `train` (see `taught_clips`) and `validation`.

    Out-of-fold predictions get a temperature of their own, fitted on themselves: a single network is calibrated
    otherwise than the committee's mean.

    Args:
        hints: keep the features of every moment too.
    """
    member = np.array(fold_of(learner, train))
    unseen, seen, given = _by_who_never_saw(learner, committee, train, member, seed, hints, {})
    said, heard = training_view_logits(committee, learner.shards, validation, seed)
    told = seen & _knows(train, seen, member)
    if given is not None:
        given = replace(given, present=given.present & told)
    raw = Teachings(unseen, told, said, heard, given)
    return _calibrated(learner, raw, train, member, committee.temperature)


def teach_beside(
    learner: Learner,
    committee: Committee,
    speakers: Mapping[str, tuple[Learner, Mapping[str, float]]],
    train: list[Clip],
    validation: list[Clip],
    seed: int,
) -> dict[str, Teachings]:
    """What `teach` gives of each of those who speak beside the committee's networks, from one look at every view.

    Args:
        learner: what the committee's networks share.
        speakers: name → a learner whose clips they see, and the temperature of each head.
    """
    member = np.array(fold_of(learner, train))
    unseen, said = (
        {name: _no_logits(committee, clips) for name in speakers} for clips in (train, validation)
    )
    _by_who_never_saw(learner, committee, train, member, seed, False, unseen)
    training_view_logits(committee, learner.shards, validation, seed, beside=said)
    taught = {}
    for name, (own, temperature) in speakers.items():
        seen = own.seen(train)
        told = seen & _knows(train, seen, member)
        raw = Teachings(unseen[name], told, said[name], own.seen(validation), None)
        taught[name] = _calibrated(learner, raw, train, member, temperature)
    return taught


def _knows(train: Sequence[Clip], seen: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Whether the network that speaks of each clip has learned from others of its classes, bool (clips,).

    Args:
        seen: bool (clips,), which clips the networks can learn from if they are labelled.
        member: int64 (clips,), who speaks; with one fold the network that has learned from the clip itself.
    """
    knows = np.ones(len(train), bool)
    folds = np.unique(member[member != NO_FOLD])
    for fold in folds if len(folds) > 1 else ():
        learned = {
            label
            for clip, there, own in zip(train, seen, member, strict=True)
            if clip.labelled and there and own != fold
            for label in clip.labels.items()
        }
        for row in np.flatnonzero(member == fold).tolist():
            knows[row] = not train[row].labelled or learned.issuperset(train[row].labels.items())
    return knows


def _calibrated(
    learner: Learner, raw: Teachings, train: list[Clip], member: np.ndarray, temperature: Mapping[str, float]
) -> Teachings:
    """Raw logits over the temperature of who said them: of training clips a single network out-of-fold, else all.

    Args:
        raw: of the clips `train`.
        member: int64 (clips,), who speaks of each training clip.
        temperature: head → that of all networks together.
    """
    labels = label_indices(train, learner.params.data.heads)
    calibrated = {}
    for head, values in raw.train.items():
        divisor = np.full(len(train), temperature[head], np.float32)
        if learner.params.folds(learner.name) > 1:
            rows = raw.train_present & (labels[head] != NO_LABEL)
            if not rows.any():
                raise UserError(
                    f"teacher {learner.name} can say nothing of any training clip: in none of the other folds is "
                    f"there a clip of the same {head}",
                    file=learner.workspace.params,
                    remedy=f"teachers.{learner.name}.folds: 1, or more groups of each class",
                )
            flat = torch.from_numpy(values[rows].reshape(-1, values.shape[-1]))
            views = values.shape[1]
            truth = torch.from_numpy(labels[head][rows]).repeat_interleave(views)
            divisor[member != NO_FOLD] = fit_temperature(flat, truth, views)
        calibrated[head] = values / divisor[:, None, None]
    val = {head: values / np.float32(temperature[head]) for head, values in raw.val.items()}
    return replace(raw, train=calibrated, val=val)


def _no_logits(committee: Committee, clips: Sequence[Clip]) -> dict[str, np.ndarray]:
    """Head → zeros (clips, views, classes)."""
    views = committee.spec.views.per_clip
    return {
        head: np.zeros((len(clips), views, len(classes)), np.float32)
        for head, classes in committee.spec.heads.items()
    }


def _by_who_never_saw(
    learner: Learner,
    committee: Committee,
    clips: list[Clip],
    member: np.ndarray,
    seed: int,
    wanted: bool,
    beside: Mapping[str, dict[str, np.ndarray]],
) -> tuple[dict[str, np.ndarray], np.ndarray, Hints | None]:
    """Raw logits of every training view, which clips were seen, and hints.

    They come from the network `member` of each clip, where it is NO_FOLD from all, and then without hints.

    Args:
        wanted: hints are.
        beside: filled as in `training_view_logits`.
    """
    views = committee.spec.views
    logits = _no_logits(committee, clips)
    seen = np.zeros(len(clips), bool)
    width = int(committee.members[0].backbone.width) if wanted else 0  # type: ignore[arg-type]
    moments = np.zeros((len(clips), views.per_clip, views.frames, width), np.float16)
    for fold in np.unique(member):
        rows = np.flatnonzero(member == fold)
        shown = [clips[row] for row in rows]
        speaker = committee if fold == NO_FOLD else committee.alone(fold)
        own = np.zeros((len(rows), *moments.shape[1:]), np.float32) if wanted and fold != NO_FOLD else None
        others = {name: _no_logits(committee, shown) for name in beside}
        said, there = training_view_logits(
            speaker,
            learner.shards,
            shown,
            seed,
            moments=own,
            beside=others,
            title=f"teach {learner.name} seed {seed}",
        )
        seen[rows] = there
        for arrays, found in [(logits, said), *((beside[name], others[name]) for name in beside)]:
            for head, values in found.items():
                arrays[head][rows] = values
        if own is not None:
            moments[rows[there]] = _standardised(own[there])
    hints = Hints(moments, member, seen & (member != NO_FOLD)) if wanted else None
    return logits, seen, hints


def _standardised(moments: np.ndarray) -> np.ndarray:
    """Every feature (…, width) to mean 0 and deviation 1; one that never changes to 0."""
    flat = moments.reshape(-1, moments.shape[-1])
    # In float64: numpy adds one row after another, and a fold of EPIC has a million.
    mean, deviation = (of(axis=0, dtype=np.float64).astype(np.float32) for of in (flat.mean, flat.std))
    return (moments - mean) / (deviation + np.float32(1e-6))


def load_bank(
    folder: Path,
    teachers: list[str],
    seed: int,
    train: list[Clip],
    validation: list[Clip],
    hints: bool = False,
) -> dict[str, Teachings]:
    """The teachings of several teachers, checked to be of just these clips; with their hints if wanted.

    Raises:
        UserError: a teacher's folder is missing or speaks of other clips.
    """
    bank = {}
    for name in teachers:
        file = folder / name / f"seed-{seed}.safetensors"
        if not file.exists():
            raise UserError("no teachings", file=file, remedy="run `dvc repro`, which makes them first")
        clips = json.loads((folder / name / "clips.json").read_text(encoding="utf-8"))
        if clips != {"train": [c.clip_id for c in train], "val": [c.clip_id for c in validation]}:
            remedy = "run `dvc repro`, which makes them anew first"
            raise UserError("these teachings are of other clips", file=file, remedy=remedy)
        bank[name] = Teachings.load(file, hints)
    return bank
