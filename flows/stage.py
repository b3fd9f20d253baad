"""The flow `stage`: one stage on a worker, in the worker's own clone, at the commit of the run that asks for it.

The other end of `flows.workers`. What it needs and makes travels through the DVC remote; how it went, in the flow
run's state; what dvc.lock is to say of it, in an artifact.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from prefect import State, flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed, Failed

from flows import disk, lockfile, remote
from flows.clone import Clone, of_flow
from flows.executor import StageFailed
from flows.local import LocalExecutor
from tasks.errors import InfrastructureError, UserError
from tasks.stores.faults import of_machine

ENTRY = "dvc-lock"
"""Key of the artifact that holds the stage's entry of dvc.lock."""
_FAILED = re.compile(r"exit code (\d+): (.*)", re.DOTALL)
_FENCED = re.compile(r"```yaml\n(.*)```", re.DOTALL)
_NO_DEVICE = "this worker's device computes nothing any more"
_ANSWER_S = 120.0
"""A GPU that has not computed anything for so long, its process's start included, hangs."""


def leave(flow: Any, flow_run: Any, state: State[Any]) -> None:
    """End the worker that we run in, where its device computes nothing any more.

    It would take every stage that is due, as it is always free, and fail it. Whoever restarts it
    (systemd, Compose, Kubernetes) does so until the device computes again: start-worker asks first.
    """
    if _NO_DEVICE not in (state.message or ""):
        return
    for process in psutil.Process(os.getpid()).parents():
        with suppress(psutil.Error):
            if {"worker", "start", "--work-queue"} <= set(process.cmdline()):
                process.terminate()
                return


@flow(log_prints=True, persist_result=False, result_serializer="json", on_failure=[leave])
def stage(
    stage: str,
    commit: str,
    outputs: Mapping[str, lockfile.Entry] | None = None,
    force: bool = False,
    root: Path | None = None,
    pipeline_run: str = "",
) -> State[Any]:
    """Make one stage for a run that is going on elsewhere.

    Args:
        stage: Its name in dvc.yaml, for example train_teacher@flow.
        commit: The git commit to make it at.
        outputs: Stage before it → its entry of dvc.lock, cmd and outs, where the commit's dvc.lock is older.
        force: Run it even where nothing changed.
        root: The worker's clone. Default: UNDERSTUDY_CLONE, else the current folder.
        pipeline_run: What the run that asks is called in MLflow.

    Returns:
        Completed with a message ran, restored or cached; Failed with one that `told` reads.
    """
    logger = get_run_logger()
    try:
        clone = of_flow(root)
        logger.info("%s in %s at %s", stage, clone.root, commit)
        with clone.only_run() as lock:
            check_out(clone, commit, lock)
            lockfile.merge(clone, outputs or {})
            remote.require(clone)
            remote.take_inputs(clone, stage)
            executor = LocalExecutor(clone, lock)
            # With --pull, DVC also looks among what other machines made of the same inputs.
            options = ["--force"] if force else ["--pull"]
            named = {"UNDERSTUDY_PIPELINE_RUN": pipeline_run}
            outcome = executor.repro(stage, options, logger.info, named)
            remote.push_made(clone, stage)
            made = lockfile.entries(clone)[stage]
    except StageFailed as error:
        if fault := _fault_of_device(clone):
            # the stage's own words name what it was doing when the device failed
            reason = f"{_NO_DEVICE}: {fault}\n{error.reason}"
            return Failed(message=f"exit code {InfrastructureError.exit_code}: {reason}")
        return Failed(message=f"exit code {error.exit_code}: {error.reason}")
    except (UserError, InfrastructureError) as error:
        return Failed(message=f"exit code {error.exit_code}: {error}")
    except Exception as error:
        if of_machine(error) is None and not disk.is_full(error):
            raise
        # another worker has room, and disks that work
        return Failed(message=f"exit code {InfrastructureError.exit_code}: {error}")
    create_markdown_artifact(fenced(made), key=ENTRY, description=f"What dvc.lock says of {stage}")
    return Completed(message=outcome.value)


def _fault_of_device(clone: Clone) -> str:
    """Why the device that the settings name computes nothing; empty where it does."""
    asked = subprocess.Popen(
        [sys.executable, "-m", "tasks.check_device"],
        cwd=clone.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, said = asked.communicate(timeout=_ANSWER_S)
    except subprocess.TimeoutExpired:
        asked.kill()  # and is not waited for: in a driver that hangs no signal reaches it
        return f"it has not answered for {_ANSWER_S:g} s"
    return said.strip() if asked.returncode == UserError.exit_code else ""


def told(state: State[Any]) -> tuple[int, str]:
    """Exit code and reason of a stage's run that ended in any state but Completed.

    Without an exit code of the stage's own, a run that was cancelled has a shell's, and one whose worker died or that
    Prefect lost is infrastructure.
    """
    message = state.message or f"the worker's run is {state.name}"
    if match := _FAILED.fullmatch(message):
        return int(match[1]), match[2]
    if state.is_crashed():
        return InfrastructureError.exit_code, message
    return (130 if state.is_cancelled() or state.is_cancelling() else 1), message


def fenced(entry: lockfile.Entry) -> str:
    """An entry of dvc.lock as Markdown."""
    return f"```yaml\n{yaml.safe_dump(entry, sort_keys=False)}```"


def unfenced(markdown: str) -> lockfile.Entry:
    """The entry that `fenced` wrote.

    Raises:
        InfrastructureError: it is none.
    """
    match = _FENCED.fullmatch(markdown)
    if match is None:
        raise InfrastructureError(f"the artifact {ENTRY} holds no entry of dvc.lock: {markdown[:80]!r}")
    return dict(yaml.safe_load(match[1]))


def check_out(clone: Clone, commit: str, lock: int) -> None:
    """Have the worker's clone be at `commit`, fetched from where it was cloned if need be.

    Args:
        lock: the descriptor of `Clone.only_run`.

    Raises:
        UserError: somebody changed files there, or the commit is nowhere to be had.
        InfrastructureError: git cannot reach where it was cloned from, or the disk is full.
    """
    clone.finish_check_out(lock)
    clone.refuse_changes("a worker's clone is for stages alone: commit and push it, or drop it")
    if not _has(clone, commit):
        clone.fetch()
    if not _has(clone, commit):
        raise UserError(
            f"commit {commit} is not where {clone.root} was cloned from", remedy="push it: git push"
        )
    # What is lost here is dvc.lock, which the commit and the run that asks say anew.
    (clone.root / "dvc.lock").unlink(missing_ok=True)
    clone.check_out(commit, lock)


def _has(clone: Clone, commit: str) -> bool:
    try:
        clone.git("cat-file", "-e", f"{commit}^{{commit}}")
    except UserError:
        return False
    return True
