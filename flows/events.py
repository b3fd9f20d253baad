"""Prefect events of ours: their names, and how each is told. Automations react to them (flows/automations.py)."""

from uuid import NAMESPACE_URL, uuid5

from prefect.events import emit_event

CHALLENGER_BEATS_CHAMPION = "understudy.challenger.beats_champion"
"""A registered version is better than the champion."""
CHAMPION_DRIFTED = "understudy.champion.drifted"
"""On today's test split the champion's figures left the intervals that they had at its registration."""


def challenger_beats_champion(version: str, summary: str) -> None:
    """Tell that a challenger passed the gate, so that somebody looks at it. Told twice, it is one event.

    Args:
        version: the registered version's number.
        summary: the figures of both in a line, as a person reads them.
    """
    _tell(CHALLENGER_BEATS_CHAMPION, version, summary)


def champion_drifted(version: str, summary: str) -> None:
    """Tell that the champion is no longer worth what it was; arguments as of `challenger_beats_champion`."""
    _tell(CHAMPION_DRIFTED, version, summary)


def _tell(event: str, version: str, summary: str) -> None:
    emit_event(
        event,
        resource={
            "prefect.resource.id": f"understudy.model-version.{version}",
            "prefect.resource.name": f"understudy-student, version {version}",
        },
        payload={"summary": summary},
        id=uuid5(NAMESPACE_URL, f"{event}/{version}/{summary}"),
    )
