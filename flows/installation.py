"""What `understudy doctor --infra` checks: a team's servers, workers and stores, as they are now."""

import base64
import json
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.api import prepare_environment, team_server
from flows.clone import Clone
from flows.doctor import Check, Trouble, examined
from flows.infra import POOL, QUEUES
from tasks.errors import InfrastructureError
from tasks.settings import dvc_config, settings

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

_DEPLOY = "understudy deploy"
_START = "infra/README.md says how to start it"
_POLLED_S = 60.0
"""A worker asks its queue for work every 10 s."""
_ANSWERS_S = 10.0
_APART_S = 20.0
"""A run without a sign of life for 90 s is marked as crashed; there is one every 30 s."""


def examine_infra(clone: Clone) -> list[Check]:
    """Make every check of the installation that this environment names, as a worker would use it."""
    prepare_environment(verbose=False)
    of_prefect: dict[str, Callable[[Clone, SyncPrefectClient], str]] = {
        "Prefect UI": _ui,
        "clock": _clock,
        "work pool": _pool,
        "workers": _workers,
        "deployments": _deployments,
        "automations": _automations,
        "notifications": _notifications,
        "Prefect telemetry": _prefect_telemetry,
    }
    checks = [examined("Prefect", _prefect)]
    if checks[0].state == "works":
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            checks += [examined(name, partial(make, clone, client)) for name, make in of_prefect.items()]
    checks += [examined("MLflow", _mlflow)]
    if checks[-1].state == "works":
        checks += [
            examined("registry", partial(_registry, clone)),
            examined("MLflow telemetry", _mlflow_telemetry),
        ]
    checks += [examined("DVC remote", partial(_dvc_remote, clone))]
    return [*checks, examined("checkpoints", _checkpoints)] if settings().checkpoints else checks


def _prefect() -> str:
    try:
        url = team_server()
    except InfrastructureError as error:
        raise Trouble(str(error).partition("\n")[0], _START) from None
    if _status(f"{url}/admin/version") != 401:
        raise Trouble(f"{url} lets everybody in", "start it by infra/start-prefect, which wants a password")
    return f"{url} answers, and to nobody without the password; client {version('prefect')}"


def _ui(_clone: Clone, client: "SyncPrefectClient") -> str:
    """The pages lie where the API does, without /api."""
    url = str(client.api_url).rstrip("/").removesuffix("/api")
    if (status := _status(f"{url}/", accept="text/html")) != 200:
        raise Trouble(
            f"{url} shows no pages ({status})",
            "start it by infra/start-prefect, which sets PREFECT_SERVER_UI_STATIC_DIRECTORY to where it may write",
        )
    return f"at {url}"


def _clock(_clone: Clone, client: "SyncPrefectClient") -> str:
    """Signs of life are stamped by whoever gives them: a clock that is behind makes living runs count as lost."""
    theirs = parsedate_to_datetime(client.request("GET", "/health").headers["date"]).replace(tzinfo=UTC)
    apart_s = (datetime.now(UTC) - theirs).total_seconds()
    if abs(apart_s) > _APART_S:
        raise Trouble(
            f"this machine is {abs(apart_s):.0f} s {'ahead of' if apart_s > 0 else 'behind'} the server: "
            "living runs would count as lost",
            "have every machine keep time by NTP",
        )
    return "that of the server, to a few seconds"


def _pool(_clone: Clone, client: "SyncPrefectClient") -> str:
    from prefect.exceptions import ObjectNotFound

    try:
        pool = client.read_work_pool(POOL)
    except ObjectNotFound:
        raise Trouble(f"there is no work pool {POOL}", _DEPLOY) from None
    queues = {queue.name: queue for queue in client.read_work_queues(work_pool_name=POOL)}
    if missing := [name for name in QUEUES if name not in queues]:
        raise Trouble(f"{POOL} has no queue {', '.join(missing)}", _DEPLOY)
    paused = [name for name in QUEUES if queues[name].is_paused]
    if pool.is_paused or paused:
        names = POOL if pool.is_paused else ", ".join(paused)
        raise Trouble(f"{names} paused: nothing starts", "resume in Prefect's UI")
    return f"{POOL} of type {pool.type}, queues {', '.join(QUEUES)}"


def _workers(_clone: Clone, client: "SyncPrefectClient") -> str:
    from prefect.client.schemas.objects import WorkerStatus

    online = [
        worker["name"] for worker in _known_workers(client) if worker["status"] == WorkerStatus.ONLINE.value
    ]
    now = datetime.now(UTC)
    polled = {queue.name: queue.last_polled for queue in client.read_work_queues(work_pool_name=POOL)}
    silent = [
        name
        for name in QUEUES
        if (last := polled.get(name)) is None or (now - last).total_seconds() > _POLLED_S
    ]
    if silent:
        raise Trouble(
            f"no worker asks for work of {', '.join(silent)}; online: {', '.join(sorted(online)) or 'none'}",
            f"infra/start-worker {silent[0]} on a machine for it",
        )
    return f"{len(online)} online: {', '.join(sorted(online))}"


def _known_workers(client: "SyncPrefectClient") -> list[dict[str, Any]]:
    """The pool's workers as the API tells them; Prefect's client for synchronous code has no call for it."""
    response = client.request(
        "POST",
        "/work_pools/{work_pool_name}/workers/filter",
        path_params={"work_pool_name": POOL},
        json={},
    )
    return list(response.json())


def _deployments(clone: Clone, client: "SyncPrefectClient") -> str:
    from flows.deploy import declared, deployment_changes, prefect_file

    file = prefect_file(clone)
    if changes := [change for _, change in deployment_changes(client, file)]:
        raise Trouble("; ".join(f"{change.what} {change.why}" for change in changes), _DEPLOY)
    entries = declared(file)
    schedules = [schedule for entry in entries for schedule in entry.get("schedules") or []]
    return f"{len(entries)} as in infra/prefect.yaml, {sum(each['active'] for each in schedules)} schedule(s) active"


def _automations(_clone: Clone, client: "SyncPrefectClient") -> str:
    from flows.automations import recovery
    from flows.deploy import automation_changes, block_id

    if changes := [change for _, _, change in automation_changes(client, block_id())]:
        raise Trouble("; ".join(f"{change.what} {change.why}" for change in changes), _DEPLOY)
    return f"{len(recovery())} bring lost runs back"


def _notifications(_clone: Clone, _client: "SyncPrefectClient") -> str:
    from flows.deploy import block_id

    if block_id() is None:
        return "none; set UNDERSTUDY_WEBHOOK_URL for understudy deploy to be told of failed runs"
    return "failed and crashed runs and better challengers call the webhook"


def _prefect_telemetry(_clone: Clone, client: "SyncPrefectClient") -> str:
    server = client.request("GET", "/admin/settings").json()["server"]
    if server["analytics_enabled"]:
        raise Trouble("the server reports to its makers", "start it by infra/start-prefect")
    return "off"


def _mlflow() -> str:
    url = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not url.startswith(("http://", "https://")):
        found = f"but a {url.partition(':')[0]} store" if url else "as it is not set"
        raise Trouble(f"MLFLOW_TRACKING_URI names no server, {found}", _START)
    if "@" in url:
        raise Trouble(
            "MLFLOW_TRACKING_URI holds a login", "set MLFLOW_TRACKING_USERNAME and _PASSWORD instead"
        )
    search = f"{url.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1"
    try:
        if _status(search) != 401:
            raise Trouble(
                f"{url} lets everybody in", "start it by infra/start-mlflow, which wants a password"
            )
        user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
        if (status := _status(search, f"{user}:{password}")) != 200:
            raise Trouble(
                f"{url} refuses us ({status})", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
    except OSError as error:
        raise Trouble(f"{url} does not answer: {error}", _START) from None
    return f"{url} answers, and to nobody without the password; client {version('mlflow')}"


def _registry(clone: Clone) -> str:
    from tasks.layout import Workspace
    from tasks.stores import tracking

    workspace = Workspace(clone.root)
    try:
        versions = tracking.client(workspace).search_model_versions("name = 'understudy-student'")
    except Exception as error:  # what the server says comes in many classes
        raise Trouble(
            f"cannot be read: {tracking.told(error, workspace)}", "look into the MLflow server's log"
        ) from None
    return f"{len(versions)} version(s) of understudy-student"


def _mlflow_telemetry() -> str:
    url = f"{os.environ['MLFLOW_TRACKING_URI'].rstrip('/')}/ajax-api/3.0/mlflow/ui-telemetry"
    user, password = os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]
    told = json.loads(_answer(url, f"{user}:{password}"))
    if not told.get("disable_ui_telemetry"):
        raise Trouble("the server's pages report to its makers", "start it by infra/start-mlflow")
    return "off"


def _dvc_remote(clone: Clone) -> str:
    """Whether others see the default remote, and it takes and gives."""
    from dvc.repo import Repo

    with Repo(str(clone.root), config=dvc_config(clone.root)) as repo:
        name = repo.config["core"].get("remote")
        if not name:
            raise Trouble(
                "none is the default: workers cannot hand anything over", "dvc remote add -d storage s3://…"
            )
        url = repo.config["remote"][name]["url"]
        odb = repo.cloud.get_remote_odb(name)
        if odb.fs.protocol == "local" and Path(odb.path).resolve().is_relative_to(clone.root.resolve()):
            raise Trouble(
                f"{name} is {url}, inside this clone: nobody else has it", "dvc remote add -d storage s3://…"
            )
        return _written(f"{name} ({url})", odb.fs, odb.path)


def _checkpoints() -> str:
    """As `_dvc_remote`, where trainings copy their checkpoints (`tasks.stores.copies`)."""
    import fsspec

    place = settings().checkpoints
    return _written(f"UNDERSTUDY_CHECKPOINTS={place}", *fsspec.core.url_to_fs(place.rstrip("/")))


def _written(what: str, system: Any, folder: str) -> str:
    """Write an object into a folder of a store, read it and remove it."""
    probe, words = f"{folder}/understudy-doctor-{secrets.token_hex(8)}", secrets.token_bytes(64)
    try:
        system.makedirs(folder, exist_ok=True)
        with system.open(probe, "wb") as file:
            file.write(words)
        try:
            with system.open(probe, "rb") as file:
                same = file.read() == words
        finally:
            system.rm_file(probe)
    except Exception as error:  # each kind of store has its own
        raise Trouble(f"{what} fails: {error}", "check the credentials and the address") from None
    if not same:
        raise Trouble(f"{what} gives back other bytes than it took", "look into the store")
    return f"{what} written, read and cleared"


def _status(url: str, login: str = "", accept: str = "*/*") -> int:
    """The HTTP status of a GET, redirects followed. Raises OSError where nobody answers."""
    try:
        with urllib.request.urlopen(_request(url, login, accept), timeout=_ANSWERS_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _answer(url: str, login: str) -> bytes:
    with urllib.request.urlopen(_request(url, login), timeout=_ANSWERS_S) as answer:
        return bytes(answer.read())


def _request(url: str, login: str, accept: str = "*/*") -> urllib.request.Request:
    headers = {"Accept": accept}
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    return urllib.request.Request(url, headers=headers)
