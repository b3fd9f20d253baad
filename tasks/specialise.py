"""Stage `specialise@<specialists>`: stages 1 and 2 of MST-Distill, and what the specialists say of every training view.

Fold by fold, like everything about teachers: the members k of fused and auxiliary teachers and a student k are trained
together on the clips outside fold k, then masked; the specialists of fold k speak of fold k. So stage 3 is a student
like any other, whose lesson holds out-of-fold predictions of each specialist.

The students of stage 1 are there for the teachers to turn to. They begin as the teachers of RGB do, trained on the same
clips: one that begins anew drags all others down to what it knows (docs/results.md). Stage 3 begins anew. It has one
network, they are as many as folds, and a student that had been trained twice could not be held against the baseline.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from models.distill.mst import Joint, Masks, Specialists, Together
from models.network import Network
from tasks import ranks
from tasks.atomic import new_folder, write_json
from tasks.batches import batches, chunks
from tasks.clips import Clip, read_clips, taught_clips
from tasks.errors import UserError
from tasks.fuse import fused_learner
from tasks.gathering import summed
from tasks.inference import device
from tasks.layout import Workspace
from tasks.learner import Learner, write_curves
from tasks.networks import Committee, Spec
from tasks.params import MODALITY, Params
from tasks.precision import try_bfloat16
from tasks.senses import Senses, SharedShards
from tasks.shards import Shards
from tasks.teach import teach_beside, write_clip_names
from tasks.train_teacher import member_clips, teacher_learner
from tasks.training import Epoch
from tasks.views import evaluation_views


@dataclass(frozen=True)
class MaskLearner(Learner):
    """A learner of masks: it keeps, of each specialist, the one that on validation came nearest to the student."""

    def validate(self, network: Network) -> dict[str, float]:
        """`val_loss`, the sum over specialists of their divergence from the student on validation."""
        assert isinstance(network, Specialists)
        assert isinstance(self.method, Masks)
        views = {clip.clip_id: evaluation_views(clip, self.spec.views) for clip in self.validation}
        places = chunks([(row, 0) for row in range(len(self.validation))], self.training.batch)
        totals = np.zeros(len(network.names))
        for batch in batches(
            self.spec.modality_params,
            self.shards,
            self.validation,
            self.spec.views.size,
            ranks.share(places),
            lambda clip, number: views[clip.clip_id][number],
        ):
            with torch.inference_mode():
                output = network(batch.to(device()).inputs)
                losses = self.method.losses(output)
                totals += [float(losses[name].sum()) / len(self.validation) for name in network.names]
        summed(totals)
        network.keep(dict(zip(network.names, totals.tolist(), strict=True)))
        return {"val_loss": sum(totals.tolist())}


def run(params: Params, workspace: Workspace, item: str | None) -> None:
    """Make the specialists `item` for every seed and write artifacts/specialists/<item>, a folder each."""
    assert item is not None
    entry = params.specialists[item]
    train, validation = taught_clips(workspace.index), read_clips(workspace.index, "val")
    labelled = [clip for clip in train if clip.labelled]
    joint = _joint_learner(params, workspace, item)
    masks = MaskLearner(
        **{
            **vars(joint),
            "method": Masks(kind="mst_masks", temperature=entry.temperature),
            # The best masks are kept by their loss, not an average of all.
            "training": entry.masks.training.model_copy(update={"ema": 0.0}),
        }
    )
    learners = {entry.fused: fused_learner(params, workspace, entry.fused)}
    learners |= {name: teacher_learner(params, workspace, name) for name in entry.auxiliaries}
    for learner in (teacher_learner(params, workspace, entry.student), *learners.values()):
        for training in (entry.training, entry.masks.training):
            try_bfloat16(replace(learner, name=item), training)
    histories: dict[tuple[int, int], list[Epoch]] = {}
    validated: dict[str, dict[str, Any]] = {name: {} for name in entry.names}
    with new_folder(workspace.specialists(item)) as folder:
        for seed in params.seeds:
            teachers = {
                name: Committee.load(
                    (workspace.fused(name) if name in params.fused else workspace.teacher(name))
                    / f"seed-{seed}"
                )
                for name in learners
            }
            students = Committee.load(workspace.teacher(entry.student) / f"seed-{seed}")
            made = []
            for member in range(params.folds(item)):
                network, histories[seed, member] = _specialised(
                    joint, masks, students, teachers, _taught(joint, labelled, member), seed, member
                )
                made.append(network)
            speakers = {}
            for specialist, (name, _) in made[0].names.items():
                committee, figures = learners[name].finish(
                    [network.specialist(specialist) for network in made]
                )
                speakers[specialist] = learners[name], committee.temperature
                validated[specialist][str(seed)] = figures
            together = Committee(joint.spec, [network.settle() for network in made], {})
            for specialist, said in teach_beside(joint, together, speakers, train, validation, seed).items():
                (folder / specialist).mkdir(exist_ok=True)
                said.save(folder / specialist / f"seed-{seed}.safetensors")
        for specialist in entry.names:
            write_clip_names(folder / specialist, train, validation)
        write_curves(folder / "curves.csv", histories)
        write_json(
            folder / "specialists.json", {"name": item, "seeds": params.seeds, "validation": validated}
        )


def _joint_learner(params: Params, workspace: Workspace, name: str) -> Learner:
    """What student and teachers share that are trained together; its spec is the student's, but shows all senses."""
    entry = params.specialists[name]
    seen = dict.fromkeys(
        [MODALITY, *(m for teacher in [entry.fused, *entry.auxiliaries] for m in params.seen_by(teacher))]
    )
    senses = Senses(kind="senses", of={modality: params.modalities[modality] for modality in seen})
    shards = SharedShards({modality: Shards(workspace.modality(modality)) for modality in seen})
    own = params.modalities[MODALITY]
    return Learner(
        params=params,
        workspace=workspace,
        stage="specialise",
        name=name,
        spec=Spec(
            modality=MODALITY,
            modality_params=senses,
            views=params.views,
            heads=params.data.heads,
            backbone=params.teachers[entry.student].backbone,
        ),
        training=entry.training,
        method=Joint(kind="mst_joint", temperature=entry.temperature),
        shards=shards,
        validation=[
            clip
            for clip in read_clips(workspace.index, "val")
            if own.covers(shards.rows(clip.video).get(MODALITY), clip)
        ],
    )


def _taught(joint: Learner, train: list[Clip], member: int) -> list[Clip]:
    """The clips that member `member` learns from: not of its fold, and with what the student sees."""
    own, shards = joint.params.modalities[MODALITY], joint.shards
    assert isinstance(shards, SharedShards)
    found = [
        clip
        for clip in member_clips(joint, train, member)
        if own.covers(shards.rows(clip.video).get(MODALITY), clip)
    ]
    if not found:
        raise UserError(f"no training clip outside fold {member} has {MODALITY} frames")
    return found


def _specialised(
    joint: Learner,
    masks: MaskLearner,
    students: Committee,
    teachers: Mapping[str, Committee],
    clips: list[Clip],
    seed: int,
    member: int,
) -> tuple[Specialists, list[Epoch]]:
    """The specialists of one fold, and what the training of their masks came to."""
    params, entry = joint.params, joint.params.specialists[joint.name]
    begin = Together(
        students.members[member],
        {name: committee.members[member] for name, committee in teachers.items()},
        {name: None if name in params.fused else params.teachers[name].modality for name in teachers},
        MODALITY,
    )
    together, _ = joint.train(clips, None, seed, member, begin=begin)
    assert isinstance(together, Together)
    torch.manual_seed(int(np.random.SeedSequence([seed, member, 4]).generate_state(1)[0]))
    unmasked = Specialists(together, entry.masks.width, entry.masks.attention_heads)
    made, history = masks.train(clips, None, seed, member, begin=unmasked)
    assert isinstance(made, Specialists)
    return made, history
