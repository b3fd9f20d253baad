"""The tables of a study: Markdown for a paper, CSV for programs."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from tasks.report import ACTION
from tasks.study.results import FIGURES

SCALES = {"top1": (100, 1), "nll": (1, 2), "nll_scaled": (1, 2), "ece": (1, 3), "ece_scaled": (1, 3)}
"""Figure → what it is multiplied by to be read, and its digits."""
TITLES = {
    "top1": "top-1 %",
    "nll": "NLL",
    "nll_scaled": "NLL scaled",
    "ece": "ECE",
    "ece_scaled": "ECE scaled",
}


def spread(values: Mapping[str, Any], figure: str) -> str:
    """Mean ± standard deviation over seeds, as "41.2 ± 1.3"."""
    scale, digits = SCALES[figure]
    beside = "" if values["sd"] is None else f" ± {scale * values['sd']:.{digits}f}"
    return f"{scale * values['mean']:.{digits}f}{beside}"


def interval(values: Mapping[str, Any], figure: str) -> str:
    """The 95 % interval, as "[39.8, 42.5]"; of a difference, signed."""
    scale, digits = SCALES[figure]
    sign = "+" if "p" in values else ""
    return "[" + ", ".join(f"{scale * bound:{sign}.{digits}f}" for bound in values["ci95"]) + "]"


def change(values: Mapping[str, Any], figure: str) -> str:
    """A difference to the baseline, as "+2.2"."""
    scale, digits = SCALES[figure]
    return f"{scale * values['mean']:+.{digits}f}"


def difference(values: Mapping[str, Any], figure: str) -> str:
    """A difference to the baseline with its interval, as "+2.2 [-2.2, +6.9]"."""
    return f"{change(values, figure)} {interval(values, figure)}"


def p_value(p: float | None) -> str:
    """A p-value to three digits; a dash where the test could not be made."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def duration(seconds: float) -> str:
    """Seconds as a person reads them, as "3 min 20 s" or "2 h 05 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def markdown(study: Mapping[str, Any]) -> str:
    """All data sets, ready for a paper: one table over all, then one of figures and one of differences each."""
    lines = _overview(study) if len(study["data_sets"]) > 1 else []
    return "\n".join([*lines, *(line for data in study["data_sets"] for line in _of_data_set(data, study))])


def _overview(study: Mapping[str, Any]) -> list[str]:
    found = [{row["name"]: row["heads"][ACTION] for row in data["methods"]} for data in study["data_sets"]]
    titles = [f"{data['name']} {title}" for data in study["data_sets"] for title in (TITLES["top1"], "ECE")]
    lines = [_line(["method", *titles]), _line(["---", *["---:"] * len(titles)])]
    for name in study["methods"]:
        cells = [
            spread(rows[name][figure], figure) if name in rows else "–"
            for rows in found
            for figure in ("top1", "ece")
        ]
        lines.append(_line([name, *cells]))
    return ["### All data sets", "", "Action, as trained.", "", *lines, ""]


def _of_data_set(data: Mapping[str, Any], study: Mapping[str, Any]) -> list[str]:
    heads = [head for head in data["heads"] if head != ACTION]
    columns = [TITLES["top1"].replace("top-1", f"{ACTION} top-1"), *(f"{head} top-1 %" for head in heads)]
    columns += [TITLES[figure] for figure in FIGURES[1:]]
    beside = " ± sd over seeds" if len(study["seeds"]) > 1 else ""
    lines = [
        f"### {data['name']}",
        "",
        f"{data['clips']} test clips, {seeds_in_words(study)}; mean{beside}. "
        "NLL and ECE are of the action, scaled: after the temperature fitted on validation.",
        "",
        _line(["method", *columns, "training", "GMACs"]),
        _line(["---", *["---:"] * (len(columns) + 2)]),
    ]
    for row in data["methods"]:
        values = row["heads"]
        cells = [spread(values[head]["top1"], "top1") for head in (ACTION, *heads)]
        cells += [spread(values[ACTION][figure], figure) for figure in FIGURES[1:]]
        cells += [duration(row["training"]["seconds"]), f"{row['inference']['gmacs']:.2f}"]
        name = f"{row['name']} (baseline)" if row["name"] == study["baseline"] else row["name"]
        lines.append(_line([name, *cells]))
    lines += ["", f"Against {study['baseline']}, paired (95 % interval; p by Holm over methods):", ""]
    asked = [(head, "top1") for head in (ACTION, *heads)] + [(ACTION, figure) for figure in FIGURES[1:]]
    lines += [
        _line(["method", *(f"Δ {head} {TITLES[figure]}" for head, figure in asked), "p top-1", "seeds up"]),
        _line(["---", *["---:"] * (len(asked) + 2)]),
    ]
    for row in data["methods"]:
        if row["differences"]:
            cells = [difference(row["differences"][head][figure], figure) for head, figure in asked]
            top1 = row["differences"][ACTION]["top1"]
            cells += [p_value(top1["p_holm"]), f"{top1['higher']} of {len(study['seeds'])}"]
            lines.append(_line([row["name"], *cells]))
    lines += ["", *(f"Without {name}: {reason}." for name, reason in data["left_out"].items()), ""]
    return lines


def seeds_in_words(study: Mapping[str, Any]) -> str:
    """How many seeds, as "3 seeds"."""
    count = len(study["seeds"])
    return f"{count} seed{'s' if count > 1 else ''}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def long_table(study: Mapping[str, Any]) -> pd.DataFrame:
    """One row a data set, method, head and figure: its values, and those of its difference to the baseline."""
    rows = []
    for data in study["data_sets"]:
        for method in data["methods"]:
            for head, figures in method["heads"].items():
                for figure, values in figures.items():
                    against = (method["differences"] or {}).get(head, {}).get(figure)
                    rows.append(
                        {
                            "data_set": data["name"],
                            "method": method["name"],
                            "baseline": method["name"] == study["baseline"],
                            "head": head,
                            "figure": figure,
                            **_flat(values, ""),
                            **{
                                f"seed_{seed}": v
                                for seed, v in zip(study["seeds"], values["per_seed"], strict=True)
                            },
                            **(_flat(against, "difference_") if against else {}),
                            "training_seconds": method["training"]["seconds"],
                            "training_gmacs": method["training"]["gmacs"],
                            "inference_gmacs": method["inference"]["gmacs"],
                            "params": method["inference"]["params"],
                        }
                    )
    return pd.DataFrame(rows)


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    low, high = values["ci95"]
    found = {"mean": values["mean"], "sd": values["sd"], "ci95_low": low, "ci95_high": high}
    tests = ("p", "p_holm", "t", "t_p", "t_p_holm", "higher", "lower", "sign_p")
    found |= {name: values[name] for name in tests if name in values}
    return {prefix + name: value for name, value in found.items()}
