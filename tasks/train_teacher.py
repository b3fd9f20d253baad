"""Stage `train_teacher@<teacher>`: a modality and labels in, a committee of cross-fitted networks out."""

from pathlib import Path

from models.distill.supervised import Supervised
from models.network import Network
from tasks.atomic import new_folder, write_json
from tasks.clips import Clip, folds, read_clips
from tasks.errors import UserError
from tasks.layout import Workspace
from tasks.learner import Learner, write_curves
from tasks.networks import Spec
from tasks.params import Params
from tasks.precision import try_bfloat16
from tasks.shards import Shards
from tasks.training import Epoch


def run(params: Params, workspace: Workspace, item: str | None) -> None:
    """Train the teacher `item` for every seed and write artifacts/teachers/<item>."""
    assert item is not None
    train_teacher(
        teacher_learner(params, workspace, item),
        read_clips(workspace.index, "train"),
        workspace.teacher(item),
    )


def teacher_learner(params: Params, workspace: Workspace, name: str) -> Learner:
    """What the networks of teacher `name` share."""
    teacher = params.teachers[name]
    shards = Shards(workspace.modality(teacher.modality))
    modality = params.modalities[teacher.modality]
    validation = read_clips(workspace.index, "val")
    return Learner(
        params=params,
        workspace=workspace,
        stage="train_teacher",
        name=name,
        spec=Spec(
            modality=teacher.modality,
            modality_params=modality,
            views=params.views,
            heads=params.data.heads,
            backbone=teacher.backbone,
        ),
        training=teacher.training,
        method=Supervised(kind="supervised", head_weights=None, label_smoothing=0.0),
        shards=shards,
        validation=[clip for clip in validation if modality.covers(shards.rows(clip.video), clip)],
    )


NO_FOLD = -1


def fold_of(learner: Learner, clips: list[Clip]) -> list[int]:
    """The fold of every clip's group; member k of the committee never sees fold k (with one fold: all).

    Folds are made of the labelled clips. Groups without any are in no fold (NO_FOLD): no member ever sees them.

    Raises:
        UserError: fewer groups than folds.
    """
    count = learner.params.folds(learner.name)
    try:
        fold = folds([clip for clip in clips if clip.labelled], count)
    except ValueError as error:
        raise UserError(
            f"folds of teacher {learner.name}: {error}",
            file=learner.workspace.params,
            remedy="lower folds, or give annotations.csv a finer `group`",
        ) from None
    return [fold.get(clip.group, NO_FOLD) for clip in clips]


def member_clips(learner: Learner, clips: list[Clip], member: int) -> list[Clip]:
    """The clips that member `member` of the committee learns from: not of its fold, and with the modality."""
    assigned, seen = fold_of(learner, clips), learner.seen(clips)
    alone = learner.params.folds(learner.name) == 1
    return [
        clip
        for clip, fold, there in zip(clips, assigned, seen, strict=True)
        if there and (alone or fold != member)
    ]


def train_teacher(learner: Learner, clips: list[Clip], out: Path) -> None:
    """Train the committee of every seed on the training `clips` and write the folder `out`."""
    params, teacher = learner.params, learner.params.teachers[learner.name]
    histories: dict[tuple[int, int], list[Epoch]] = {}
    validation = {}
    learner.check()
    try_bfloat16(learner)
    with new_folder(out) as folder:
        for seed in params.seeds:
            members: list[Network] = []
            for member in range(teacher.folds):
                taught = member_clips(learner, clips, member)
                if not taught:
                    raise UserError(
                        f"no training clip outside fold {member} has the modality {teacher.modality}",
                        remedy=f"lower teachers.{learner.name}.folds, or remove the teacher",
                    )
                network, histories[seed, member] = learner.train(taught, None, seed, member)
                members.append(network)
            committee, validation[str(seed)] = learner.finish(members)
            seed_folder = folder / f"seed-{seed}"
            seed_folder.mkdir()
            committee.save(seed_folder)
        cost = learner.cost()
        write_curves(folder / "curves.csv", histories)
        write_json(
            folder / "teacher.json",
            {
                "name": learner.name,
                "role": "teacher",
                "method": "supervised",
                "inference_modalities": [teacher.modality],
                "seeds": params.seeds,
                "members": teacher.folds,
                "params_count": cost["params_count"] * teacher.folds,
                "gmacs": cost["gmacs"] * teacher.folds,
                "validation": validation,
                "chosen": {},
            },
        )
