"""The flow `approve`: a person reads the gate's verdict in Prefect's UI and decides whether a version goes live.

Asked for with `gate.promote: ask`, by the pipeline's run for each challenger that passes, or started by hand. The run
is suspended, not kept waiting: it holds no worker, and may be answered days later.
"""

from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.states import Completed
from pydantic import Field

from flows.clone import of_flow
from tasks import promotion
from tasks.gate import markdown
from tasks.layout import Workspace
from tasks.params import load


class Decision(RunInput):
    """What a person says; the form in Prefect's UI."""

    version: str = Field(description="The version that is decided on.")
    promote: bool = Field(default=False, description="Make it the champion.")
    who: str = Field(
        min_length=1, max_length=80, description="Your name: it stands in the version's history."
    )
    reason: str = Field(default="", max_length=380, description="Why; kept with the version.")


@flow(log_prints=True, persist_result=False, result_serializer="json")
def approve(version: str = "challenger", root: Path | None = None) -> State[Any] | str:
    """Ask a person whether a registered version becomes the champion, and do what they say.

    Resumed, Prefect begins it again from its first line; `suspend_flow_run` then gives what was said.

    Args:
        version: Its number or alias.
        root: The clone whose params hold the gate's thresholds. Default: UNDERSTUDY_CLONE, else the current folder.

    Returns:
        What was done; a state Declined where the person said no.

    Raises:
        UserError: no such version, or the gate does not let it pass: what a person says here does not force it.
    """
    workspace = Workspace(of_flow(root).root)
    params = load(workspace.params)
    verdict = promotion.judged(version, params, workspace)
    told = markdown(verdict)
    create_markdown_artifact(told, key="gate", description=f"The gate on version {verdict.version}")
    said = suspend_flow_run(wait_for_input=Decision.with_initial_data(told, version=verdict.version))
    words = f"{said.who} in Prefect" + (f": {said.reason}" if said.reason else "")
    if not said.promote:
        return Completed(name="Declined", message=promotion.decline(said.version, workspace, words))
    return promotion.promote(said.version, params, workspace, force=False, reason=words)
