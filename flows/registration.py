"""That the release is in the MLflow registry of this machine, whoever made it."""

import itertools
import json
import re
import subprocess
import sys
from typing import Any

from flows.clone import Clone
from flows.infra import APPROVAL_DEPLOYMENT
from tasks.atomic import file_digest
from tasks.errors import InfrastructureError, UserError
from tasks.layout import Workspace
from tasks.params import load

_OURS = ("understudy-student version ", "gate: ")
"""How the lines begin that say what was done; MLflow prints others."""


def ensure_registered(clone: Clone) -> str:
    """Bring the release into this tracking server where it is not there yet; which version it is, and the gate's word.

    A release that DVC restored from its cache made no MLflow run here, so the stage alone is not enough. In a
    process of its own: importing MLflow takes seconds that a pipeline without a release need not pay.

    Raises:
        UserError: a file of the release is not what was packaged.
        InfrastructureError: the tracking server or its registry could not be used.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tasks", "ensure_registered"],
        cwd=clone.root,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        # what MLflow logs may stand before the message; without one, a traceback ends in the cause
        message = re.search(r"^error: (.*)", said, re.MULTILINE | re.DOTALL)
        cause = message[1] if message else said.rpartition("\n")[2]
        kind = UserError if done.returncode == UserError.exit_code else InfrastructureError
        raise kind(f"the release is not in the MLflow registry: {cause}")
    return "\n".join(line for line in done.stdout.splitlines() if line.startswith(_OURS))


def publish_verdict(clone: Clone) -> None:
    """What the gate says of the release, as an artifact of this flow run; an event where it beats the champion.

    Nothing where there is no release, or the gate was not asked about it. The event once a run as long as nobody has
    promoted or declined the version, or the gate itself made it champion: a night that changes nothing has the same
    release, and what was to be told in one before may have failed.

    Raises:
        InfrastructureError: the tracking server or its registry could not be used.
    """
    from prefect.artifacts import create_markdown_artifact

    from flows.events import challenger_beats_champion

    workspace = Workspace(clone.root)
    if not (workspace.release / "release.json").is_file():
        return
    from tasks.promotion import awaits_decision, went_live  # takes seconds

    said = ensure_registered(clone)  # judges it where DVC restored the release, so that the stage did not
    verdict = _verdict(workspace)
    if verdict is None:
        return
    create_markdown_artifact(
        (workspace.gate / "verdict.md").read_text(encoding="utf-8"),
        key="gate",
        description=f"The gate on version {verdict['version']}: {verdict['outcome']}",
    )
    waits = awaits_decision(verdict["version"]) in said.splitlines()
    if waits or went_live(verdict["version"]) in said.splitlines():
        challenger_beats_champion(verdict["version"], verdict["summary"])
    if waits and load(workspace.params).gate.promote == "ask":
        _ask(verdict["version"])


def _ask(version: str) -> None:
    """Have Prefect's server ask a person whether the version becomes the champion, until it has an answer."""
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound

    try:
        for attempt in itertools.count():
            run: Any = run_deployment(  # a coroutine only where it is awaited
                APPROVAL_DEPLOYMENT,
                parameters={"version": version},
                flow_run_name=f"version {version}",
                timeout=0,
                as_subflow=False,
                idempotency_key=f"approve version {version} {attempt}",
            )
            if not run.state.is_final() or run.state.is_completed():
                return  # it is being asked, or was answered
    except ObjectNotFound:  # a server of one's own, where nobody deployed
        print(
            f"gate: nobody can be asked here ({APPROVAL_DEPLOYMENT}); say it yourself: understudy promote {version}"
        )


def _verdict(workspace: Workspace) -> dict[str, str] | None:
    """The verdict of reports/gate, if it is of the release that lies here."""
    file = workspace.gate / "verdict.json"
    if not file.is_file():
        return None
    verdict: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    same = verdict["release_digest"] == file_digest(workspace.release / "release.json")
    return verdict if same else None
