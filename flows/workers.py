"""The executor of many machines: every stage on whichever worker of its queue is free, in that worker's clone.

The other end of `flows.stage`. A worker's outputs come here through the DVC remote; that DVC then has nothing left to
run is asserted, by the hashes of everything the stage took and made.
"""

import hashlib
import itertools
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import LogSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, TerminationSignal
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelling
from prefect.utilities.urls import url_for

from flows import disk, lockfile, remote, stage
from flows.clone import Clone
from flows.executor import Outcome, StageFailed
from flows.infra import STAGE_DEPLOYMENT, STARTS
from flows.local import LocalExecutor
from flows.plan import Plan, Step
from tasks.errors import InfrastructureError, UserError
from tasks.settings import settings

POLL_S = 2.0
LINES = 200
"""So many lines of a stage are fetched at most, each time it is asked after."""
RESTART_S = 120.0
"""So long may a crashed run take to be started again by an automation, before it is given up."""
PATIENCE_S = 600.0
"""So long may Prefect's server be away while a stage runs."""
WAITING_S = 15.0
"""After so long without a word from a worker, and every time again, that is said."""


class WorkersExecutor:
    """Runs stages of one clone on workers.

    Args:
        clone: the coordinator's: it ends with every output.
        lock: the descriptor of `Clone.only_run`.
        todo: what is to be run.

    Raises:
        UserError: the clone is not at a commit, has no remote that workers see, or Prefect's server has no
            deployment for its stages.
        InfrastructureError: what workers need could not be sent to the remote.
    """

    def __init__(self, clone: Clone, lock: int, todo: Plan):
        self._clone, self._todo = clone, todo
        self._local = LocalExecutor(clone, lock)
        self._stopped, self._told_to_end = threading.Event(), False
        self._lockfile = threading.Lock()
        self._over: set[UUID] = set()
        self._run_id = this_run.id
        self._commit = _commit(clone, todo)
        remote.require(clone)
        _require_deployment()
        due = {step.name for step in todo.due}
        remote.drop_leftovers(clone, due)
        remote.push_inputs(clone, due)
        self._readings = remote.readings(clone)

    @property
    def slots(self) -> int:
        """See `Executor`: all, as the queues decide."""
        return len(self._todo.due)

    def run(self, step: Step, on_line: Callable[[str], None]) -> Outcome:
        """See `Executor`."""
        place: Any = STAGE_DEPLOYMENT
        try:
            asked = self._ask(step)
            place = url_for(asked) or f"flow run {asked.id}"
            ended = self._wait(asked.id, step, on_line)
            state = ended.state
            assert state is not None
            if not state.is_completed():
                self._over.add(ended.id)
                # an automation has started a crashed one again, as often as STARTS says
                spent = state.is_crashed() and ended.run_count >= STARTS
                raise StageFailed(step.name, *stage.told(state), place, given_up=spent)
            self._collect(step, ended.id, on_line)
            return Outcome(state.message or "")
        except (InfrastructureError, httpx.HTTPError, OSError) as error:
            if not _is_infrastructure(error):
                raise
            raise StageFailed(step.name, InfrastructureError.exit_code, str(error), place) from error

    def stop(self) -> None:
        """See `Executor`: whoever waits for a worker has it end the stage.

        But where this process is told to end (its machine or its worker is restarted): its run is started again in
        place, and finds the stages that went on.
        """
        self._told_to_end = isinstance(sys.exception(), TerminationSignal)
        self._stopped.set()
        self._local.stop()

    def _ask(self, step: Step) -> Any:
        """Start the stage's run, or find the one that was started before we were killed and started again."""
        with self._lockfile:
            locked = lockfile.entries(self._clone)
        parameters = {
            "stage": step.name,
            "commit": self._commit,
            "outputs": {
                name: lockfile.outputs(locked[name]) for name in self._readings[step.name] if name in locked
            },
            "force": step.forced,
            "pipeline_run": settings().pipeline_run,
        }
        digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:16]
        for attempt in itertools.count():
            if self._stopped.is_set():
                raise InterruptedError(f"{step.name}: not started, the run was cancelled")
            run: Any = run_deployment(  # a coroutine only where it is awaited
                STAGE_DEPLOYMENT,
                parameters=parameters,
                flow_run_name=step.name,
                timeout=0,
                tags=[step.reason],
                idempotency_key=f"{self._run_id} {digest} {attempt}",
                work_queue_name=step.queue,
                job_variables={
                    "gpus": self._local.devices(step)
                },  # read by pools whose runs are Kubernetes jobs
                as_subflow=True,
            )
            # A crashed one may be started again by an automation; who waited for that in vain asks anew.
            going = not run.state.is_final() or run.state.is_completed() or run.state.is_crashed()
            if going and run.id not in self._over:
                return run
        raise AssertionError("there is always one more attempt")

    def _wait(self, identity: UUID, step: Step, on_line: Callable[[str], None]) -> FlowRun:
        """The stage's run once it has ended, or has crashed and nobody starts it again.

        Raises:
            InterruptedError: this run was cancelled, and now the stage's.
            InfrastructureError: Prefect's server did not answer for `PATIENCE_S`.
        """
        heard = asked = time.monotonic()
        crashed: float | None = None
        read = 0
        with get_client(sync_client=True) as client:
            while not self._stopped.wait(POLL_S):
                try:
                    run = client.read_flow_run(identity)
                    lines = client.read_logs(
                        _logs_of(identity), limit=LINES, offset=read, sort=LogSort.TIMESTAMP_ASC
                    )
                except httpx.HTTPError as error:
                    if not _is_infrastructure(error):
                        raise
                    if time.monotonic() - heard > PATIENCE_S:
                        raise InfrastructureError(f"Prefect's server is away: {error}") from error
                    continue
                heard = time.monotonic()
                state = run.state
                assert state is not None
                read += len(lines)
                for line in lines:
                    on_line(line.message)
                if read == 0 and heard - asked > WAITING_S:
                    asked = heard
                    on_line(f"waits for a worker of queue {step.queue}")
                crashed = (crashed or heard) if state.is_crashed() else None
                again = crashed is not None and run.run_count < STARTS and heard - crashed < RESTART_S
                if state.is_final() and not again:
                    return run
            if not self._told_to_end or _is_cancelled(client.read_flow_run(self._run_id)):
                client.set_flow_run_state(identity, Cancelling())
        raise InterruptedError(f"{step.name}: the run was cancelled")

    def _collect(self, step: Step, identity: UUID, on_line: Callable[[str], None]) -> None:
        """Take what the worker made into this clone.

        Raises:
            InfrastructureError: it did not arrive, or DVC finds that it was made of something else.
        """
        entry = _entry(identity)
        with self._lockfile:  # DVC writes dvc.lock in place, so one at a time
            lockfile.merge(self._clone, {step.name: entry})
            for out in entry.get("outs", []):  # as DVC itself does before a stage is run
                path = Path(os.path.normpath(self._clone.root / out["path"]))
                if not path.is_relative_to(self._clone.root):
                    raise InfrastructureError(
                        f"{step.name} was told to have made {out['path']}, outside the clone"
                    )
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            remote.take_outputs(self._clone, step.name)  # tried again, as `repro --pull` would not
            # --allow-missing would leave it at that. The run-cache is not asked: the entry says which output it is,
            # where a stage was made twice.
            self._local.repro(step.name, ["--pull", "--no-run-cache"], on_line, {}, may_run=False)


def _is_infrastructure(error: Exception) -> bool:
    """Whether trying again may help: a server that is away or at fault itself, a full disk, a store that failed."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.is_server_error
    return isinstance(error, InfrastructureError | httpx.TransportError) or disk.is_full(error)


def _is_cancelled(run: FlowRun) -> bool:
    return run.state is not None and (run.state.is_cancelling() or run.state.is_cancelled())


def _logs_of(identity: UUID) -> LogFilter:
    return LogFilter(flow_run_id=LogFilterFlowRunId(any_=[identity]))


def _entry(identity: UUID) -> lockfile.Entry:
    """What dvc.lock is to say of the stage that a run made."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[stage.ENTRY])),
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[identity])),
        )
    if not found:
        raise InfrastructureError(f"flow run {identity} has no artifact {stage.ENTRY}")
    return stage.unfenced(str(found[-1].data))


def _commit(clone: Clone, todo: Plan) -> str:
    """The commit that workers check out."""
    if changed := clone.uncommitted():
        raise UserError(
            f"workers see commits alone, and not committed: {', '.join(changed[:5])}",
            remedy="git add and git commit it (or .gitignore it), push, and run again",
        )
    for step in todo.due:
        if step.name.endswith(".dvc"):
            remedy = f"dvc commit {step.name}, commit and push it, and run again"
            raise UserError(f"is not what its data are: {step.reason}", file=step.name, remedy=remedy)
    return clone.git("rev-parse", "HEAD").strip()


def _require_deployment() -> None:
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(STAGE_DEPLOYMENT)
        except ObjectNotFound:
            raise UserError(
                f"Prefect's server {client.api_url} has no deployment {STAGE_DEPLOYMENT}",
                remedy="name your server by PREFECT_API_URL, and set it up: understudy deploy",
            ) from None
