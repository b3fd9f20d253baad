"""Prefect events of ours: their names, and how each is told. Automations react to them (flows/automations.py)."""

from prefect.events import emit_event

CHALLENGER_BEATS_CHAMPION = "understudy.challenger.beats_champion"
"""A registered version is better than the champion."""


def challenger_beats_champion(version: str, summary: str) -> None:
    """Tell that a challenger passed the gate, so that somebody looks at it.

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
    )
