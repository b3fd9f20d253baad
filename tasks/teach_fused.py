"""Stage `teach_fused@<fused>`: what a fused teacher says of every training view, as `teach` of any other."""

import shutil

from tasks.atomic import new_folder
from tasks.fuse import fused_learner
from tasks.layout import Workspace
from tasks.params import Params
from tasks.teach import write_teachings


def run(params: Params, workspace: Workspace, item: str | None) -> None:
    """Write artifacts/teachings/<item> for every seed."""
    assert item is not None
    with new_folder(workspace.teachings / item) as folder:
        write_teachings(fused_learner(params, workspace, item), workspace.fused(item), folder, hints=False)
        # `evaluate` waits for this folder and not for the teacher's own, which is not there where none is fused.
        shutil.copyfile(workspace.fused(item) / "teacher.json", folder / "teacher.json")
