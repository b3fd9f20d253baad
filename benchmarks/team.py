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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psutil
from moto.server import ThreadedMotoServer
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_HOME,
    temporary_settings,
)

from flows.clone import Clone
from flows.deploy import deploy
from flows.infra import POOL

STARTUP_S = 300.0
BUCKET, CHECKPOINTS = "team", "checkpoints"


class Part:
    """A server or a worker: a process that can be killed, with all it started, and begun again.

    Args:
        module: Python module and arguments.
        environment, cwd: of the process.
        log: what it prints goes here.
        address: answers as soon as it is ready; empty: it is ready at once.
    """

    def __init__(
        self, module: Sequence[str], environment: Mapping[str, str], cwd: Path, log: Path, address: str = ""
    ):
        self._command = [sys.executable, "-m", *module]
        self._environment, self._cwd, self.log, self._address = dict(environment), cwd, log, address
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Start it, and wait until it answers."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._cwd,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if self._address:
            _wait(self._process, self._address, self.log)

    @property
    def is_running(self) -> bool:
        """Whether its first process has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def family(self) -> list[psutil.Process]:
        """Its processes, itself first."""
        assert self._process is not None
        try:
            own = psutil.Process(self._process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """SIGKILL to it and all it started, as if its machine had lost power."""
        family = self.family
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=10)

    def end(self) -> None:
        """SIGTERM, and SIGKILL where that does not do."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()


class Store:
    """An S3 store with one bucket, which can go away for a while and keeps what it has.

    Args:
        environment: with the keys of its one user.
    """

    def __init__(self, environment: Mapping[str, str]):
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request, thousands of them
        self._port = _free_port()
        self.begin()
        # moto's servers of one process share what they keep: without this, a second team would find the first one's.
        reset = urllib.request.Request(f"{self.address}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset, timeout=30).close()
        self._client = boto3.client(
            "s3",
            endpoint_url=self.address,
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            region_name=environment["AWS_DEFAULT_REGION"],
        )
        self._client.create_bucket(Bucket=BUCKET)

    @property
    def address(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._port}"

    def begin(self) -> None:
        """Answer."""
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()

    def end(self) -> None:
        """Answer no more."""
        self._server.stop()

    def drop(self, prefix: str) -> None:
        """Delete what lies there."""
        for found in self._client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", []):
            self._client.delete_object(Bucket=BUCKET, Key=found["Key"])


@dataclass(frozen=True)
class Team:
    """What is running.

    Attributes:
        coordinator: a clone; `understudy run --executor workers` is run here.
        workers: name → its clone.
        parts: prefect, mlflow and the workers by their names.
        store: the S3 store.
        environment: of a command in the coordinator's clone.
        settings: that make this process's Prefect client talk to the server.
    """

    coordinator: Path
    workers: Mapping[str, Path]
    parts: Mapping[str, Part]
    store: Store
    environment: dict[str, str]
    settings: dict[Any, Any]

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
    parts: dict[str, Part] = {}
    with ExitStack() as running:

        def begin(name: str, part: Part) -> None:
            parts[name] = part
            running.callback(part.end)  # first, for one that is broken off while it starts
            part.begin()

        environment = _environment(folder, auth)
        store = Store(environment)
        running.callback(store.end)
        environment |= {
            "AWS_ENDPOINT_URL": store.address,
            "UNDERSTUDY_CHECKPOINTS": f"s3://{BUCKET}/{CHECKPOINTS}",
        }
        ports = _free_port(), _free_port()
        environment["PREFECT_API_URL"] = f"http://127.0.0.1:{ports[0]}/api"
        environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{ports[1]}"
        begin("prefect", _prefect(ports[0], folder, environment, auth))
        begin("mlflow", _mlflow(ports[1], folder, environment))
        coordinator = folder / "coordinator"
        _publish(project, coordinator, folder / "origin.git", store.address, environment)
        settings: dict[Any, Any] = {
            PREFECT_API_URL: environment["PREFECT_API_URL"],
            PREFECT_API_AUTH_STRING: auth,
            PREFECT_HOME: folder / "prefect" / "client",
        }
        with temporary_settings(settings):
            deploy(Clone(coordinator), dry_run=False)
        clones = {name: folder / name for name in workers}
        for name, queue in workers.items():
            begin(name, new_worker(folder, name, queue, environment))
        own = _in(coordinator, environment)
        yield Team(coordinator, clones, parts, store, own, settings)


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


def _prefect(port: int, folder: Path, environment: Mapping[str, str], auth: str) -> Part:
    """A server that asks for a password."""
    for name in ("server", "client"):
        (folder / "prefect" / name).mkdir(parents=True)
    own = {
        "PREFECT_HOME": str(folder / "prefect" / "server"),
        "PREFECT_SERVER_API_AUTH_STRING": auth,
    }
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    ready = f"http://127.0.0.1:{port}/api/health"
    return Part(command, {**environment, **own}, folder, folder / "prefect.log", ready)


def _mlflow(port: int, folder: Path, environment: Mapping[str, str]) -> Part:
    """A server with its registry and artifacts."""
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "mlartifacts")]
    return Part(command, environment, folder, folder / "mlflow.log", f"http://127.0.0.1:{port}/health")


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
    here("dvc", "push", "--quiet", "data.dvc")
    here("git", "commit", "--quiet", "--all", "--message", "remote")
    here("git", "clone", "--quiet", "--bare", str(coordinator), str(origin))
    here("git", "remote", "set-url", "origin", str(origin))


def new_worker(folder: Path, name: str, queue: str, environment: Mapping[str, str]) -> Part:
    """A worker in a clone of its own, beside the team's others; not begun."""
    clone = folder / name
    subprocess.run(["git", "clone", "--quiet", folder / "origin.git", clone], env=environment, check=True)
    home = folder / "prefect" / name
    home.mkdir()
    own = {**_in(clone, environment), "PREFECT_HOME": str(home)}
    command = ["prefect", "worker", "start", "--pool", POOL, "--work-queue", queue, "--limit", "1"]
    return Part([*command, "--name", name], own, clone, folder / f"{name}.log")


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
