"""The pictures of a study, drawn from study.json in the style of the report's."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from tasks.report import ACTION
from tasks.report.drawing import FAINT, FURTHER_COLOURS, INK, ROLE_COLOURS, STYLE, Drawing, gridlines, panels
from tasks.study.table import SCALES, TITLES

_COLOURS = (ROLE_COLOURS["student"], *FURTHER_COLOURS, ROLE_COLOURS["ensemble"], ROLE_COLOURS["teacher"])
_MARKS = "osD^vPX"
"""With the colours: 6 × 7 methods before two look alike."""

Row = Mapping[str, Any]


def draw(study: Row) -> list[Drawing]:
    """All pictures: for every data set its figures, differences, views and cost."""
    with matplotlib.rc_context(STYLE):
        return [
            drawing(study, data)
            for data in study["data_sets"]
            for drawing in (figures, differences, views, cost)
        ]


def looks(study: Row) -> dict[str, tuple[str, str]]:
    """Method → its colour and mark, the same in all pictures; the baseline is grey."""
    others = [name for name in study["methods"] if name != study["baseline"]]
    found = {
        name: (_COLOURS[place % len(_COLOURS)], _MARKS[place % len(_MARKS)])
        for place, name in enumerate(others)
    }
    return {study["baseline"]: (ROLE_COLOURS["baseline"], "o"), **found}


def figures(study: Row, data: Row) -> Drawing:
    """Accuracy and calibration of every method: seeds, mean, interval."""
    rows = data["methods"]
    figure, axes = panels(10, 1.1 + 0.4 * len(rows), 1, 3)
    for place, (panel, name) in enumerate(zip(axes, ("top1", "ece", "ece_scaled"), strict=True)):
        _values(panel, rows, [row["heads"][ACTION][name] for row in rows], SCALES[name], study, place == 0)
        panel.set_title(
            {"top1": "Right actions, %", "ece": "ECE as trained"}.get(name, "ECE after temperature")
        )
    return Drawing(
        f"figures-{data['name']}",
        "Test split, action. Dots: seeds; bar: their mean; line: 95 % interval of a bootstrap over clips and seeds. "
        "Of ECE, less is better.",
        figure,
    )


def differences(study: Row, data: Row) -> Drawing:
    """Every method minus the baseline, in points of top-1, NLL and ECE."""
    rows = [row for row in data["methods"] if row["differences"]]
    shown = ("top1", "nll", "ece", "ece_scaled")
    figure, axes = panels(10, 1.1 + 0.4 * len(rows), 1, len(shown))
    for place, (panel, name) in enumerate(zip(axes, shown, strict=True)):
        values = [row["differences"][ACTION][name] for row in rows]
        _values(panel, rows, values, SCALES[name], study, place == 0)
        panel.axvline(0, color=INK, linewidth=1, linestyle=":")
        panel.set_title(f"Δ {'top-1, points' if name == 'top1' else TITLES[name]}")
    return Drawing(
        f"differences-{data['name']}",
        f"Action, each method minus {study['baseline']} on the same clips and seeds. Right of the dotted line is "
        "better for top-1, left of it for NLL and ECE. A line that crosses it: chance may have done that.",
        figure,
    )


def _values(
    axes: Axes, rows: Sequence[Row], values: Sequence[Row], scale: tuple[float, int], study: Row, named: bool
) -> None:
    """One line a method: interval, mean and seeds."""
    factor, _ = scale
    places = np.arange(len(rows))[::-1]
    for place, row, value in zip(places, rows, values, strict=True):
        colour, mark = looks(study)[row["name"]]
        low, high = (factor * bound for bound in value["ci95"])
        seeds = [factor * each for each in value["per_seed"]]
        axes.plot([low, high], [place, place], color=colour, linewidth=2.2, alpha=0.75, solid_capstyle="butt")
        axes.plot([factor * value["mean"]] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=2.4)
        axes.scatter(seeds, [place] * len(seeds), s=16, marker=mark, color="none", edgecolor=INK, zorder=3)
    axes.set_yticks(places, [row["name"] for row in rows] if named else [])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    gridlines(axes, "x")


def views(study: Row, data: Row) -> Drawing:
    """Accuracy and calibration of every method against the number of views, each beside the baseline."""
    titles = {"top1": "right actions, %", "ece": "ECE as trained", "ece_scaled": "ECE after temperature"}
    others = [row for row in data["methods"] if row["name"] != study["baseline"]]
    baseline = [row for row in data["methods"] if row["name"] == study["baseline"]]
    columns = min(6, len(others))
    lines = -(-len(others) // columns)
    figure, axes = panels(10, 0.4 + 1.75 * len(titles) * lines, len(titles) * lines, columns)
    for block, (name, title) in enumerate(titles.items()):
        block_axes = axes[block * lines * columns : (block + 1) * lines * columns]
        for place, panel in enumerate(block_axes):
            if place >= len(others):
                panel.set_visible(False)
                continue
            panel.sharey(block_axes[0])
            for row in (*baseline, others[place]):
                _sweep(panel, row, name, looks(study)[row["name"]])
            panel.set_title(others[place]["name"], fontsize=9)
            panel.set_xlim(left=0)
            panel.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
            panel.tick_params(labelleft=place % columns == 0)
            if place % columns == 0:
                panel.set_ylabel(title)
            gridlines(panel, "y")
    figure.supxlabel("views (clips × crops)", fontsize=9)
    return Drawing(
        f"views-{data['name']}",
        f"Views of a clip averaged before the softmax; solid: one crop, dashed: three; grey: {study['baseline']}. "
        "Mean over seeds.",
        figure,
    )


def _sweep(axes: Axes, row: Row, name: str, look: tuple[str, str]) -> None:
    """One figure of one method, a line for each number of crops."""
    for crops in sorted({point["crops"] for point in row["views"]}):
        line = sorted((p for p in row["views"] if p["crops"] == crops), key=lambda p: p["views"])
        axes.plot(
            [point["views"] for point in line],
            [SCALES[name][0] * point[name] for point in line],
            "-" if crops == 1 else "--",
            color=look[0],
            marker=look[1],
            markersize=4.0,
            linewidth=1.5,
        )


def cost(study: Row, data: Row) -> Drawing:
    """Accuracy and calibration against what the training took."""
    figure, axes = panels(10, 3.3, 1, 2)
    for panel, name in zip(axes, ("top1", "ece"), strict=True):
        factor = SCALES[name][0]
        for row in data["methods"]:
            colour, mark = looks(study)[row["name"]]
            value = row["heads"][ACTION][name]
            place = row["training"]["seconds"] / len(study["seeds"]) / 60, factor * value["mean"]
            low, high = (factor * bound for bound in value["ci95"])
            panel.plot([place[0]] * 2, [low, high], color=FAINT, linewidth=1)
            panel.scatter(*place, s=42, marker=mark, color=colour, zorder=3, label=row["name"])
        panel.set_xlim(left=0)
        panel.margins(x=0.12)
        panel.set_xlabel("minutes to train one seed of the student")
        panel.set_title("Right actions, %" if name == "top1" else "ECE as trained")
        gridlines(panel, "both")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False, fontsize=9
    )
    return Drawing(
        f"cost-{data['name']}",
        "What the student's own training took, as measured when it ran; teachers are trained once for all methods. "
        "All methods cost the same when used, unless their networks differ.",
        figure,
    )
