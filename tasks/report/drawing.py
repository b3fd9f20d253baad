"""One picture, as PNG for folders and as SVG that takes the text colour of the page, light or dark."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#1b2430"
"""Text and lines that carry information; `currentColor` in the page."""
FAINT = "#8a94a6"
"""Grid and helper lines; readable on light and dark."""

# Okabe and Ito's palette, told apart with any colour vision; each role keeps its colour in every picture.
ROLE_COLOURS: Mapping[str, str] = {
    "teacher": "#56a0d3",
    "ensemble": "#009e73",
    "baseline": "#8a94a6",
    "student": "#d55e00",
}
FURTHER_COLOURS = ("#cc79a7", "#e69f00", "#0072b2")
"""For second and later students."""

STYLE: dict[Any, Any] = {  # holds while figures are drawn and saved
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "none",
    "text.parse_math": False,  # $ in a class name is a dollar
}


_PIXELS_AN_INCH = 108
"""In the page: 10 inches fill its width, so that letters are of one size in all pictures."""


@dataclass(frozen=True)
class Drawing:
    """A named picture with what a reader should take from it.

    Attributes:
        name: of its file and of its place in the page.
        caption: how to read it.
        figure: the picture.
    """

    name: str
    caption: str
    figure: Figure

    def save(self, file: Path) -> None:
        """Write it as PNG on white."""
        with matplotlib.rc_context(STYLE):
            self.figure.savefig(file, dpi=150, format="png", facecolor="white", metadata={"Software": None})

    def svg(self) -> str:
        """The <svg> element, on no background, the same text for the same picture."""
        text = io.StringIO()
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": self.name}):
            self.figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        element = text.getvalue()
        element = element[element.index("<svg") :]
        element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
        element = re.sub(
            r'<g id="[^"]*"', "<g", element
        )  # the same in every picture, so not unique in a page
        element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
        width = f'style="max-width: {self.figure.get_figwidth() * _PIXELS_AN_INCH:.0f}px"'
        element = re.sub(r'(<svg[^>]*?) width="[^"]*"', rf"\1 {width}", element, count=1)
        return element.replace(INK, "currentColor")


def panels(
    width: float, height: float, rows: int, columns: int, height_ratios: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """A new figure of width × height inches and its axes, row by row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=height_ratios)
    return figure, list(grid.flat)


def gridlines(axes: Axes, along: str) -> None:
    """Faint lines behind the data, at the ticks of the axis `along` ("x", "y" or "both")."""
    axes.grid(axis=along, color=FAINT, alpha=0.25, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
