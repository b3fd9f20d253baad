"""A study in MLflow: one experiment, a run a method and seed, and a run a data set with its tables.

They lie side by side: MLflow shows a run below another only once it is unfolded, and draws no chart of it before.

Runs are named by what they are of and carry a digest of what they hold: recording again leaves what is unchanged,
replaces what changed, and takes away what the study no longer has (MLflow keeps deleted runs restorable).
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.atomic import digest
from tasks.layout import Workspace
from tasks.stores import tracking
from tasks.study.table import long_table, markdown

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_CELL, _CONTENT = "study_cell", "study_content"
_PAGE = 1000


@dataclass(frozen=True)
class Cell:
    """What one run is to hold.

    Attributes:
        name: data set, or data set/method/seed; names the run.
        params: flat.
        metrics: of the test split, and what training cost.
        tags: to filter and group by.
        files: to keep with it, by name.
    """

    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)


def experiment_of(study: str) -> str:
    """The experiment that holds a study."""
    return f"study/{study}"


def record(study: Mapping[str, Any], report: Path, workspace: Workspace) -> str:
    """Bring the study's experiment up to date with study.json.

    Args:
        study: what study.json holds.
        report: the study's folder, whose tables become artifacts.
        workspace: the clone, whose MLflow store is used.

    Returns:
        A sentence on what was done.

    Raises:
        mlflow.exceptions.MlflowException: the store fails.
    """
    client = tracking.client(workspace)
    experiment_id = tracking.experiment_named(client, workspace, experiment_of(study["name"]))
    known: dict[str, list[Run]] = {}  # of a cell several where a recording was cut off
    for run in _runs(client, experiment_id):
        known.setdefault(run.data.tags.get(_CELL, ""), []).append(run)
    commit = tracking.git_commit(workspace)
    written = 0
    wanted: set[str] = set()
    for data in study["data_sets"]:
        for cell in (data_set_cell(study, data, report), *seed_cells(study, data)):
            wanted.add(cell.name)
            written += _put(client, experiment_id, known, cell, commit)
    for name, runs in known.items():
        failed = name.partition("/")[0] in study["failed"]  # its runs are of an earlier time, and kept
        if name not in wanted and not failed:
            _delete(client, runs)
    cells = sum(1 + len(data["methods"]) * len(study["seeds"]) for data in study["data_sets"])
    return f"MLflow experiment {experiment_of(study['name'])}: {cells} runs, {written} of them new"


def _runs(client: "MlflowClient", experiment_id: str) -> "Iterator[Run]":
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _put(
    client: "MlflowClient",
    experiment_id: str,
    known: "Mapping[str, list[Run]]",
    cell: Cell,
    commit: str,
) -> bool:
    """Have a run that holds `cell`; whether it was made now."""
    from mlflow.entities import Metric, Param

    content = digest(cell.params, cell.metrics, cell.tags, cell.files)
    others = known.get(cell.name, [])
    for run in others:
        if run.info.status == "FINISHED" and run.data.tags.get(_CONTENT) == content:
            _delete(client, [other for other in others if other is not run])
            return False
    tags = {_CELL: cell.name, _CONTENT: content, "git_commit": commit, **cell.tags}
    tags["mlflow.source.name"] = "understudy study"
    run_id = client.create_run(experiment_id, run_name=cell.name, tags=tags).info.run_id
    now_ms = int(time.time() * 1000)
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, now_ms, 0) for name, value in cell.metrics.items()],
        params=[Param(name, value[: tracking.LONGEST_PARAM]) for name, value in cell.params.items()],
    )
    for name, text in cell.files.items():
        client.log_text(run_id, text, name)
    client.set_terminated(run_id, "FINISHED")
    _delete(client, others)
    return True


def _delete(client: "MlflowClient", runs: "Iterable[Run]") -> None:
    for run in runs:
        client.delete_run(run.info.run_id)


def data_set_cell(study: Mapping[str, Any], data: Mapping[str, Any], report: Path) -> Cell:
    """The run of a data set: its tables and pictures of numbers, nothing of one method."""
    alone = {**study, "data_sets": [data], "failed": {}}
    files = {
        "study.json": json.dumps(alone, indent=1, ensure_ascii=False),
        "study.md": markdown(alone),
        "study.csv": long_table(alone).to_csv(index=False),
    }
    params = {"methods": ", ".join(study["methods"]), "seeds": json.dumps(study["seeds"])}
    params |= {"baseline": study["baseline"], "test_clips": str(data["clips"]), "report": report.name}
    return Cell(data["name"], params, {}, {"data_set": data["name"], "role": "data set"}, files)


def seed_cells(study: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[Cell]:
    """The runs of a data set's methods and seeds."""
    for row in data["methods"]:
        is_baseline = row["name"] == study["baseline"]
        settings = {key: value for key, value in row["settings"].items() if key != "learns_from"}
        params = dict(tracking.flatten(settings)) | {
            "name": row["name"],
            "teachers": " + ".join(row["teachers"]) or "none",
        }
        for place, seed in enumerate(study["seeds"]):
            chosen = dict(tracking.flatten(row["chosen"].get(str(seed), {}), "chosen."))
            metrics = {
                f"{head}/{figure}": values["per_seed"][place]
                for head, figures in row["heads"].items()
                for figure, values in figures.items()
            }
            if row["differences"]:
                metrics |= {
                    f"{head}/{figure}_difference": values["per_seed"][place]
                    for head, figures in row["differences"].items()
                    for figure, values in figures.items()
                }
            metrics |= {
                "cost/training_seconds": row["training"]["seconds_per_seed"][str(seed)],
                "cost/training_gmacs": row["training"]["gmacs"] / len(study["seeds"]),
                "cost/inference_gmacs": row["inference"]["gmacs"],
                "cost/params": row["inference"]["params"],
            }
            tags = {
                "data_set": data["name"],
                "study_method": row["name"],
                "seed": str(seed),
                "role": "baseline" if is_baseline else "method",
            }
            yield Cell(
                f"{data['name']}/{row['name']}/{seed}", {**params, **chosen, "seed": str(seed)}, metrics, tags
            )
