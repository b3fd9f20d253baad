"""Prefect events of ours: their names, and how each is told. Automations react to them (flows/automations.py)."""

from uuid import NAMESPACE_URL, uuid5

from prefect.events import emit_event

CHALLENGER_BEATS_CHAMPION = "understudy.challenger.beats_champion"
"""A registered version is better than the champion."""


def challenger_beats_champion(version: str, summary: str) -> None:
    """Tell that a challenger passed the gate, so that somebody looks at it. Told twice, it is one event.

    Args:
        version: the registered version's number.
        summary: the figures of both in a line, as a person reads them.
    """
    emit_event(
        CHALLENGER_BEATS_CHAMPION,
        resource={
            "prefect.resource.id": f"understudy.model-version.{version}",
            "prefect.resource.name": f"understudy-student, version {version}",
        },
        payload={"summary": summary},
        id=uuid5(NAMESPACE_URL, f"{CHALLENGER_BEATS_CHAMPION}/{version}/{summary}"),
    )
