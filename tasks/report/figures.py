"""The pictures of the report, drawn from comparison.json and the tables beside it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tasks.report import ACTION
from tasks.report.drawing import FAINT, FURTHER_COLOURS, INK, ROLE_COLOURS, STYLE, Drawing, gridlines, panels
from tasks.report.tables import Tables

MOST_CLASSES = 40
"""More classes than this cannot be read in one picture: the most frequent are shown."""

Row = Mapping[str, Any]


def draw(comparison: Row, tables: Tables, classes: Mapping[str, Sequence[str]]) -> list[Drawing]:
    """All pictures, in the order of the page.

    Args:
        comparison: what comparison.json holds.
        tables: the long tables beside it.
        classes: head → its classes, in order.
    """
    with matplotlib.rc_context(STYLE):
        drawings = [
            summary(comparison),
            reliability_diagrams(comparison, tables.reliability),
            views(comparison),
        ]
        names = [name for role in ("baseline", "student") if (name := comparison["headline"][role])]
        for head in classes:
            drawings.append(confusion(comparison, tables.predictions, head, classes[head], names))
            drawings.append(per_class(comparison, head, names))
        if comparison["slices"]:
            drawings.append(slices(comparison, names))
        return [*drawings, training_curves(comparison, tables.curves)]


def colours(comparison: Row) -> dict[str, str]:
    """Model → its colour: that of its role; students after the first have colours of their own."""
    found: dict[str, str] = {}
    further = iter(FURTHER_COLOURS * len(comparison["rows"]))
    for row in sorted(comparison["rows"], key=lambda row: row["name"] != comparison["headline"]["student"]):
        taken = row["role"] in ("student", "baseline") and ROLE_COLOURS[row["role"]] in found.values()
        found[row["name"]] = next(further) if taken else ROLE_COLOURS[row["role"]]
    return found


def summary(comparison: Row) -> Drawing:
    """Accuracy and calibration of every model, with intervals."""
    rows = comparison["rows"]
    figure, (left, right) = panels(10, 0.9 + 0.42 * len(rows), 1, 2)
    places = np.arange(len(rows))[::-1]
    tints = [colours(comparison)[row["name"]] for row in rows]
    names = [_with_senses(row) for row in rows]
    _bars(left, rows, places, tints, "top1", 100, "{:.1f} %")
    left.set_yticks(places, names)
    majority = 100 * comparison["majority"][ACTION]
    left.axvline(majority, color=INK, linestyle=":", linewidth=1)
    left.annotate(
        "most frequent class",
        (majority, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="left",
        fontsize=8,
    )
    left.set_title("Right actions, %", pad=16)
    _bars(right, rows, places, tints, "ece_scaled", 1, "{:.3f}")
    right.set_yticks(places, [])
    right.set_title("Calibration error (ECE)", pad=16)
    for row, label in zip(rows, left.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if row["role"] == "student" else "normal")
    return Drawing(
        "summary",
        "Test split, action (all heads right). Bars: mean over seeds; whiskers: 95 % bootstrap interval over "
        "clips. ECE, of which less is better, is after the temperature that ships with each model.",
        figure,
    )


def _with_senses(row: Row) -> str:
    sees = row["inference_modalities"]
    if [row["name"]] == sees:
        return row["name"]
    return f"{row['name']} ({sees[0] if len(sees) == 1 else f'{len(sees)} modalities'})"


def _bars(
    axes: Axes, rows: Sequence[Row], places: np.ndarray, tints: list[str], name: str, scale: float, form: str
) -> None:
    values = np.array([row["heads"][ACTION][name] for row in rows]) * scale
    bounds = np.array([row["heads"][ACTION][f"{name}_ci95"] for row in rows]) * scale
    axes.barh(places, values, color=tints, height=0.66)
    # An estimate may lie outside the interval of a skewed resampling; its whisker then starts at the bar.
    whiskers = np.clip(np.stack([values - bounds[:, 0], bounds[:, 1] - values]), 0, None)
    axes.errorbar(values, places, xerr=whiskers, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
    ends = np.maximum(values, bounds[:, 1])
    for end, place, value in zip(ends, places, values, strict=True):
        axes.annotate(
            form.format(value),
            (end, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_xlim(0, max(1.18 * ends.max(), 1e-3))
    axes.tick_params(axis="y", length=0)
    gridlines(axes, "x")


def reliability_diagrams(comparison: Row, reliability: pd.DataFrame) -> Drawing:
    """Accuracy against confidence of every model's action, before and after its temperature."""
    rows = comparison["rows"]
    columns = min(4, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure, grid = panels(2.55 * columns, 2.75 * lines, lines, columns)
    tints = colours(comparison)
    largest = reliability["count"].max()
    for axes, row in zip(grid, rows, strict=False):
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
        found = reliability[(reliability["name"] == row["name"]) & (reliability["head"] == ACTION)]
        before, after = (found[found["temperature"] == when] for when in ("before", "after"))
        if row["role"] != "ensemble":
            axes.plot(before["confidence"], before["accuracy"], color=INK, linewidth=1, linestyle=":")
        axes.plot(after["confidence"], after["accuracy"], color=tints[row["name"]], linewidth=1.6)
        axes.scatter(
            after["confidence"],
            after["accuracy"],
            s=6 + 90 * after["count"] / largest,
            color=tints[row["name"]],
        )
        figures = row["heads"][ACTION]
        before_it = "" if row["role"] == "ensemble" else f"{figures['ece']:.3f} → "
        axes.set_title(f"{row['name']}\nECE {before_it}{figures['ece_scaled']:.3f}", fontsize=9)
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal")
        gridlines(axes, "both")
    for axes in grid[len(rows) :]:
        axes.set_visible(False)
    figure.supxlabel("confidence", fontsize=10, color=INK)
    figure.supylabel("fraction right", fontsize=10, color=INK)
    return Drawing(
        "reliability",
        "On the diagonal, confidence is what it claims; below it the model is overconfident. Dotted: before "
        "the shipped temperature; coloured: after. Area of a dot: clips in the bin, seeds pooled.",
        figure,
    )


def views(comparison: Row) -> Drawing:
    """Accuracy and calibration of the RGB models against the number of views."""
    figure, axes = panels(10, 3.3, 1, 2)
    tints = colours(comparison)
    for place, (name, scale, title) in zip(
        axes, (("top1", 100, "Right actions, %"), ("ece_scaled", 1, "ECE after temperature")), strict=True
    ):
        for model, points in comparison["views"].items():
            for crops in sorted({point["crops"] for point in points}):
                line = sorted((p for p in points if p["crops"] == crops), key=lambda p: p["views"])
                xs, ys = [p["views"] for p in line], [scale * p[name] for p in line]
                style = "-" if crops == 1 else "--"
                place.plot(xs, ys, style, color=tints[model], marker="o", markersize=4, linewidth=1.6)
            most = max(points, key=lambda p: p["views"])
            place.annotate(
                model,
                (most["views"], scale * most[name]),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color=tints[model],
            )
        place.set_title(title)
        place.set_xlabel("views averaged (clips × crops)")
        place.xaxis.set_major_locator(MaxNLocator(integer=True))
        place.margins(x=0.22, y=0.15)
        place.set_xlim(left=0)
        gridlines(place, "y")
    return Drawing(
        "views",
        "Models that see RGB alone; solid: one crop, dashed: three. A view is one look at the clip; several "
        "are averaged before the softmax. A model that keeps its accuracy at the left end is cheap to run.",
        figure,
    )


def confusion(
    comparison: Row, predictions: pd.DataFrame, head: str, classes: Sequence[str], names: Sequence[str]
) -> Drawing:
    """Confusion matrices of one head, rows adding up to 1, seeds pooled."""
    own = predictions[predictions["head"] == head]
    shown = _shown_classes(own["true"], classes)
    side = min(max(3.4, 0.8 + 0.34 * len(shown)), 9.5)
    beside = len(shown) <= 12
    lines, columns = (1, len(names)) if beside else (len(names), 1)
    figure, grid = panels(side * columns + 1.2, (side + 0.3) * lines, lines, columns)
    for number, (axes, name) in enumerate(zip(grid, names, strict=True)):
        rows = own[own["name"] == name]
        counts = pd.crosstab(rows["true"], rows["predicted"]).reindex(
            index=shown, columns=shown, fill_value=0
        )
        totals = rows["true"].value_counts().reindex(shown, fill_value=0).to_numpy()[:, None]
        shares = counts.to_numpy() / np.maximum(totals, 1)
        _matrix(axes, shares, shown, colours(comparison)[name])
        axes.set_title(name)
        axes.set_ylabel(f"actual {head}" if number == 0 or not beside else "")
        axes.set_xlabel(f"predicted {head}")
        if number and beside:
            axes.set_yticklabels([])
    limited = (
        "" if len(shown) == len(classes) else f" The {len(shown)} most frequent of {len(classes)} classes."
    )
    return Drawing(
        f"confusion-{head}",
        f"Share, in %, of each actual {head} that was called what; each row adds up to 100, "
        f"shares below 5 have no number.{limited}",
        figure,
    )


def _matrix(axes: Axes, shares: np.ndarray, classes: Sequence[str], colour: str) -> None:
    """A matrix whose cells are opaque where the share is high, so that it reads on any background."""
    for (line, column), share in np.ndenumerate(shares):
        if share > 0:
            axes.fill_between(
                [column - 0.5, column + 0.5],
                line - 0.5,
                line + 0.5,
                color=colour,
                alpha=0.85 * share,
                linewidth=0,
            )
        if share >= 0.05 and len(classes) <= 20:
            axes.text(column, line, f"{100 * share:.0f}", ha="center", va="center", fontsize=8)
    places = range(len(classes))
    axes.set_xticks(places, classes, rotation=90 if len(classes) > 5 else 0)
    axes.set_yticks(places, classes)
    axes.set(xlim=(-0.5, len(classes) - 0.5), ylim=(len(classes) - 0.5, -0.5), aspect="equal")
    axes.tick_params(length=0, labelsize=9 if len(classes) <= 20 else 7)


def _shown_classes(actual: pd.Series, classes: Sequence[str]) -> list[str]:
    """The classes in their order; of too many, the most frequent in the test split."""
    if len(classes) <= MOST_CLASSES:
        return list(classes)
    frequent = set(actual.value_counts().index[:MOST_CLASSES])
    return [name for name in classes if name in frequent]


def per_class(comparison: Row, head: str, names: Sequence[str]) -> Drawing:
    """Accuracy of each class, student against baseline."""
    found = comparison["classes"][head]
    last = names[-1]
    ordered = sorted(found, key=lambda name: (found[name]["top1"][last], name))
    if len(ordered) > MOST_CLASSES:
        frequent = set(sorted(found, key=lambda name: -found[name]["clips"])[:MOST_CLASSES])
        ordered = [name for name in ordered if name in frequent]
    figure, (axes,) = panels(8, 1.1 + 0.27 * len(ordered), 1, 1)
    _dots(
        axes,
        [(f"{name}  ({found[name]['clips']})", found[name]["top1"]) for name in ordered],
        names,
        comparison,
    )
    axes.set_title(f"{head}: right, % (clips)")
    limited = "" if len(ordered) == len(found) else f" The {len(ordered)} most frequent of {len(found)}."
    caption = f"Accuracy of each {head} that is in the test split, with its number of clips.{limited}"
    return Drawing(f"classes-{head}", caption, figure)


def slices(comparison: Row, names: Sequence[str]) -> Drawing:
    """Accuracy of the action in each slice, student against baseline."""
    columns = comparison["slices"]
    heights = [max(2, len(values)) for values in columns.values()]
    figure, grid = panels(8, sum(0.85 + 0.27 * height for height in heights), len(columns), 1, heights)
    for axes, (column, values) in zip(grid, columns.items(), strict=True):
        lines = [(f"{value or 'none'}  ({entry['clips']})", entry["top1"]) for value, entry in values.items()]
        _dots(axes, lines[::-1], names, comparison)
        axes.set_title(f"{column}: right actions, % (clips)")
    return Drawing(
        "slices", "Accuracy of the action in parts of the test split; small parts swing widely.", figure
    )


def _dots(
    axes: Axes, lines: Sequence[tuple[str, Mapping[str, float]]], names: Sequence[str], comparison: Row
) -> None:
    """One line a label, one dot a model, joined; the top line is labelled with the models' names."""
    tints = colours(comparison)
    for place, (_, top1) in enumerate(lines):
        values = [100 * top1[name] for name in names]
        axes.plot([min(values), max(values)], [place, place], color=FAINT, linewidth=1.5, alpha=0.6)
        for name, value in zip(names, values, strict=True):
            hollow = name == comparison["headline"]["baseline"]
            axes.scatter(
                value, place, s=46, color="none" if hollow else tints[name], edgecolor=tints[name], zorder=3
            )
    for number, name in enumerate(names):
        mark = "○" if name == comparison["headline"]["baseline"] else "●"
        axes.annotate(
            f"{mark} {name}",
            (1, 1),
            xycoords="axes fraction",
            xytext=(-80 * (len(names) - 1 - number), 6),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color=tints[name],
        )
    axes.set_yticks(range(len(lines)), [label for label, _ in lines])
    axes.set(xlim=(-3, 103), ylim=(-0.7, len(lines) - 0.3))
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.tick_params(axis="y", length=0)
    gridlines(axes, "x")


def training_curves(comparison: Row, curves: pd.DataFrame) -> Drawing:
    """Validation accuracy of every network over its epochs."""
    names = list(dict.fromkeys(curves["name"]))
    columns = min(4, len(names))
    lines = math.ceil(len(names) / columns)
    figure, grid = panels(2.55 * columns, 2.3 * lines, lines, columns)
    tints = colours(comparison)
    for axes, name in zip(grid, names, strict=False):
        for _, line in curves[curves["name"] == name].groupby(["seed", "member"]):
            axes.plot(line["epoch"] + 1, 100 * line["val_top1"], color=tints[name], linewidth=1.2, alpha=0.75)
        axes.set_title(name, fontsize=9.5)
        axes.set_ylim(0, max(5.0, 105 * curves["val_top1"].max()))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        gridlines(axes, "y")
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("epoch", fontsize=10, color=INK)
    figure.supylabel("right actions on validation, %", fontsize=10, color=INK)
    return Drawing("curves", "One line a network: seeds, and of teachers their members (folds).", figure)
