"""A team's installation on this machine: Postgres, Prefect's and MLflow's servers by infra/start-*, an S3 endpoint.

Every module has servers of its own: what one deploys, another would find.
"""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
POSTGRES_PASSWORD = "of-the-test"


@dataclass
class Server:
    """A server that a start script started."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    """What a client needs: its address and its password."""

    def end(self, how: int = signal.SIGTERM) -> None:
        """Signal the whole group and wait; what does not end is killed."""
        for number in (how, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=20)
                return


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment() -> dict[str, str]:
    """Ours without what Prefect, MLflow, AWS and our settings would read; with this interpreter and clone first."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT_", "MLFLOW_", "AWS_", "UNDERSTUDY_"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return kept | {"PATH": path, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"}


def start(command: list[str], environment: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as output:
        return subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def postgres() -> Iterator[Callable[[str], str]]:
    """A Postgres on the loopback with the databases of infra/databases.sql; gives the address of one."""
    if shutil.which("initdb") is None or shutil.which("psql") is None:
        pytest.skip("Postgres is not installed (initdb and psql on the PATH)")
    # /tmp itself: the account that Postgres runs as must get to it, and pytest's own folders are ours alone
    folder = Path(tempfile.mkdtemp(prefix="understudy-postgres-"))
    privileges: list[str] = []
    if os.geteuid() == 0:  # Postgres refuses to run as root
        accounts = {account.pw_name: account for account in pwd.getpwall()}
        account = accounts.get("postgres") or accounts.get("nobody")
        if account is None or shutil.which("setpriv") is None:
            pytest.skip("Postgres does not run as root, and there is no other account to run it as")
        os.chown(folder, account.pw_uid, account.pw_gid)
        privileges = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    data, port = folder / "data", free_port()
    password = folder / "password"
    password.write_text(POSTGRES_PASSWORD)
    password.chmod(0o644)
    initialise = ["initdb", "--pgdata", str(data), "--username", "understudy", "--auth", "scram-sha-256"]
    subprocess.run(
        [*privileges, *initialise, "--pwfile", str(password), "--no-sync", "--no-instructions"],
        check=True,
        capture_output=True,
        cwd=folder,
        timeout=120,
    )
    run = [
        "postgres",
        "-D",
        str(data),
        "-p",
        str(port),
        "-k",
        str(folder),
        "-c",
        "listen_addresses=127.0.0.1",
    ]
    server = Server(
        "", start([*privileges, *run, "-c", "fsync=off"], dict(os.environ), folder / "log"), folder / "log"
    )
    try:
        psql = ["psql", "--host", "127.0.0.1", "--port", str(port), "--username", "understudy", "--quiet"]
        environment = os.environ | {"PGPASSWORD": POSTGRES_PASSWORD}
        ready = [*psql, "--dbname", "postgres", "--command", "select 1"]
        wait_for(
            lambda: subprocess.run(ready, env=environment, capture_output=True, check=False).returncode == 0,
            30,
            "Postgres takes connections",
        )
        subprocess.run(
            [*psql, "--dbname", "postgres", "--file", str(INFRA / "databases.sql")],
            env=environment,
            check=True,
            capture_output=True,
        )
        yield lambda name: f"understudy:{POSTGRES_PASSWORD}@127.0.0.1:{port}/{name}"
    finally:
        server.end(signal.SIGINT)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def prefect_on(database: str, port: int, auth: str, home: Path) -> Iterator[Server]:
    """Prefect's server by infra/start-prefect."""
    home.mkdir(exist_ok=True)
    environment = clean_environment() | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_API_AUTH_STRING": auth,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{database}",
        "UNDERSTUDY_PREFECT_PORT": str(port),
    }
    process = start([str(INFRA / "start-prefect")], environment, home / "server.log")
    url = f"http://127.0.0.1:{port}/api"
    client = {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": auth}
    server = Server(url, process, home / "server.log", client)
    try:
        wait_for(
            lambda: answers(f"{url}/health") or process.poll() is not None, 180, "Prefect's server answers"
        )
        assert process.poll() is None, server.log.read_text()[-3000:]
        yield server
    finally:
        server.end()


@pytest.fixture(scope="module")
def prefect_team(
    postgres: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A team's Prefect server, on Postgres and behind a password; this process is its client while it lasts."""
    auth = f"team:{secrets.token_urlsafe(12)}"
    home = tmp_path_factory.mktemp("prefect-team")
    with prefect_on(postgres("prefect"), free_port(), auth, home) as server:
        from prefect.settings import (
            PREFECT_API_AUTH_STRING,
            PREFECT_API_URL,
            PREFECT_HOME,
            temporary_settings,
        )

        chosen = {PREFECT_API_URL: server.url, PREFECT_API_AUTH_STRING: auth, PREFECT_HOME: home / "client"}
        with temporary_settings(chosen):
            yield server


@pytest.fixture
def eventually() -> Callable[[Callable[[], object], float, str], None]:
    """Waits for a condition, so many seconds, and says what it waited for in vain."""
    return wait_for


@pytest.fixture
def start_worker(
    prefect_team: Server,
) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Starts real workers by infra/start-worker: queue, clone, further variables. They end with the test."""
    started: list[Server] = []

    def begin(queue: str, clone: Path, **variables: str) -> "subprocess.Popen[bytes]":
        settings = {
            "PREFECT_HOME": f"{clone}.prefect",
            "UNDERSTUDY_CLONE": str(clone),
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
            "MLFLOW_TRACKING_USERNAME": "nobody",
            "MLFLOW_TRACKING_PASSWORD": "of-no-use",
        }
        log = clone.parent / f"{clone.name}-{queue}.log"
        environment = clean_environment() | prefect_team.environment | settings | variables
        process = start([str(INFRA / "start-worker"), queue], environment, log)
        started.append(Server("", process, log))
        return process

    yield begin
    for server in started:
        server.end()


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """An S3 endpoint on the loopback with the bucket `team`; the variables that a client needs."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "team",
        "AWS_SECRET_ACCESS_KEY": "of-the-test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    keys = {"aws_access_key_id": "team", "aws_secret_access_key": "of-the-test", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"], **keys).create_bucket(Bucket="team")
    yield environment
    server.stop()


@pytest.fixture(scope="module")
def mlflow_team(
    postgres: Callable[[str], str], s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A team's MLflow server by infra/start-mlflow: on Postgres and S3, behind a password."""
    pytest.importorskip("flask_wtf", reason="MLflow's passwords need Flask-WTF")
    pytest.importorskip("psycopg2", reason="MLflow needs psycopg2 for Postgres")
    home, port = tmp_path_factory.mktemp("mlflow-team"), free_port()
    password = secrets.token_urlsafe(12)
    environment = (
        clean_environment()
        | s3
        | {
            "TMPDIR": str(home),
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
            "MLFLOW_BACKEND_STORE_URI": f"postgresql://{postgres('mlflow')}",
            "MLFLOW_ARTIFACTS_DESTINATION": "s3://team/mlflow",
            "MLFLOW_WORKERS": "1",
            "UNDERSTUDY_MLFLOW_PORT": str(port),
        }
    )
    process = start([str(INFRA / "start-mlflow")], environment, home / "server.log")
    url = f"http://127.0.0.1:{port}"
    client = {
        "MLFLOW_TRACKING_URI": url,
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": password,
    }
    server = Server(url, process, home / "server.log", client)
    try:
        wait_for(
            lambda: answers(f"{url}/health") or process.poll() is not None, 180, "MLflow's server answers"
        )
        assert process.poll() is None, server.log.read_text()[-3000:]
        yield server
    finally:
        server.end()
