"""The comparison as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from tasks.report import ACTION

_STYLES = {"student": "bold", "baseline": "", "teacher": "dim", "ensemble": "dim"}
_WIDE = 110
"""Columns of a terminal from which on every figure is shown; a narrower one gets those that decide."""


def comparison_table(comparison: Mapping[str, Any], width: int) -> Table:
    """The rows of reports/comparison.json, one line a model.

    Args:
        comparison: what comparison.json holds.
        width: columns of the terminal; a narrow one gets fewer columns.
    """
    wide = width >= _WIDE
    seeds = len(comparison["seeds"])
    heads = further_heads(comparison)
    table = Table(
        title=f"{comparison['dataset']}: {comparison['clips']} test clips, seeds: {seeds}",
        caption="top-1 in %"
        + (", ± spread over seeds" if seeds > 1 else "")
        + (", [95 % interval over clips]" if wide else "")
        + "; ECE after the shipped temperature",
    )
    table.add_column("model", no_wrap=True)
    table.add_column("sees")
    for title in (ACTION, "ECE", *heads, *(("NLL", "params", "GMACs") if wide else ())):
        table.add_column(title, justify="right", no_wrap=True)
    for row in comparison["rows"]:
        action = row["heads"][ACTION]
        sees = row["inference_modalities"]
        cells = [row["name"], " + ".join(sees) if wide or len(sees) == 1 else f"{len(sees)} modalities"]
        cells += [_top1(action, wide), with_spread(action, "ece_scaled", 1, 3)]
        cells += [f"{100 * row['heads'][head]['top1']:.1f}" for head in heads]
        cost = f"{row['params'] / 1e6:.2f} M", f"{row['gmacs']:.2f}"
        cells += [f"{action['nll_scaled']:.2f}", *cost] if wide else []
        table.add_row(*cells, style=_STYLES[row["role"]])
    return table


def further_heads(comparison: Mapping[str, Any]) -> list[str]:
    """The heads that the action is made of; none where it is made of one."""
    heads = [head for head in comparison["classes"] if head != ACTION]
    return heads if len(heads) > 1 else []


def with_spread(values: Mapping[str, Any], name: str, scale: float, digits: int) -> str:
    """A figure of one head and, with several seeds, its spread, as "41.2 ±1.3"."""
    spread = values["spread"][name]
    beside = "" if spread is None else f" ±{scale * spread:.{digits}f}"
    return f"{scale * values[name]:.{digits}f}{beside}"


def _top1(values: Mapping[str, Any], wide: bool) -> str:
    shown = with_spread(values, "top1", 100, 1)
    if not wide:
        return shown
    low, high = values["top1_ci95"]
    return f"{shown} [{100 * low:.0f}–{100 * high:.0f}]"
