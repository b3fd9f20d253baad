"""Comparisons side by side: the students of one against its baseline, or the models of two versions."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tasks.errors import UserError
from tasks.layout import Workspace
from tasks.settings import dvc_config

if TYPE_CHECKING:
    from tasks.versus.compared import Versus

Comparison = Mapping[str, Any]
"""What comparison.json holds."""

_FILE = "reports/comparison.json"
_KEYS = ("dataset", "split", "clips", "seeds", "rows")


def parse(text: str, source: Path | str) -> Comparison:
    """A comparison from the text of `source`.

    Raises:
        UserError: not JSON, or not a comparison.
    """
    try:
        comparison = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"not valid JSON: {error.msg}", file=source, row=error.lineno) from None
    missing = [key for key in _KEYS if not isinstance(comparison, dict) or key not in comparison]
    if missing:
        raise UserError(f"not a comparison: {', '.join(missing)} missing", file=source)
    return comparison


def read(source: str, workspace: Workspace) -> Comparison:
    """The comparison that `source` names.

    Args:
        source: a JSON file, a version in the registry as models:/NAME@ALIAS or models:/NAME/VERSION, or @ALIAS or vN
            for short, whose release holds the comparison of its day, or a git revision of this repository.

    Raises:
        UserError: no such file, revision or version, or DVC has no report for it here.
        InfrastructureError: the registry cannot be reached.
    """
    if Path(source).is_file():
        return parse(Path(source).read_text(encoding="utf-8", errors="replace"), source)
    from tasks.stores.tracking import address

    registered = address(source)
    if registered.startswith("models:"):
        return _released(registered, workspace)
    return parse(_at_revision(source, workspace), f"{_FILE} at {source}")


def versus(first: str, second: str, workspace: Workspace) -> "Versus | None":
    """Two registered versions, compared by what their networks said of the test clips.

    Args:
        first, second: as for `read`.

    Returns:
        None where one of them is no registered version, or one that was released before releases held predictions.

    Raises:
        UserError: the registry has no such version, or its files are not what was registered.
        InfrastructureError: the registry cannot be reached.
    """
    from tasks.stores import tracking

    names = [tracking.address(name) for name in (first, second)]
    if any(Path(name).is_file() for name in (first, second)) or not all(
        name.startswith("models:") for name in names
    ):
        return None
    from tasks.params import load
    from tasks.promotion import open_version
    from tasks.versus.compared import Side, compared

    sides = []
    for name in names:
        version = tracking.model_version(name, workspace)
        contender = open_version(version, workspace).contender
        if contender.refused:
            raise UserError(f"{name} cannot be loaded: {contender.refused}")
        if contender.scorecard is None:
            return None
        sides.append(Side.of(version, contender.scorecard))
    return compared(sides[0], sides[1], load(workspace.params).evaluate)


def current(workspace: Workspace) -> Comparison:
    """The comparison of the working tree.

    Raises:
        UserError: nothing was evaluated yet.
    """
    file = workspace.reports / "comparison.json"
    if not file.is_file():
        raise UserError("nothing was evaluated yet", file=file, remedy="run: understudy run")
    return parse(file.read_text(encoding="utf-8"), file)


def _released(model: str, workspace: Workspace) -> Comparison:
    """The comparison in the release of a registered version."""
    from tasks.predict import download

    with tempfile.TemporaryDirectory(prefix="understudy-") as folder:
        file = download(model, workspace, Path(folder)) / "comparison.json"
        if not file.is_file():
            raise UserError(
                f"the release of {model} holds no comparison", remedy="compare the commits it was made from"
            )
        return parse(file.read_text(encoding="utf-8"), f"{file.name} of {model}")


def _at_revision(revision: str, workspace: Workspace) -> str:
    import dvc.api
    from dvc.exceptions import DvcException
    from scmrepo.exceptions import SCMError

    try:
        root, config = workspace.root, dvc_config(workspace.root)
        return str(dvc.api.read(_FILE, repo=str(root), rev=revision, encoding="utf-8", config=config))
    except (DvcException, SCMError, OSError) as error:
        raise UserError(
            f"{revision!r} is neither a file nor a git revision with a report: {error}",
            remedy="a revision has one where its dvc.lock was committed after a run: "
            "git add dvc.lock data.dvc params.yaml && git commit; one made elsewhere needs dvc pull as well",
        ) from None


def baseline_table(comparison: Comparison) -> Table | None:
    """Each student minus the baseline, paired by clip, in every head; None where there is no baseline."""
    differences = comparison.get("differences", [])
    if not differences:
        return None
    table = Table(title=f"against {differences[0]['against']}", caption="[95 % interval over clips], paired")
    table.add_column("student", no_wrap=True)
    table.add_column("head", no_wrap=True)
    for title in ("Δ top-1, points", "Δ ECE", "Δ NLL"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in differences:
        for number, (head, values) in enumerate(row["heads"].items()):
            low, high = values["top1_ci95"]
            table.add_row(
                row["name"] if number == 0 else "",
                head,
                f"{100 * values['top1']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
                f"{values['ece_scaled']:+.3f}",
                f"{values['nll_scaled']:+.2f}",
            )
    return table


def versions_table(first: Comparison, second: Comparison, names: tuple[str, str]) -> Table:
    """The models of two comparisons side by side: first → second, and the difference.

    Args:
        names: what to call the two.
    """
    table = Table(title=f"{names[0]} → {names[1]}", caption=_unlike(first, second))
    table.add_column("model", no_wrap=True)
    table.add_column("head", no_wrap=True)
    table.add_column("top-1 %", justify="right", no_wrap=True)
    table.add_column("Δ", justify="right", no_wrap=True)
    table.add_column("ECE", justify="right", no_wrap=True)
    table.add_column("Δ", justify="right", no_wrap=True)
    for name, head, before, after in _pairs(first, second):
        top1, ece = [[values.get(figure) for values in (before, after)] for figure in ("top1", "ece_scaled")]
        table.add_row(name, head, *_change(top1, 100, 1), *_change(ece, 1, 3))
    return table


def _pairs(
    first: Comparison, second: Comparison
) -> Iterator[tuple[str, str, Mapping[str, float], Mapping[str, float]]]:
    """(model, head, figures in first, figures in second); no figures where a comparison lacks the model."""
    before, after = (
        {row["name"]: row["heads"] for row in comparison["rows"]} for comparison in (first, second)
    )
    for name in dict.fromkeys([*before, *after]):
        ours, theirs = before.get(name, {}), after.get(name, {})
        for head in dict.fromkeys([*ours, *theirs]):
            yield name, head, ours.get(head, {}), theirs.get(head, {})


def _change(values: list[float | None], scale: float, digits: int) -> tuple[str, str]:
    shown = ["-" if value is None else f"{scale * value:.{digits}f}" for value in values]
    before, after = values
    difference = "" if before is None or after is None else f"{scale * (after - before):+.{digits}f}"
    return " → ".join(shown), difference


def _unlike(first: Comparison, second: Comparison) -> str | None:
    """Why the figures of the two cannot be compared as they stand; None where they can."""
    for key in ("dataset", "split", "clips", "seeds"):
        if first[key] != second[key]:
            return f"not alike in {key}: {first[key]} and {second[key]}"
    return None


def markdown(comparison: Comparison) -> str:
    """The rows as a Markdown table, for Prefect's UI."""
    lines = [
        f"{comparison['dataset']}, {comparison['split']} split: {comparison['clips']} clips, "
        f"seeds {', '.join(map(str, comparison['seeds']))}",
        "",
        "| model | role | sees | head | top-1 % | 95 % | ECE | ECE scaled | NLL | params M | GMACs |",
        "|---|---|---|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in comparison["rows"]:
        for head, values in row["heads"].items():
            low, high = values["top1_ci95"]
            lines.append(
                f"| {row['name']} | {row['role']} | {' + '.join(row['inference_modalities'])} | {head} "
                f"| {100 * values['top1']:.1f} | {100 * low:.1f} to {100 * high:.1f} "
                f"| {values['ece']:.3f} | {values['ece_scaled']:.3f} | {values['nll']:.2f} "
                f"| {row['params'] / 1e6:.2f} | {row['gmacs']:.2f} |"
            )
    return "\n".join(lines)
