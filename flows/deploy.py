"""Bring a Prefect server to what this clone declares: work pool, queues, deployments, notifications, automations.

What is there already stays as it is, ids and all; only what differs is created or changed.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import MissingFlowError, ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.settings import get_current_settings
from prefect.types import SecretDict
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker

from flows.automations import notifications, recovery
from flows.clone import Clone
from flows.infra import BLOCK, POOL, QUEUES
from tasks.errors import UserError
from tasks.settings import settings

_HEADERS = SecretDict({"Content-Type": "application/json"})
_NO_BLOCK = UUID(int=0)
"""In the place of the webhook's block where that is not created yet."""


@dataclass(frozen=True)
class Change:
    """What differs between this clone and the server.

    Attributes:
        what: kind and name, as "deployment pipeline/nightly".
        why: "is missing", or the fields that differ.
    """

    what: str
    why: str


def deploy(clone: Clone, dry_run: bool) -> list[Change]:
    """Bring the configured server to what `clone` declares.

    Args:
        dry_run: look and tell, change nothing.

    Returns:
        What was, or would be, created or changed; empty where all was in place.

    Raises:
        UserError: infra/prefect.yaml is at fault.
    """
    file = prefect_file(clone)
    with get_client(sync_client=True) as client:
        changes = list(_pool(client, dry_run))
        due = list(deployment_changes(client, file))
        if due and not dry_run:
            _prefect_deploy(clone, file, [name for name, _ in due])
        changes += [change for _, change in due]
        changes += _block(dry_run)
        changes += _automations(client, dry_run)
    return changes


def prefect_file(clone: Clone) -> Path:
    """Where the deployments are declared."""
    return clone.root / "infra" / "prefect.yaml"


def _pool(client: SyncPrefectClient, dry_run: bool) -> Iterator[Change]:
    try:
        client.read_work_pool(POOL)
        queues = {queue.name for queue in client.read_work_queues(work_pool_name=POOL)}
    except ObjectNotFound:
        yield Change(f"work pool {POOL}", "is missing")
        queues = set()
        if not dry_run:
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
    for queue in QUEUES:
        if queue not in queues:
            yield Change(f"work queue {queue}", "is missing")
            if not dry_run:
                client.create_work_queue(queue, work_pool_name=POOL)


def deployment_changes(client: SyncPrefectClient, file: Path) -> Iterator[tuple[str, Change]]:
    """The deployments of `file` that the server has not, or has otherwise, by their name.

    Raises:
        UserError: `file` cannot be read or names what does not exist.
    """
    for entry in declared(file):
        try:
            flow: Flow[..., Any] = load_flow_from_entrypoint(entry["entrypoint"], use_placeholder_flow=False)
        except (ImportError, MissingFlowError) as error:
            raise UserError(
                f"deployment {entry['name']}: {error}", file=file, remedy="mend its entrypoint"
            ) from None
        wanted = _as_declared(entry, flow.description, parameter_schema(flow).model_dump(exclude_unset=True))
        name = f"{flow.name}/{entry['name']}"
        try:
            there = _as_deployed(client.read_deployment_by_name(name))
        except ObjectNotFound:
            yield entry["name"], Change(f"deployment {name}", "is missing")
            continue
        if differs := [field for field, value in wanted.items() if there[field] != value]:
            yield entry["name"], Change(f"deployment {name}", f"differs: {', '.join(differs)}")


def declared(file: Path) -> list[dict[str, Any]]:
    """The deployments of a prefect.yaml, as they stand there.

    Raises:
        UserError: it is no prefect.yaml.
    """
    try:
        return list(yaml.safe_load(file.read_text(encoding="utf-8"))["deployments"])
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise UserError(f"no list of deployments: {error}", file=file, remedy="git checkout it") from None


def _as_declared(
    entry: Mapping[str, Any], description: str | None, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    pool = entry["work_pool"]
    limit = entry.get("concurrency_limit") or {}
    return {
        "entrypoint": entry["entrypoint"],
        "description": entry.get("description") or description,
        "tags": sorted(entry.get("tags") or []),
        "parameters": entry.get("parameters") or {},
        "parameter form": parameters,
        "work queue": (pool["name"], pool["work_queue_name"]),
        "job variables": pool.get("job_variables") or {},
        "pull steps": entry.get("pull") or [],
        "concurrency limit": (limit.get("limit"), limit.get("collision_strategy")),
        "schedules": sorted(
            (each["slug"], each["cron"], each["timezone"], each["active"])
            for each in entry.get("schedules") or []
        ),
        "paused": False,
    }


def _as_deployed(there: DeploymentResponse) -> dict[str, Any]:
    limit, options = there.global_concurrency_limit, there.concurrency_options
    return {
        "entrypoint": there.entrypoint,
        "description": there.description,
        "tags": sorted(there.tags),
        "parameters": there.parameters,
        "parameter form": there.parameter_openapi_schema,
        "work queue": (there.work_pool_name, there.work_queue_name),
        "job variables": there.job_variables,
        "pull steps": there.pull_steps or [],
        "concurrency limit": (limit and limit.limit, options and options.collision_strategy.value),
        "schedules": sorted(
            (
                each.slug,
                getattr(each.schedule, "cron", None),
                getattr(each.schedule, "timezone", None),
                each.active,
            )
            for each in there.schedules
        ),
        "paused": there.paused,
    }


def _prefect_deploy(clone: Clone, file: Path, names: list[str]) -> None:
    """Prefect's own command for these deployments of `file`."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(file)]
    for name in names:
        command += ["--name", name]
    environment = get_current_settings().to_environment_variables(exclude_unset=True)
    done = subprocess.run(
        command,
        cwd=clone.root,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-8:]
        raise UserError(
            "prefect deploy failed: " + "\n".join(said), file=file, remedy="mend it and try again"
        )


def _block(dry_run: bool) -> Iterator[Change]:
    """The webhook, where UNDERSTUDY_WEBHOOK_URL names one; one that is there stays without it."""
    url = settings().webhook_url
    if not url:  # an empty variable of an environment file is none, too
        return
    there = _find_block()
    wanted = Webhook(url=url, headers=_HEADERS)
    if there is None:
        yield Change(f"webhook {BLOCK}", "is missing")
    elif (there.url, there.headers) != (wanted.url, wanted.headers):
        yield Change(f"webhook {BLOCK}", "differs")
    else:
        return
    if not dry_run:
        wanted.save(BLOCK, overwrite=True)


def _find_block() -> Webhook | None:
    try:
        found = Webhook.load(BLOCK)
    except ValueError:  # Prefect's word for: there is none of that name
        return None
    assert isinstance(found, Webhook)  # a coroutine where an event loop runs, which here none does
    return found


def automation_changes(
    client: SyncPrefectClient, block: UUID | None
) -> Iterator[tuple[AutomationCore, UUID | None, Change]]:
    """The automations that the server has not, or has otherwise: as wanted, the id of what is there, the change.

    Args:
        block: the webhook's, for those that notify; None: there is none, and so are they not.
    """
    for wanted in [*recovery(), *(notifications(block) if block else [])]:
        found = client.read_automations_by_name(wanted.name)
        if not found:
            yield wanted, None, Change(f"automation {wanted.name}", "is missing")
            continue
        there = AutomationCore.model_validate(found[0].model_dump())
        if differs := [
            field
            for field in ("description", "enabled", "trigger", "actions")
            if getattr(there, field) != getattr(wanted, field)
        ]:
            yield wanted, found[0].id, Change(f"automation {wanted.name}", f"differs: {', '.join(differs)}")


def block_id() -> UUID | None:
    """The id of the webhook's block on the server; None where there is none."""
    there = _find_block()
    return there._block_document_id if there else None


def _automations(client: SyncPrefectClient, dry_run: bool) -> Iterator[Change]:
    block = block_id()
    if block is None and settings().webhook_url:
        block = _NO_BLOCK  # a dry run: it would be created
    for wanted, there, change in automation_changes(client, block):
        yield change
        if dry_run:
            continue
        if there is None:
            client.create_automation(wanted)
        else:
            # Only what was set is sent: all of it has to be, or what is off stays off.
            whole = AutomationCore.model_validate(wanted.model_dump(exclude={"owner_resource"}))
            client.update_automation(there, whole)
