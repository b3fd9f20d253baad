"""`python -m tasks STAGE [ITEM]`: runs one stage of dvc.yaml in the clone that is the current folder.

DVC calls this; a person may too. A stage whose training has several `devices` runs as so many processes, each of which
comes here again (`tasks.launch`). Exit codes: 0 done; 2 something a person must mend; 75 a disk, network or store
failed and trying again may help; 1 a defect of ours, with its traceback.
"""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import ranks
from tasks.atomic import alone
from tasks.errors import InfrastructureError, UserError
from tasks.layout import Workspace
from tasks.mortal import die_with_parent
from tasks.settings import settings
from tasks.stores.faults import of_machine

if TYPE_CHECKING:
    from tasks.params import Params

STAGES = (
    "ingest",
    "extract",
    "train_teacher",
    "teach",
    "fuse",
    "teach_fused",
    "specialise",
    "distill",
    "evaluate",
    "register",
)
ENSURE = "ensure_registered"


def main(arguments: list[str]) -> int:
    """Run the stage named by the command line; the exit code."""
    if not arguments or arguments[0] not in (*STAGES, ENSURE) or len(arguments) > 2:
        print(f"usage: python -m tasks STAGE [ITEM], STAGE one of {', '.join(STAGES)}", file=sys.stderr)
        return UserError.exit_code
    stage, item = arguments[0], arguments[1] if len(arguments) == 2 else None
    workspace = Workspace(Path.cwd())
    if ranks.under_torchrun():
        return _as_rank(stage, item, workspace)
    try:
        with _alone(workspace, stage, item):
            return _run(stage, item, workspace)
    except (UserError, InfrastructureError, OSError, RuntimeError) as error:
        known = _known(error)
        if known is None:
            raise
        print(f"error: {known}", file=sys.stderr)
        return known.exit_code


def _known(error: Exception) -> UserError | InfrastructureError | None:
    """The error as one that a person or a scheduler can act on; None for a defect of ours."""
    if isinstance(error, UserError | InfrastructureError):
        return error
    if failed := of_machine(error):
        return failed
    if isinstance(error, RuntimeError) and "torch" in sys.modules:
        from tasks.inference import is_gpu_failure, is_out_of_memory

        first = str(error).partition("\n")[0]
        if is_gpu_failure(error):
            return InfrastructureError(
                f"a GPU failed: {first}\n"
                "  → run again: finished epochs are still there; nvidia-smi and the kernel's log (Xid) say what it was"
            )
        if is_out_of_memory(error):
            return UserError(
                f"a GPU's memory is full: {first.partition(' Of the allocated memory')[0]}",
                remedy="lower `batch` of its training, or set UNDERSTUDY_SLOTS=1 where several stages share one GPU; "
                "finished epochs are still there",
            )
    return None


def _run(stage: str, item: str | None, workspace: Workspace) -> int:
    """Run a stage, by itself or as several ranks; the exit code."""
    from tasks.params import load

    params = load(workspace.params)
    devices = params.devices(stage, item)
    if devices > 1:
        from tasks.launch import launch

        return launch(devices, ["-m", "tasks", stage, *([] if item is None else [item])])
    _work(stage, item, params, workspace)
    return 0


def _work(stage: str, item: str | None, params: "Params", workspace: Workspace) -> None:
    from tasks.runtime import prepare

    prepare(params.threads)
    if stage == ENSURE:
        from tasks.register import register

        register(params, workspace)
        return
    importlib.import_module(f"tasks.{stage}").run(params, workspace, item)


def _as_rank(stage: str, item: str | None, workspace: Workspace) -> int:
    """Run a stage as one of several ranks, whose launcher holds the stage's lock and tells its errors."""
    from tasks.inference import device
    from tasks.launch import record
    from tasks.params import load

    die_with_parent()
    try:
        with ranks.joined(device()):
            _work(stage, item, load(workspace.params), workspace)
    except Exception as error:
        known = _known(error)
        record(known or error)
        return 1 if known is None else known.exit_code
    return 0


@contextmanager
def _alone(workspace: Workspace, stage: str, item: str | None) -> Iterator[None]:
    """Hold the stage's lock, and die with the parent.

    A killed `dvc repro` would else leave its stage running, and the next one would write beside it.
    """
    die_with_parent()
    name = stage if item is None else f"{stage}@{item.replace('/', '_')}"
    with alone(workspace.root / settings().work / "locks" / f"{name}.lock"):
        yield


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products on CUDA
    sys.exit(main(sys.argv[1:]))
