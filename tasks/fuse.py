"""Stage `fuse@<fused>`: trained teachers of one modality each in, one teacher that sees them all out.

Three ways to put them together (Du et al., ICML 2023, arXiv 2305.01233), told apart on validation:

- ume: the mean of their calibrated predictions, nothing trained;
- head: a joint classifier on their frozen features;
- umt: all trained together, each branch started from its teacher and held to the teacher's features.

Everything is done fold by fold: member k is made of the members k of the teachers, none of which saw fold k. So its
teachings on fold k are as out-of-fold as theirs.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from models.distill.supervised import Supervised
from models.distill.umt import UMT
from models.fusion import FusedNetwork, LateFusion, MeanHeads
from models.network import Network
from tasks.atomic import new_folder, write_json
from tasks.clips import Clip, read_clips
from tasks.errors import UserError
from tasks.inference import training_view_logits
from tasks.layout import Workspace
from tasks.learner import Learner, Lessons, write_curves
from tasks.networks import Committee, Spec
from tasks.params import FusedTeacher, Params
from tasks.precision import try_bfloat16
from tasks.senses import Senses, SharedShards
from tasks.shards import Shards
from tasks.train_teacher import member_clips, teacher_learner
from tasks.training import Epoch

Kind = Literal["ume", "head", "umt"]
KINDS: tuple[Kind, ...] = ("ume", "head", "umt")


@dataclass(frozen=True)
class Candidate:
    """One way to put the teachers together, for one seed.

    Attributes:
        committee: its networks, calibrated on validation.
        figures: head → figure → value, on validation.
        histories: (seed, member) → what its trainings came to.
    """

    committee: Committee
    figures: dict[str, dict[str, float]]
    histories: dict[tuple[int, int], list[Epoch]]


def run(params: Params, workspace: Workspace, item: str | None) -> None:
    """Make the fused teacher `item` for every seed and write artifacts/fused/<item>."""
    assert item is not None
    learner = fused_learner(params, workspace, item)
    fuse(learner, params.fused[item], read_clips(workspace.index, "train"), workspace.fused(item))


def fused_learner(params: Params, workspace: Workspace, name: str) -> Learner:
    """What the networks of the fused teacher `name` share."""
    teachers = [params.teachers[teacher] for teacher in params.fused[name].teachers]
    names = [teacher.modality for teacher in teachers]
    senses = Senses(kind="senses", of={modality: params.modalities[modality] for modality in names})
    shards = SharedShards({modality: Shards(workspace.modality(modality)) for modality in names})
    return Learner(
        params=params,
        workspace=workspace,
        stage="fuse",
        name=name,
        spec=Spec(
            modality="+".join(names),
            modality_params=senses,
            views=params.views,
            heads=params.data.heads,
            backbone=LateFusion(
                kind="fused",
                branches={
                    # Their weights come from the teachers; nothing to fetch or find.
                    teacher.modality: teacher.backbone.model_copy(update=_untrained(teacher.backbone))
                    for teacher in teachers
                },
                head="joint",
                dropout=params.fused[name].dropout,
                modality_dropout=0.0,
            ),
        ),
        training=params.fused[name].training,
        method=Supervised(kind="supervised", head_weights=None, label_smoothing=0.0),
        shards=shards,
        validation=[
            clip
            for clip in read_clips(workspace.index, "val")
            if senses.covers(shards.rows(clip.video), clip)
        ],
    )


def _untrained(backbone: Any) -> dict[str, bool]:
    return {"pretrained": False} if hasattr(backbone, "pretrained") else {}


def fuse(learner: Learner, fused: FusedTeacher, clips: list[Clip], out: Path) -> None:
    """Make the fused teacher from the teachers of every seed and write the folder `out`."""
    params, workspace = learner.params, learner.workspace
    kinds: tuple[Kind, ...] = KINDS if fused.kind == "auto" else (fused.kind,)
    measured: dict[str, dict[str, float]] = {}
    histories: dict[tuple[int, int], list[Epoch]] = {}
    validation = {}
    learner.check()
    try_bfloat16(learner)
    with new_folder(out) as folder:
        for seed in params.seeds:
            branches = {
                params.teachers[teacher].modality: Committee.load(workspace.teacher(teacher) / f"seed-{seed}")
                for teacher in fused.teachers
            }
            made = {kind: make(learner, kind, branches, clips, seed) for kind in kinds}
            if not measured:  # once, on the first seed: a choice a seed would be a teacher of its own
                measured = {kind: candidate.figures["action"] for kind, candidate in made.items()}
                kinds = (min(kinds, key=lambda kind: measured[kind]["nll"]),)
                _tell(learner.name, measured, kinds[0])
            chosen = made[kinds[0]]
            histories |= chosen.histories
            validation[str(seed)] = chosen.figures
            (folder / f"seed-{seed}").mkdir()
            chosen.committee.save(folder / f"seed-{seed}")
        cost = replace(learner, spec=chosen.committee.spec).cost()
        write_curves(folder / "curves.csv", histories)
        write_json(
            folder / "teacher.json",
            {
                "name": learner.name,
                "role": "teacher",
                "method": kinds[0],
                "inference_modalities": list(branches),
                "seeds": params.seeds,
                "members": len(chosen.committee.members),
                "params_count": cost["params_count"] * len(chosen.committee.members),
                "gmacs": cost["gmacs"] * len(chosen.committee.members),
                "validation": validation,
                "chosen": {"kind": kinds[0], "seed": params.seeds[0], "validation": measured},
            },
        )


def _tell(name: str, measured: Mapping[str, Mapping[str, float]], chosen: str) -> None:
    told = ", ".join(
        f"{kind} NLL {figures['nll']:.4f} top-1 {figures['top1']:.3f}" for kind, figures in measured.items()
    )
    print(f"fuse {name}: validation {told}; {'chosen ' if len(measured) > 1 else ''}{chosen}")


def make(
    learner: Learner, kind: Kind, branches: Mapping[str, Committee], clips: list[Clip], seed: int
) -> Candidate:
    """Put the teachers of one seed together in one way.

    Args:
        branches: modality → its teacher.
        clips: of the training split.
    """
    learner = _for(learner, kind)
    members, histories = [], {}
    for member in range(len(next(iter(branches.values())).members)):
        own = {modality: teacher.alone(member) for modality, teacher in branches.items()}
        if kind == "ume" and len(next(iter(branches.values())).members) > 1:
            own = {
                modality: _calibrated_alone(learner, modality, teacher) for modality, teacher in own.items()
            }
        network = joined(learner.spec, own, member, seed)
        if kind == "head":
            network.backbone.freeze()  # type: ignore[operator]
        if kind != "ume":
            taught = member_clips(learner, clips, member)
            if not taught:
                raise UserError(
                    f"no training clip outside fold {member} has any of {learner.spec.modality}",
                    remedy=f"lower the folds of the teachers of fused.{learner.name}, or remove it",
                )
            lessons = _features(learner, network, taught, seed) if kind == "umt" else None
            network, histories[seed, member] = learner.train(taught, lessons, seed, member, begin=network)
        members.append(network)
    committee, figures = learner.finish(members)
    return Candidate(committee, figures, histories)


def _for(learner: Learner, kind: Kind) -> Learner:
    """The learner with what this way of fusing builds, and its method."""
    if kind == "ume":
        backbone = learner.spec.backbone.model_copy(update={"head": "mean"})
        return replace(learner, spec=learner.spec.model_copy(update={"backbone": backbone}))
    if kind == "head":
        return learner
    weight = learner.params.fused[learner.name].feature_weight
    module = learner.spec.empty_network().backbone
    assert isinstance(module, FusedNetwork)
    return replace(learner, method=UMT(kind="umt", feature_weight=weight, widths=module.widths))


def _calibrated_alone(learner: Learner, modality: str, teacher: Committee) -> Committee:
    """One network of a teacher with its own temperature: it is calibrated otherwise than the mean of several."""
    params = learner.params
    name = next(
        name for name in params.fused[learner.name].teachers if params.teachers[name].modality == modality
    )
    return teacher_learner(params, learner.workspace, name).finish(teacher.members)[0]


def joined(spec: Spec, branches: Mapping[str, Committee], member: int, seed: int) -> Network:
    """A fused network whose branches are the single networks of `branches`.

    A joint classifier is drawn from (seed, member); the branches' own heads come with their temperatures.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, member, 2]).generate_state(1)[0]))
    network = spec.empty_network()
    assert isinstance(network.backbone, FusedNetwork)
    for number, (modality, teacher) in enumerate(branches.items()):
        (own,) = teacher.members
        network.backbone.branch(modality).load_state_dict(own.backbone.state_dict())
        if isinstance(network.heads, MeanHeads):
            network.heads.branch(modality).load_state_dict(own.heads.state_dict())
            network.heads.temperature[number] = torch.tensor(
                [teacher.temperature[head] for head in network.heads.classes]
            )
    return network.eval()


def _features(learner: Learner, network: Network, clips: list[Clip], seed: int) -> Lessons:
    """What the branches, as they came from the teachers, make of every training view of `clips`.

    They are frozen and a view is a pure function of (clip, seed, number), so this is computed once and not in every
    epoch.
    """
    width = int(network.backbone.width)  # type: ignore[arg-type]
    features = np.zeros((len(clips), learner.spec.views.per_clip, width), np.float16)
    committee = Committee(learner.spec, [network], {})
    title = f"features of {learner.name} seed {seed}"
    training_view_logits(committee, learner.shards, clips, seed, features=features, title=title)
    network.cpu()
    content = hashlib.sha256(features.data).hexdigest()
    return Lessons({}, np.ones(len(clips), bool), {}, content, features)
