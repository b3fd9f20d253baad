"""reports/index.html: one file, nothing loaded from elsewhere, no scripts, light or dark as preferred."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tasks.report import ACTION
from tasks.report.drawing import Drawing
from tasks.report.figures import colours
from tasks.report.table import further_heads, with_spread
from tasks.report.verdict import verdict

_TEMPLATE = Path(__file__).with_name("page.html.j2")
STYLE = Markup(Path(__file__).with_name("page.css").read_text(encoding="utf-8"))
"""The look of a page, light or dark."""


def render(comparison: Mapping[str, Any], drawings: Sequence[Drawing]) -> str:
    """The page of a comparison and its pictures; names from the data are escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"spread": with_spread, "interval": _interval}
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        style=STYLE,
        comparison=comparison,
        rows=comparison["rows"],
        verdict=verdict(comparison),
        action=ACTION,
        heads=further_heads(comparison),
        tints=colours(comparison),
        blind=_blind(comparison),
        drawings={d.name: {"svg": Markup(d.svg()), "caption": d.caption} for d in drawings},
    )


def _blind(comparison: Mapping[str, Any]) -> dict[str, int]:
    """Model → test clips that it cannot see, where there are any."""
    unseen = {row["name"]: comparison["clips"] - row["clips_seen"] for row in comparison["rows"]}
    return {name: clips for name, clips in unseen.items() if clips}


def _interval(bounds: Sequence[float], scale: float, digits: int) -> str:
    low, high = (scale * bound for bound in bounds)
    return f"{low:.{digits}f} – {high:.{digits}f}"
