"""What the workers executor makes of a run that crashed, of a server at fault and of a full disk."""

import errno
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow
from prefect.exceptions import TerminationSignal

from flows import workers
from flows.clone import Clone
from flows.executor import StageFailed
from flows.infra import POOL, STARTS
from flows.plan import Plan, Step
from flows.workers import WorkersExecutor
from tasks.errors import InfrastructureError


@flow
def client_flow() -> None: ...


INGEST = Step("ingest", "stale", "a reason", ())


@pytest.fixture
def executor(
    project: Clone, prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WorkersExecutor]:
    """Of the project, committed, with a DVC remote in a folder and a server that has the deployment."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    monkeypatch.setattr(workers, "POLL_S", 0.05)
    (project.root / ".gitignore").write_text(".understudy/\n")
    with (project.root / ".dvc" / "config").open("a") as config:
        config.write(f"[core]\n    remote = storage\n['remote \"storage\"']\n    url = {tmp_path}/remote\n")
    project.git("add", ".")
    project.git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "first")
    with get_client(sync_client=True) as client, project.only_run() as lock:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        flow = client.create_flow_from_name("stage")
        place = {"work_pool_name": POOL, "work_queue_name": "cpu"}
        deployment = client.create_deployment(flow, "on-worker", **place)
        yield WorkersExecutor(project, lock, Plan((INGEST,)))
        client.delete_deployment(deployment)
        client.delete_work_pool(POOL)


@pytest.fixture
def at_fault() -> Iterator[str]:
    """The address of a server that answers everything with 500."""

    class AtFault(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), AtFault)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("starts", "worth"), [(1, True), (STARTS, False)])
def test_a_run_that_crashed_in_its_last_start_is_not_asked_for_anew(
    executor: WorkersExecutor, monkeypatch: pytest.MonkeyPatch, starts: int, worth: bool
):
    from prefect.client.orchestration import get_client
    from prefect.states import Crashed, Running

    monkeypatch.setattr(workers, "RESTART_S", 0.0)  # no automation is there
    identity = executor._ask(INGEST).id
    with get_client(sync_client=True) as client:
        for _ in range(starts):
            client.set_flow_run_state(identity, Running(), force=True)
            client.set_flow_run_state(identity, Crashed(message="the heart stopped"), force=True)
        assert client.read_flow_run(identity).run_count == starts
    with pytest.raises(StageFailed, match="the heart stopped") as failed:
        executor.run(INGEST, print)
    assert failed.value.exit_code == 75
    assert failed.value.worth_retrying is worth


def test_a_server_at_fault_is_waited_for_and_then_infrastructure(
    executor: WorkersExecutor, at_fault: str, monkeypatch: pytest.MonkeyPatch
):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setattr(workers, "PATIENCE_S", 0.3)
    with temporary_settings({PREFECT_API_URL: at_fault}):
        with pytest.raises(InfrastructureError, match=r"Prefect's server is away: .*500"):
            executor._wait(uuid4(), INGEST, print)
        with pytest.raises(StageFailed, match="500") as failed:
            executor.run(INGEST, print)
    assert failed.value.exit_code == 75


@pytest.mark.parametrize(("ended_by", "cancels"), [(KeyboardInterrupt, True), (TerminationSignal, False)])
def test_a_coordinator_that_is_restarted_leaves_its_stages_going(
    executor: WorkersExecutor, ended_by: type[BaseException], cancels: bool
):
    """SIGTERM is what a restarted worker gets; who cancels in the UI has said so before, in the run's state."""
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling, Running

    with get_client(sync_client=True) as client:
        own, *stages = (client.create_flow_run(client_flow, state=Running()) for _ in range(3))
        executor._run_id = own.id
        try:
            raise ended_by(*([15] if ended_by is TerminationSignal else []))
        except ended_by:
            executor.stop()
        for run in stages:
            with pytest.raises(InterruptedError):
                executor._wait(run.id, INGEST, print)
            state = client.read_flow_run(run.id).state
            assert state is not None
            assert (state.is_cancelling() or state.is_cancelled()) is cancels
            cancels = True
            client.set_flow_run_state(own.id, Cancelling(), force=True)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_of_the_coordinator_is_infrastructure(
    executor: WorkersExecutor, monkeypatch: pytest.MonkeyPatch, number: int
):
    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(executor, "_wait", full)
    with pytest.raises(StageFailed) as failed:
        executor.run(INGEST, print)
    assert failed.value.exit_code == 75
