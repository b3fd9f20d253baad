"""`python -m tasks STAGE [ITEM]`: runs one stage of dvc.yaml in the clone that is the current folder.

DVC calls this; a person may too. Exit codes: 0 done; 2 something a person must mend; 75 a disk, network or store
failed and trying again may help; 1 a defect of ours, with its traceback.
"""

import errno
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.atomic import alone
from tasks.errors import InfrastructureError, UserError
from tasks.layout import Workspace
from tasks.mortal import die_with_parent
from tasks.settings import settings

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
    try:
        with _alone(workspace, stage, item):
            _run(stage, item, workspace)
    except (UserError, InfrastructureError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"error: the disk is full ({error.filename or workspace.root}); nothing half-written was kept\n"
            "  → make room and run again: finished epochs and shards are still there",
            file=sys.stderr,
        )
        return InfrastructureError.exit_code
    return 0


def _run(stage: str, item: str | None, workspace: Workspace) -> None:
    from tasks.params import load

    params = load(workspace.params)
    _fix_arithmetic(params.threads)
    if stage == ENSURE:
        from tasks.register import register

        register(params, workspace)
        return
    importlib.import_module(f"tasks.{stage}").run(params, workspace, item)


def _fix_arithmetic(threads: int) -> None:
    """The same sums in the same order on every run: thread count by params, deterministic kernels."""
    import cv2
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    cv2.setNumThreads(1)


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
