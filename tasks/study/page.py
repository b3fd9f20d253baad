"""reports/study/<name>: index.html in one file, study.json, study.csv, study.md, the pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tasks.atomic import new_folder, write_json, write_text
from tasks.report import ACTION
from tasks.report.drawing import Drawing
from tasks.report.page import STYLE
from tasks.study.figures import draw, looks
from tasks.study.results import FIGURES
from tasks.study.table import (
    TITLES,
    change,
    difference,
    duration,
    interval,
    long_table,
    markdown,
    p_value,
    seeds_in_words,
    spread,
)

_TEMPLATE = Path(__file__).with_name("page.html.j2")


def write(study: Mapping[str, Any], out: Path) -> None:
    """Write everything of a study as the folder `out`, whole or not at all."""
    drawings = draw(study)
    with new_folder(out) as folder:
        write_text(folder / "index.html", render(study, drawings))
        write_text(folder / "study.md", markdown(study) + "\n")
        long_table(study).to_csv(folder / "study.csv", index=False)
        (folder / "plots").mkdir()
        for drawing in drawings:
            drawing.save(folder / "plots" / f"{drawing.name}.png")
        write_json(folder / "study.json", study)


def render(study: Mapping[str, Any], drawings: Sequence[Drawing]) -> str:
    """The page of a study; names from the data and the study are escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "spread": spread,
        "interval": interval,
        "difference": difference,
        "p": p_value,
        "duration": duration,
    }
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        study=study,
        seeds=seeds_in_words(study),
        findings=findings(study),
        style=STYLE,
        action=ACTION,
        figures=FIGURES,
        titles=TITLES,
        tints={name: colour for name, (colour, _) in looks(study).items()},
        drawings={d.name: {"svg": Markup(d.svg()), "caption": d.caption} for d in drawings},
    )


def findings(study: Mapping[str, Any]) -> list[str]:
    """One sentence a data set: which methods are told apart from the baseline, by Holm's p below 0.05."""
    sentences = []
    for data in study["data_sets"]:
        told: dict[str, list[str]] = {}
        for row in data["methods"]:
            for figure, values in (row["differences"] or {}).get(ACTION, {}).items():
                if figure in _WORDS and values["p_holm"] < 0.05:
                    words = _WORDS[figure][values["mean"] > 0]
                    told.setdefault(words, []).append(f"{row['name']} ({change(values, figure)})")
        found = [f"{words}: {', '.join(names)}" for words, names in told.items()]
        nothing = "no method is told apart in top-1 or ECE of the action"
        against = f"against {study['baseline']}, p < 0.05 after Holm's correction"
        sentences.append(f"{data['name']}, {against}: {'; '.join(found) or nothing}.")
    return sentences


_WORDS = {
    "top1": ("less often right", "more often right"),
    "ece": ("better calibrated as trained", "worse calibrated as trained"),
    "ece_scaled": ("better calibrated after temperature", "worse calibrated after temperature"),
}
"""Figure → what its being lower and its being higher mean."""
