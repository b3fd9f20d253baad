"""Which Prefect API a run talks to: the user's, or a temporary server of its own that ends with it."""

import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from flows import tether
from flows.clone import Clone
from flows.infra import HEARTBEAT_S
from tasks.errors import InfrastructureError, UserError

STARTUP_S = 120.0


def prepare_environment(verbose: bool) -> None:
    """Set what Prefect reads while it is imported: no telemetry, signs of life, its console log only if asked for."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", str(HEARTBEAT_S))
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "INFO" if verbose else "CRITICAL")


API_REMEDY = "start it (prefect server start) or unset PREFECT_API_URL"
"""What to do where the configured Prefect API does not answer."""

_IDLE_SERVICES = (
    "SCHEDULER",
    "LATE_RUNS",
    "FOREMAN",
    "PAUSE_EXPIRATIONS",
    "CLEANUP_RECONCILER",
    "CANCELLATION_CLEANUP",
    "TRIGGERS",
)
"""What a server without deployments, pauses and automations polls its database for: half of what it costs, which was a
tenth of a core for as long as a run takes."""


@contextmanager
def prefect_api(clone: Clone) -> Iterator[None]:
    """Use the configured PREFECT_API_URL; where there is none, a server on the loopback while this lasts.

    Prefect would start such a server by itself, but that one stays behind when its run is killed, and lets
    every user of the machine in. This one ends with the run and asks for a password nobody else knows.

    Raises:
        InfrastructureError: the configured server does not answer, or the temporary one did not start.
    """
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        PREFECT_HOME,
        temporary_settings,
    )

    if url := PREFECT_API_URL.value():
        if (problem := api_problem()) is not None:
            raise InfrastructureError(f"Prefect's server {url} does not answer: {problem}\n  → {API_REMEDY}")
        yield
        return
    home = clone.work / "prefect"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    auth = f"understudy:{secrets.token_urlsafe(24)}"
    with ExitStack() as stack:
        url = stack.enter_context(_server(home, auth, clone.log("prefect-server")))
        chosen = {PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: auth, PREFECT_HOME: home}
        stack.enter_context(temporary_settings(chosen))
        stack.callback(_send_what_is_left)
        yield


def api_problem() -> Exception | None:
    """Why the configured Prefect API does not answer; None where it does."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.api_healthcheck()


def team_server() -> str:
    """The address of the configured Prefect server, which answers and takes our password.

    Raises:
        UserError: none is configured, or it refuses the password.
        InfrastructureError: it does not answer.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        raise UserError(
            "PREFECT_API_URL is not set",
            remedy="start a server as infra/README.md says, and set it together with PREFECT_API_AUTH_STRING",
        )
    if (problem := api_problem()) is not None:
        raise InfrastructureError(
            f"Prefect's server {url} does not answer: {problem}\n  → start it, or mend the address"
        )
    try:
        with get_client(sync_client=True) as client:
            client.read_work_pools(limit=1)  # the health check needs no password
    except PrefectHTTPStatusError as error:
        if error.response.status_code != 401:
            raise InfrastructureError(f"Prefect's server {url} fails: {error}") from None
        raise UserError(
            f"Prefect's server {url} refuses the password",
            remedy="set PREFECT_API_AUTH_STRING to what the server has in PREFECT_SERVER_API_AUTH_STRING",
        ) from None
    return url


def _send_what_is_left() -> None:
    """Logs and events leave Prefect in the background; a server that ends first would lose them, loudly."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=5)
    EventsWorker.drain_all(timeout=5)


@contextmanager
def _server(home: Path, auth: str, log: Path) -> Iterator[str]:
    """The API address of a server that keeps its database in `home` and prints to `log`."""
    port = _free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
    environment = os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_API_AUTH_STRING": auth,
        "PREFECT_API_AUTH_STRING": auth,
        "PREFECT_UI_ENABLED": "0",
        **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "0" for name in _IDLE_SERVICES},
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", tether.__file__, *command],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_healthy(process, f"http://127.0.0.1:{port}/api", log)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        if process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + STARTUP_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except urllib.error.HTTPError:
            return  # it answers, and asks for the password
        except OSError:
            time.sleep(0.1)
    raise InfrastructureError(f"Prefect's temporary server did not start; log: {log}")
