"""What Prefect's server does by itself: notice lost runs, start them again so many times, and tell people.

The bound of the second is Prefect's own count of a run's starts: the trigger names the counts at which it may act.
"""

from datetime import timedelta
from uuid import UUID

from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import (
    AutomationCore,
    EventTrigger,
    Posture,
    ResourceSpecificationDict,
)

from flows.events import CHALLENGER_BEATS_CHAMPION, CHAMPION_DRIFTED
from flows.infra import HEARTBEAT_S, STAGE_DEPLOYMENT, STARTS, TAG

LOST_AFTER = timedelta(seconds=3 * HEARTBEAT_S)
UNSTARTED_AFTER = timedelta(minutes=30)
"""From the worker that takes a run to its first line: the first `dvc pull` of all data lies between (flows/newest.py),
or a pod that waits for its image (infra/kubernetes/pool.json allows it 15 min)."""
LATE_AFTER = timedelta(minutes=30)
"""A scheduled run may wait so long for the run before it; then the coordinator's machine is probably dead."""
AGAIN_AFTER = timedelta(seconds=60)
"""A worker that gets its crashed run back before it has put it away calls it crashed once more, or dies of it; on a
loaded machine putting away takes 20 s."""
_ENDS = {
    f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelling", "Cancelled", "Crashed")
}
"""Cancelling is among them: what somebody cancels must not be started again."""
_WAITS = {"prefect.flow-run.Suspended", "prefect.flow-run.Paused"}
"""A run that waits for a person (flows/approve.py) has no process, and so gives no sign of life for days."""
_A_RUN: ResourceSpecificationDict = {"prefect.resource.id": "prefect.flow-run.*"}
_OURS: ResourceSpecificationDict = {
    "prefect.resource.role": "tag",
    "prefect.resource.id": f"prefect.tag.{TAG}",
}
_DEPLOYED: ResourceSpecificationDict = {
    "prefect.resource.role": "deployment",
    "prefect.resource.id": "prefect.deployment.*",
}
_STAGE = STAGE_DEPLOYMENT.partition("/")[2]
_AWAITED = ["nightly", "weekly"]
"""Deployments of whose silence somebody must hear; the hourly one waits while a night is going on."""
_RUN_TEXT = (
    "{{ flow.name }} ({{ flow_run.name }}): {{ event.resource['prefect.state-name'] }} in start "
    "{{ event.resource['prefect.run-count'] }}. {{ event.resource['prefect.state-message'] }} {{ flow_run|ui_url }}"
)
_LOST = f"No sign of life for {LOST_AFTER.seconds} s."
_UNSTARTED = f"Its worker did not start it within {UNSTARTED_AFTER.seconds} s."
_LATE_TEXT = (
    "{{ flow.name }} ({{ flow_run.name }}): scheduled, and no worker of its queue took it for "
    f"{LATE_AFTER.seconds // 60} min. Is the coordinator's machine up? " + "{{ flow_run|ui_url }}"
)
_VERSION_TEXT = "{{ event.resource['prefect.resource.name'] }} %s: {{ event.payload['summary'] }}"
_VERSIONS = [
    ("tell of better challengers", CHALLENGER_BEATS_CHAMPION, "beats the champion"),
    ("tell of a drifted champion", CHAMPION_DRIFTED, "is no longer what it was"),
]
"""Name, event, and what it says of the version."""


def recovery() -> list[AutomationCore]:
    """Those that bring lost runs back."""
    return [
        AutomationCore(
            name="understudy: lost run",
            description="A run that gives no sign of life, because its process was killed, is marked as crashed.",
            trigger=EventTrigger(
                match=_A_RUN,
                match_related=_OURS,
                for_each={"prefect.resource.id"},
                # Running, too: a run that dies in its first second gives no sign of life at all.
                after={"prefect.flow-run.Running", "prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.heartbeat", *_ENDS, *_WAITS},
                posture=Posture.Proactive,
                threshold=1,
                within=LOST_AFTER,
            ),
            actions=[_set(StateType.CRASHED, "Crashed", _LOST)],
        ),
        AutomationCore(
            name="understudy: run never started",
            description="A run that a worker took and did not start, because it was killed, is marked as crashed.",
            trigger=EventTrigger(
                match=_A_RUN,
                match_related=_OURS,
                for_each={"prefect.resource.id"},
                after={"prefect.flow-run.Pending"},
                expect={"prefect.flow-run.Running", *_ENDS, *_WAITS},
                posture=Posture.Proactive,
                threshold=1,
                within=UNSTARTED_AFTER,
            ),
            actions=[_set(StateType.CRASHED, "Crashed", _UNSTARTED)],
        ),
        AutomationCore(
            name="understudy: start again elsewhere",
            description="A run that its worker lost is started again in place, once at each count of its starts.",
            trigger=EventTrigger(
                match=_A_RUN
                | {"prefect.run-count": _counts(0), "prefect.state-message": [_LOST, _UNSTARTED]},
                match_related=[_OURS, _DEPLOYED],
                for_each={"prefect.resource.id", "prefect.run-count"},
                expect={"prefect.flow-run.Crashed"},
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(days=1),  # having fired, it waits for the rest of it
            ),
            actions=[_start_again()],
        ),
        AutomationCore(
            name="understudy: start again",
            description=f"A run whose process died is started again in place, until it was started {STARTS} times.",
            trigger=EventTrigger(
                match=_A_RUN | {"prefect.run-count": _counts(1), "prefect.state-message": f"!{_LOST}"},
                match_related=[_OURS, _DEPLOYED],
                for_each={"prefect.resource.id"},
                after={"prefect.flow-run.Crashed"},
                expect={f"prefect.flow-run.{state}" for state in ("AwaitingRetry", "Scheduled", "Running")},
                posture=Posture.Proactive,
                threshold=1,
                within=AGAIN_AFTER,
            ),
            actions=[_start_again()],
        ),
    ]


def notifications(block: UUID) -> list[AutomationCore]:
    """Those that tell people, through the webhook block of that id."""
    return [
        AutomationCore(
            name="understudy: tell of failed and crashed runs",
            description="Calls the webhook when a run fails or crashes; a stage's is told by the run it belongs to.",
            trigger=EventTrigger(
                match=_A_RUN,
                match_related=[_OURS, _DEPLOYED | {"prefect.resource.name": f"!{_STAGE}"}],
                expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
                posture=Posture.Reactive,
                threshold=1,
            ),
            actions=[CallWebhook(block_document_id=block, payload=_as_json(_RUN_TEXT))],
        ),
        AutomationCore(
            name="understudy: tell of runs that nobody takes",
            description="Calls the webhook when a scheduled nightly or weekly run is late and no worker takes it.",
            trigger=EventTrigger(
                match=_A_RUN,
                match_related=[_OURS, _DEPLOYED | {"prefect.resource.name": _AWAITED}],
                for_each={"prefect.resource.id"},
                after={"prefect.flow-run.Late"},
                expect={"prefect.flow-run.Pending", "prefect.flow-run.Running", *_ENDS},
                posture=Posture.Proactive,
                threshold=1,
                within=LATE_AFTER,
            ),
            actions=[CallWebhook(block_document_id=block, payload=_as_json(_LATE_TEXT))],
        ),
        *(_of_a_version(block, *about) for about in _VERSIONS),
    ]


def _start_again() -> ChangeFlowRunState:
    """What Retry in Prefect's UI does."""
    return _set(
        StateType.SCHEDULED, "AwaitingRetry", f"Started again after a crash; at most {STARTS} starts."
    )


def _set(state: StateType, name: str, message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(state=state, name=name, message=message, force=False)


def _counts(first: int) -> list[str]:
    """The counts of starts, from `first`, at which a run may be started once more."""
    return [str(count) for count in range(first, STARTS)]


def _of_a_version(block: UUID, name: str, event: str, says: str) -> AutomationCore:
    return AutomationCore(
        name=f"understudy: {name}",
        description=f"Calls the webhook when a version {says}.",
        trigger=EventTrigger(
            match={"prefect.resource.id": "understudy.model-version.*"},
            expect={event},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[CallWebhook(block_document_id=block, payload=_as_json(_VERSION_TEXT % says))],
    )


def _as_json(text: str) -> str:
    """The template of {"text": …}, which Slack, Mattermost and Teams take; what it says is escaped."""
    return "{% set text %}" + text + '{% endset %}{"text": {{ text|tojson }}}'
