"""Stage `teach_fused@<fused>`: what a fused teacher says of every training view, as `teach` of any other."""

import shutil

from tasks.atomic import new_folder
from tasks.clips import read_clips, taught_clips
from tasks.fuse import fused_learner
from tasks.layout import Workspace
from tasks.networks import Committee
from tasks.params import Params
from tasks.teach import teach, write_clip_names


def run(params: Params, workspace: Workspace, item: str | None) -> None:
    """Write artifacts/teachings/<item> for every seed."""
    assert item is not None
    learner = fused_learner(params, workspace, item)
    train, validation = taught_clips(workspace.index), read_clips(workspace.index, "val")
    with new_folder(workspace.teachings / item) as folder:
        for seed in params.seeds:
            committee = Committee.load(workspace.fused(item) / f"seed-{seed}")
            said = teach(learner, committee, train, validation, seed, hints=False)
            said.save(folder / f"seed-{seed}.safetensors")
            print(f"teach_fused {item}: {len(train)} clips × {params.views.per_clip} views, seed {seed}")
        write_clip_names(folder, train, validation)
        # `evaluate` waits for this folder and not for the teacher's own, which is not there where none is fused.
        shutil.copyfile(workspace.fused(item) / "teacher.json", folder / "teacher.json")
