"""`understudy deploy` and what it sets up, on a real server on Postgres with a password and a real worker."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from flows.clone import Clone

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
FLOW = """\
import os, pathlib, time
from prefect import flow

@flow(name="toy", log_prints=True)
def toy(seconds: float = 0.0, fails: bool = False, marks: str | None = None) -> None:
    if marks:
        with open(marks, "a") as file:
            file.write(f"{os.getpid()}\\n")
    time.sleep(seconds)
    if fails:
        raise ValueError("toy broke")
"""
TOY = {
    "name": "nightly",
    "entrypoint": "toys.toy",
    "description": "A toy.",
    "tags": ["understudy"],
    "schedules": [{"slug": "nightly", "cron": "0 2 * * *", "timezone": "Europe/Berlin", "active": True}],
    "concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE"},
    "work_pool": {
        "name": "understudy",
        "work_queue_name": "cpu",
        "job_variables": {"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}},
    },
}
Waiting = Callable[[Callable[[], object], float, str], None]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """A clone whose infra/prefect.yaml declares a toy flow; the flow is importable."""
    root = tmp_path / "clone"
    (root / "infra").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "toys.py").write_text(FLOW)
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setenv(
        "PYTHONPATH", f"{root}{os.pathsep}{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    )
    declare(root, TOY)
    return Clone(root)


def declare(root: Path, *deployments: dict[str, Any]) -> None:
    text = yaml.safe_dump({"name": "toys", "pull": [], "deployments": list(deployments)})
    (root / "infra" / "prefect.yaml").write_text(text)


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An HTTP server on the loopback, and the JSON that was posted to it."""
    received: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", received
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(prefect_team: Any) -> Iterator[Any]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as opened:
        yield opened


def everything(client: Any) -> dict[str, Any]:
    """What is on the server, without the times at which somebody asked for it."""
    passing = {"last_polled", "status", "updated"}
    deployments = client.read_deployments()
    pool = client.read_work_pool("understudy")
    return {
        "pool": (pool.id, pool.updated),
        "queues": {
            q.name: q.model_dump(exclude=passing)
            for q in client.read_work_queues(work_pool_name="understudy")
        },
        "deployments": {
            d.name: (d.model_dump(exclude=passing - {"updated"}), d.version_id) for d in deployments
        },
        "automations": {a.name: a.model_dump() for a in client.read_automations()},
        "blocks": {b.name: (b.id, b.updated) for b in client.read_block_documents()},
    }


@pytest.fixture
def run_toy(client: Any) -> Iterator[Callable[..., Any]]:
    """Starts a run of the toy's deployment, without waiting; it does not outlive the test."""
    from prefect.deployments import run_deployment
    from prefect.states import Cancelled

    begun: list[Any] = []

    def begin(**parameters: Any) -> Any:
        begun.append(run_deployment("toy/nightly", parameters=parameters, timeout=0, as_subflow=False))
        return begun[-1]

    yield begin
    for run in begun:
        client.set_flow_run_state(run.id, Cancelled(), force=True)  # it may hold the deployment's one slot


def test_a_second_deploy_changes_nothing_and_drift_is_mended(
    clone: Clone, client: Any, receiver: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
):
    from flows.deploy import deploy

    monkeypatch.setenv("UNDERSTUDY_WEBHOOK_URL", receiver[0])
    would = deploy(clone, dry_run=True)
    assert "understudy" not in {pool.name for pool in client.read_work_pools()}
    did = deploy(clone, dry_run=False)
    assert {change.what for change in would} == {change.what for change in did}
    assert {"work pool understudy", "work queue gpu", "deployment toy/nightly", "webhook understudy"} <= {
        change.what for change in did
    }
    first = everything(client)
    nightly = first["deployments"]["nightly"][0]
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["schedules"][0]["schedule"]["timezone"] == "Europe/Berlin"
    assert deploy(clone, dry_run=False) == []
    assert everything(client) == first

    monkeypatch.delenv("UNDERSTUDY_WEBHOOK_URL")
    assert deploy(clone, dry_run=False) == [], "without the variable, the webhook stays as it is"

    # Somebody changes the declaration, somebody else pauses the schedule and an automation in the UI.
    schedule = nightly["schedules"][0]
    client.update_deployment_schedule(nightly["id"], schedule["id"], active=False)
    client.pause_automation(first["automations"]["understudy: lost run"]["id"])
    declare(clone.root, TOY | {"parameters": {"seconds": 1.5}})
    told = {change.what: change.why for change in deploy(clone, dry_run=False)}
    assert told == {
        "deployment toy/nightly": "differs: parameters, schedules",
        "automation understudy: lost run": "differs: enabled",
    }
    mended = everything(client)
    assert mended["deployments"]["nightly"][0]["id"] == nightly["id"]
    assert mended["deployments"]["nightly"][0]["parameters"] == {"seconds": 1.5}
    assert mended["deployments"]["nightly"][0]["schedules"][0]["id"] == schedule["id"]
    assert mended["deployments"]["nightly"][0]["schedules"][0]["active"]
    assert mended["automations"]["understudy: lost run"]["enabled"]
    assert deploy(clone, dry_run=False) == []
    declare(clone.root, TOY)
    deploy(clone, dry_run=False)


def test_a_declaration_at_fault_is_named(clone: Clone, client: Any):
    from flows.deploy import deploy
    from tasks.errors import UserError

    declare(clone.root, TOY | {"entrypoint": "toys.no_such_flow"})
    with pytest.raises(UserError, match=r"deployment nightly: .*no_such_flow"):
        deploy(clone, dry_run=True)
    (clone.root / "infra" / "prefect.yaml").write_text("pull: []\n")
    with pytest.raises(UserError, match="no list of deployments"):
        deploy(clone, dry_run=True)


def test_the_command_says_what_it_did_and_what_is_missing(clone: Clone, prefect_team: Any):
    def understudy(**variables: str) -> "subprocess.CompletedProcess[str]":
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        home = {"PREFECT_HOME": str(clone.root / "home"), "COLUMNS": "100"}
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", "deploy"],
            cwd=clone.root,
            env=kept | home | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )

    done = understudy()
    assert done.returncode == 2
    assert "PREFECT_API_URL is not set" in done.stderr
    done = understudy(PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 75
    done = understudy(PREFECT_API_URL=prefect_team.url, PREFECT_API_AUTH_STRING="team:guessed")
    assert done.returncode == 2
    assert "refuses the password" in done.stderr
    assert "team:guessed" not in done.stderr
    done = understudy(**prefect_team.environment)
    assert done.returncode == 0, done.stderr
    done = understudy(**prefect_team.environment)
    assert done.stdout == f"{prefect_team.url}: nothing to change\n"


def test_a_worker_runs_it_and_a_failure_and_a_challenger_reach_the_webhook(
    clone: Clone,
    client: Any,
    prefect_team: Any,
    receiver: tuple[str, list[dict[str, Any]]],
    start_worker: Callable[..., Any],
    run_toy: Callable[..., Any],
    eventually: Waiting,
    monkeypatch: pytest.MonkeyPatch,
):
    from flows.deploy import deploy

    url, received = receiver
    monkeypatch.setenv("UNDERSTUDY_WEBHOOK_URL", url)
    deploy(clone, dry_run=False)
    start_worker("cpu", clone.root, PYTHONPATH=os.environ["PYTHONPATH"])
    good, bad = run_toy(), run_toy(fails=True)

    def ended(run: Any) -> bool:
        return client.read_flow_run(run.id).state.is_final()

    eventually(lambda: ended(good) and ended(bad), 300, "both runs end")
    assert client.read_flow_run(good.id).state.is_completed()
    assert client.read_flow_run(bad.id).state.is_failed()
    # In a process of its own, as in a stage: Prefect sends what a process tells to the first server that it knew of.
    told = """from flows.events import challenger_beats_champion as tell; tell("7", 'top-1 0.52 to "0.61"')"""
    subprocess.run(
        [sys.executable, "-c", told],
        env=os.environ | prefect_team.environment,
        check=True,
        timeout=120,
    )
    eventually(lambda: len(received) >= 2, 120, "two notifications")
    texts = sorted(message["text"] for message in received)
    assert len(texts) == 2, texts
    assert texts[0].startswith(f"toy ({bad.name}): Failed in start 1. ")
    assert "ValueError: toy broke" in texts[0]
    assert texts[0].endswith(f"{prefect_team.url.removesuffix('/api')}/runs/flow-run/{bad.id}")
    assert texts[1] == 'understudy-student, version 7 beats the champion: top-1 0.52 to "0.61"'


def test_a_scheduled_run_that_nobody_takes_reaches_the_webhook(
    clone: Clone,
    client: Any,
    prefect_team: Any,
    receiver: tuple[str, list[dict[str, Any]]],
    run_toy: Callable[..., Any],
    eventually: Waiting,
    monkeypatch: pytest.MonkeyPatch,
):
    from datetime import timedelta

    from flows import automations
    from flows.deploy import deploy

    url, received = receiver
    monkeypatch.setenv("UNDERSTUDY_WEBHOOK_URL", url)
    with monkeypatch.context() as shorter:
        shorter.setattr(automations, "LATE_AFTER", timedelta(seconds=10))
        deploy(clone, dry_run=False)
    run = run_toy()  # no worker is there
    eventually(lambda: received, 120, "a notification")
    assert received[0]["text"].startswith(f"toy ({run.name}): scheduled, and no worker of its queue took it")
    ui = prefect_team.url.removesuffix("/api")
    assert received[0]["text"].endswith(f"Is the coordinator's machine up? {ui}/runs/flow-run/{run.id}")


def test_a_crashed_run_is_started_again_twice_and_no_more(
    clone: Clone,
    client: Any,
    start_worker: Callable[..., Any],
    run_toy: Callable[..., Any],
    eventually: Waiting,
):
    """The process of the run is killed whenever it begins; the worker marks it as crashed at once."""
    from flows.automations import AGAIN_AFTER
    from flows.deploy import deploy
    from flows.infra import STARTS

    deploy(clone, dry_run=False)
    worker = start_worker("cpu", clone.root, PYTHONPATH=os.environ["PYTHONPATH"])
    marks = clone.root / "marks"
    run = run_toy(seconds=120, marks=str(marks))
    killed: list[str] = []

    def crashed_for_good() -> bool:
        begun = marks.read_text().split() if marks.exists() else []
        for pid in begun[len(killed) :]:
            os.kill(int(pid), 9)
            killed.append(pid)
        now = client.read_flow_run(run.id)
        return now.state.is_crashed() and now.run_count >= STARTS

    eventually(crashed_for_good, 600, f"{STARTS} starts")
    states = [state.name for state in client.read_flow_run_states(run.id)]
    assert states.count("Crashed") == STARTS
    assert states.count("AwaitingRetry") == STARTS - 1
    time.sleep(AGAIN_AFTER.seconds + 10)
    assert client.read_flow_run(run.id).state.is_crashed(), "it stays so"
    assert len(killed) == STARTS
    assert worker.poll() is None, "the worker outlives its runs"


def test_a_coordinators_clone_is_taken_to_the_newest_commit_and_its_data_first(
    clone: Clone,
    client: Any,
    start_worker: Callable[..., Any],
    run_toy: Callable[..., Any],
    eventually: Waiting,
    tmp_path: Path,
):
    """By the pull steps of pipeline/nightly, whatever a run left of dvc.lock; a clone that never saw the data, too."""
    from flows.deploy import declared, deploy

    nightly = next(entry for entry in declared(ROOT / "infra" / "prefect.yaml") if entry["name"] == "nightly")
    declare(clone.root, TOY | {"pull": nightly["pull"]})
    deploy(clone, dry_run=False)
    origin, working = tmp_path / "origin", tmp_path / "working"

    def git(folder: Path, *arguments: str) -> str:
        own = ["-c", "user.name=team", "-c", "user.email=team@localhost"]
        command = ["git", "-C", str(folder), *own, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def dvc(*arguments: str) -> None:
        command = [sys.executable, "-m", "dvc", *arguments]
        subprocess.run(command, cwd=origin, check=True, capture_output=True)

    def publish(word: str) -> None:
        (origin / "dvc.lock").write_text(f"schema: '2.0'\n# {word}\n")
        (origin / "videos").mkdir(exist_ok=True)
        (origin / "videos" / "a.mp4").write_text(word)
        dvc("add", "--quiet", "videos")
        dvc("push", "--quiet")
        git(origin, "add", ".")
        git(origin, "commit", "-qm", word)

    origin.mkdir()
    git(origin, "init", "-q")
    dvc("init", "-q")
    dvc("remote", "add", "-q", "--default", "storage", str(tmp_path / "remote"))
    (origin / "dvc.yaml").write_text("stages: {}\n")
    # as the project has it: a clone with changes is refused
    (origin / ".gitignore").write_text(".understudy/\n")
    publish("old")
    git(tmp_path, "clone", "-q", str(origin), str(working))
    (working / "dvc.lock").write_text("schema: '2.0'\n# of a run\n")
    publish("new")
    start_worker("cpu", working, PYTHONPATH=os.environ["PYTHONPATH"])
    run = run_toy()
    eventually(lambda: client.read_flow_run(run.id).state.is_final(), 300, "the run ends")
    assert client.read_flow_run(run.id).state.is_completed()
    assert git(working, "rev-parse", "HEAD") == git(origin, "rev-parse", "HEAD")
    assert (working / "dvc.lock").read_text().endswith("# new\n")
    assert (working / "videos" / "a.mp4").read_text() == "new"


def test_a_schedule_makes_runs(clone: Clone, client: Any, eventually: Waiting):
    from prefect.client.schemas.filters import FlowRunFilter

    from flows.deploy import deploy

    deploy(clone, dry_run=False)
    scheduled = FlowRunFilter.model_validate({"state": {"name": {"any_": ["Scheduled"]}}})

    def due() -> list[Any]:
        return [run for run in client.read_flow_runs(flow_run_filter=scheduled) if run.auto_scheduled]

    eventually(lambda: len(due()) > 1, 90, "Prefect's scheduler makes runs of the cron schedule")
    hours = {run.next_scheduled_start_time.astimezone(ZoneInfo("Europe/Berlin")).hour for run in due()}
    assert hours == {2}
    assert all("understudy" in run.tags for run in due())


def test_a_run_whose_worker_is_killed_is_noticed_and_goes_on_elsewhere(
    clone: Clone,
    client: Any,
    start_worker: Callable[..., Any],
    run_toy: Callable[..., Any],
    eventually: Waiting,
):
    """SIGKILL of a worker and its run at once, as when a machine is lost: only the heartbeat tells."""
    import psutil

    from flows.deploy import deploy

    deploy(clone, dry_run=False)
    lost = start_worker("cpu", clone.root, PYTHONPATH=os.environ["PYTHONPATH"])
    marks = clone.root / "marks"
    run = run_toy(seconds=20, marks=str(marks))
    eventually(marks.exists, 180, "the run begins")
    for process in [*psutil.Process(lost.pid).children(recursive=True), psutil.Process(lost.pid)]:
        process.kill()
    other = clone.root.parent / "other"
    other.mkdir()
    (other / "dvc.yaml").touch()
    start_worker("cpu", other, PYTHONPATH=os.environ["PYTHONPATH"])
    # Where it crashes it is started again at once; only then is its state final for good.
    eventually(lambda: client.read_flow_run(run.id).state.is_completed(), 400, "the run ends well by itself")
    states = client.read_flow_run_states(run.id)
    assert "No sign of life for 90 s." in [state.message for state in states]
    assert len(marks.read_text().split()) == 2
