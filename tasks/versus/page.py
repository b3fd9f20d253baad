"""Two versions as one HTML file, with the look of the report: nothing loaded from elsewhere, no scripts."""

from collections.abc import Sequence
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
import torch
from markupsafe import Markup
from matplotlib.axes import Axes

from models.calibration import reliability_of
from tasks.gate import Verdict
from tasks.pairing import Part
from tasks.report.drawing import FAINT, ROLE_COLOURS, STYLE, Drawing, gridlines, panels
from tasks.report.page import STYLE as LOOK
from tasks.scorecard import Said
from tasks.versus.compared import Versus
from tasks.versus.table import TITLES, difference, shown

_TEMPLATE = Path(__file__).with_name("page.html.j2")
_COLOURS = (ROLE_COLOURS["baseline"], ROLE_COLOURS["student"])
_MOST_PARTS = 60
"""More lines than this cannot be read in one picture; those that change least are left out."""


def render(versus: Versus | None, verdict: Verdict | None, bins: int) -> str:
    """The page; names from the data are escaped.

    Args:
        versus: the two versions; None where there is nothing to compare, and a verdict says why.
        verdict: of the gate on the second one, if it was asked.
        bins: of the reliability diagrams.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"shown": shown, "difference": difference}
    drawings = draw(versus, bins) if versus else []
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        style=LOOK,
        versus=versus,
        verdict=verdict,
        titles=TITLES,
        tints=_COLOURS,
        drawings={d.name: {"svg": Markup(d.svg()), "caption": d.caption} for d in drawings},
    )


def draw(versus: Versus, bins: int) -> list[Drawing]:
    """Reliability diagrams side by side, then every class, then the slices."""
    with matplotlib.rc_context(STYLE):
        drawings = [_reliability(versus, bins)]
        for head, parts in versus.classes.items():
            drawings.append(_parts(f"classes-{head}", f"{head}: right, % (clips)", parts, versus))
        if versus.slices:
            drawings.append(_parts("slices", f"{versus.head}: right, % (clips)", versus.slices, versus))
        return drawings


def _reliability(versus: Versus, bins: int) -> Drawing:
    figure, grid = panels(7, 3.7, 1, 2)
    figures = versus.heads[versus.head]["ece"]
    for axes, side, ece, tint in zip(
        grid, versus.sides, (figures.before, figures.after), _COLOURS, strict=True
    ):
        _diagram(axes, versus.said(side), bins, tint)
        axes.set_title(f"{side.title}\nECE {ece:.3f}", fontsize=9)
    figure.supxlabel("confidence", fontsize=10)
    figure.supylabel("fraction right", fontsize=10)
    return Drawing(
        "reliability",
        f"The {versus.head}, after the temperature that ships. On the diagonal, confidence is what it claims; "
        "below it the version is overconfident. Area of a dot: test clips in the bin.",
        figure,
    )


def _diagram(axes: Axes, said: Said, bins: int, tint: str) -> None:
    found = reliability_of(torch.from_numpy(said.confidence), torch.from_numpy(said.top1).bool(), bins)
    filled = found.count > 0
    sure, right, count = (
        values[filled].numpy() for values in (found.confidence, found.accuracy, found.count)
    )
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
    axes.plot(sure, right, color=tint, linewidth=1.6)
    axes.scatter(sure, right, s=6 + 90 * count / count.max(), color=tint)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal")
    gridlines(axes, "both")


def _parts(name: str, title: str, parts: Sequence[Part], versus: Versus) -> Drawing:
    """One line a part: a hollow dot for the first version, a full one for the second."""
    chosen = sorted(parts, key=lambda part: -abs(part.change))[:_MOST_PARTS]
    lines = [part for part in parts if part in chosen][::-1]
    figure, (axes,) = panels(8, 1.1 + 0.27 * len(lines), 1, 1)
    places = np.arange(len(lines))
    before, after = (100 * np.array([getattr(part, when) for part in lines]) for when in ("before", "after"))
    axes.hlines(
        places, np.minimum(before, after), np.maximum(before, after), color=FAINT, linewidth=1.5, alpha=0.6
    )
    axes.scatter(before, places, s=46, color="none", edgecolor=_COLOURS[0], zorder=3)
    axes.scatter(after, places, s=46, color=_COLOURS[1], edgecolor=_COLOURS[1], zorder=3)
    axes.set_yticks(places, [f"{part.name}  ({part.clips})" for part in lines])
    axes.set(xlim=(-3, 103), ylim=(-0.7, len(lines) - 0.3))
    axes.tick_params(axis="y", length=0)
    axes.set_title(title)
    gridlines(axes, "x")
    first, second = versus.sides
    limited = "" if len(lines) == len(parts) else f" The {len(lines)} that change most, of {len(parts)}."
    caption = f"○ {first.title}, ● {second.title}; what loses most stands on top. Small parts swing widely.{limited}"
    return Drawing(name, caption, figure)
