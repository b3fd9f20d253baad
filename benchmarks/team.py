"""A team's machines in small, on the loopback: Prefect and MLflow servers, an S3 store, workers in clones of their own.

What `tests/end_to_end/test_workers.py` tests and `benchmarks/workers.py` measures. Every part is the real one, but that
moto keeps the store's objects in memory. Nothing of it outlives the `with` it is made in.
"""

import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME, temporary_settings

STARTUP_S = 300.0
POOL = "understudy"
BUCKET = "team"


@dataclass(frozen=True)
class Team:
    """What is running.

    Attributes:
        coordinator: a clone; `understudy run --executor workers` is run here.
        workers: name → its clone.
        environment: of a command in the coordinator's clone.
        settings: that make this process's Prefect client talk to the server.
    """

    coordinator: Path
    workers: Mapping[str, Path]
    environment: dict[str, str]
    settings: dict[object, object]

    def understudy(self, *arguments: str, timeout_s: float = 1200) -> "subprocess.CompletedProcess[str]":
        """Run the command in the coordinator's clone, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            cwd=self.coordinator,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )


@contextmanager
def team(project: Path, folder: Path, workers: Mapping[str, str]) -> Iterator[Team]:
    """Start all of it around a committed project.

    Args:
        project: a clone whose data/raw is there; it is cloned and not changed.
        folder: where clones, databases and logs go.
        workers: name → its queue, gpu or cpu.
    """
    folder.mkdir(parents=True, exist_ok=True)
    auth = f"team:{secrets.token_urlsafe(16)}"
    with ExitStack() as running:
        store = _store(running)
        environment = _environment(folder, auth)
        environment["PREFECT_API_URL"] = _prefect(running, folder, environment, auth)
        environment["MLFLOW_TRACKING_URI"] = _mlflow(running, folder, environment)
        coordinator = folder / "coordinator"
        _publish(project, coordinator, folder / "origin.git", store, environment)
        settings = {
            PREFECT_API_URL: environment["PREFECT_API_URL"],
            PREFECT_API_AUTH_STRING: auth,
            PREFECT_HOME: folder / "prefect" / "client",
        }
        with temporary_settings(settings):  # type: ignore[arg-type]
            _deploy(sorted(set(workers.values())))
        clones = {}
        for name, queue in workers.items():
            clones[name] = _worker(running, folder, name, queue, environment)
        yield Team(coordinator, clones, _in(coordinator, environment), dict(settings))


def _environment(folder: Path, auth: str) -> dict[str, str]:
    """That of every process: nothing of the user's own servers."""
    foreign = ("PREFECT_", "MLFLOW_", "UNDERSTUDY_", "AWS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(16),
        "AWS_DEFAULT_REGION": "us-east-1",
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "OMP_NUM_THREADS": "1",
        "PREFECT_API_AUTH_STRING": auth,
        "PREFECT_HOME": str(folder / "prefect" / "client"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "COLUMNS": "100",
        "GIT_AUTHOR_NAME": "t",
        "GIT_AUTHOR_EMAIL": "t@example.org",
        "GIT_COMMITTER_NAME": "t",
        "GIT_COMMITTER_EMAIL": "t@example.org",
    }


def _in(clone: Path, environment: Mapping[str, str]) -> dict[str, str]:
    return {**environment, "PYTHONPATH": str(clone), "UNDERSTUDY_CLONE": str(clone)}


def _store(running: ExitStack) -> str:
    """The address of an S3 store with one bucket."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request, thousands of them
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    running.callback(server.stop)
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=address,
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=BUCKET)
    return address


def _prefect(running: ExitStack, folder: Path, environment: Mapping[str, str], auth: str) -> str:
    """The API address of a server that asks for a password."""
    port = _free_port()
    for name in ("server", "client"):
        (folder / "prefect" / name).mkdir(parents=True)
    own = {
        "PREFECT_HOME": str(folder / "prefect" / "server"),
        "PREFECT_SERVER_API_AUTH_STRING": auth,
        "PREFECT_SERVER_UI_ENABLED": "false",
    }
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = _start(running, command, {**environment, **own}, folder, folder / "prefect.log")
    _wait(process, f"http://127.0.0.1:{port}/api/health", folder / "prefect.log")
    return f"http://127.0.0.1:{port}/api"


def _mlflow(running: ExitStack, folder: Path, environment: Mapping[str, str]) -> str:
    port = _free_port()
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "mlartifacts")]
    process = _start(running, command, environment, folder, folder / "mlflow.log")
    _wait(process, f"http://127.0.0.1:{port}/health", folder / "mlflow.log")
    return f"http://127.0.0.1:{port}"


def _publish(
    project: Path, coordinator: Path, origin: Path, store: str, environment: Mapping[str, str]
) -> None:
    """The coordinator's clone, its remotes for git and DVC, and what it committed in the former."""

    def here(*command: str) -> None:
        subprocess.run(command, cwd=coordinator, env=environment, check=True, stdout=subprocess.DEVNULL)

    subprocess.run(["git", "clone", "--quiet", project, coordinator], env=environment, check=True)
    shutil.copytree(project / "data" / "raw", coordinator / "data" / "raw", dirs_exist_ok=True)
    here("dvc", "commit", "--quiet", "--force", "data.dvc")
    here("dvc", "remote", "add", "--default", "storage", f"s3://{BUCKET}/dvc")
    here("dvc", "remote", "modify", "storage", "endpointurl", store)
    here("git", "commit", "--quiet", "--all", "--message", "remote")
    here("git", "clone", "--quiet", "--bare", str(coordinator), str(origin))
    here("git", "remote", "set-url", "origin", str(origin))


def _deploy(queues: Sequence[str]) -> None:
    """The pool, its queues and the deployment that puts stages into them."""
    from flows.stage import stage

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        for queue in queues:
            client.create_work_queue(queue, work_pool_name=POOL)
        client.create_deployment(
            client.create_flow(stage),
            "on-worker",
            work_pool_name=POOL,
            work_queue_name=queues[0],
            entrypoint="flows.stage.stage",
            pull_steps=[
                {"prefect.deployments.steps.set_working_directory": {"directory": "{{ $UNDERSTUDY_CLONE }}"}}
            ],
        )


def _worker(running: ExitStack, folder: Path, name: str, queue: str, environment: Mapping[str, str]) -> Path:
    """Start a worker in a clone of its own; the clone."""
    clone = folder / name
    subprocess.run(["git", "clone", "--quiet", folder / "origin.git", clone], env=environment, check=True)
    home = folder / "prefect" / name
    home.mkdir()
    own = {**_in(clone, environment), "PREFECT_HOME": str(home)}
    command = ["prefect", "worker", "start", "--pool", POOL, "--work-queue", queue, "--limit", "1"]
    _start(running, [*command, "--name", name], own, clone, folder / f"{name}.log")
    return clone


def _start(
    running: ExitStack, module: Sequence[str], environment: Mapping[str, str], cwd: Path, log: Path
) -> "subprocess.Popen[bytes]":
    """A Python module as a process, ended with SIGTERM, and SIGKILL where that does not do."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            cwd=cwd,
            env=dict(environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def end() -> None:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    running.callback(end)
    return process


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    deadline = time.monotonic() + STARTUP_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except urllib.error.HTTPError:
            return  # it answers, and asks for the password
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"did not start:\n{log.read_text()[-2000:]}")
