"""The phases of the pipeline, a flow each: a subflow of `pipeline`, or deployed alone.

Which stages belong to a phase stands in dvc.yaml, as `meta.phase` of each. Alone, a phase brings its stages up to date
and all they depend on; stages of other phases are then shown in subflow runs of those.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import Flow, flow

from flows.coordinator import Wishes, bring_up_to_date
from flows.executor import ExecutorName


@flow(log_prints=True, persist_result=False, result_serializer="json")
def extract(
    root: Path | None = None, force: Sequence[str] = (), executor: ExecutorName = "local"
) -> dict[str, str]:
    """Check the raw folder and take every modality out of new videos.

    Args:
        root: The clone to work in. Default: UNDERSTUDY_CLONE, else the current folder.
        force: Stages to run even where nothing changed, for example extract@flow.
        executor: Where stages are made: local (this machine) or workers (whichever are free).
    """
    return bring_up_to_date(Wishes(root, (), force, executor), PHASES, own="extract")


@flow(log_prints=True, persist_result=False, result_serializer="json")
def train_teachers(
    root: Path | None = None, force: Sequence[str] = (), executor: ExecutorName = "local"
) -> dict[str, str]:
    """Train the teachers and write down what they say of every training view.

    Args:
        root: The clone to work in. Default: UNDERSTUDY_CLONE, else the current folder.
        force: Stages to run even where nothing changed, for example train_teacher@flow.
        executor: Where stages are made: local (this machine) or workers (whichever are free).
    """
    return bring_up_to_date(Wishes(root, (), force, executor), PHASES, own="train_teachers")


@flow(log_prints=True, persist_result=False, result_serializer="json")
def distill(
    root: Path | None = None, force: Sequence[str] = (), executor: ExecutorName = "local"
) -> dict[str, str]:
    """Train the students and the baseline.

    Args:
        root: The clone to work in. Default: UNDERSTUDY_CLONE, else the current folder.
        force: Stages to run even where nothing changed, for example distill@student.
        executor: Where stages are made: local (this machine) or workers (whichever are free).
    """
    return bring_up_to_date(Wishes(root, (), force, executor), PHASES, own="distill")


@flow(log_prints=True, persist_result=False, result_serializer="json")
def evaluate_calibration(
    root: Path | None = None, force: Sequence[str] = (), executor: ExecutorName = "local"
) -> dict[str, str]:
    """Score every model on the test split, its calibration included.

    Args:
        root: The clone to work in. Default: UNDERSTUDY_CLONE, else the current folder.
        force: Stages to run even where nothing changed, for example evaluate.
        executor: Where stages are made: local (this machine) or workers (whichever are free).
    """
    return bring_up_to_date(Wishes(root, (), force, executor), PHASES, own="evaluate_calibration")


@flow(log_prints=True, persist_result=False, result_serializer="json")
def register(
    root: Path | None = None, force: Sequence[str] = (), executor: ExecutorName = "local"
) -> dict[str, str]:
    """Package the best student and register it in MLflow.

    Args:
        root: The clone to work in. Default: UNDERSTUDY_CLONE, else the current folder.
        force: Stages to run even where nothing changed, for example register.
        executor: Where stages are made: local (this machine) or workers (whichever are free).
    """
    return bring_up_to_date(Wishes(root, (), force, executor), PHASES, own="register")


PHASES: dict[str, Flow[..., Any]] = {
    "extract": extract,
    "train_teachers": train_teachers,
    "distill": distill,
    "evaluate_calibration": evaluate_calibration,
    "register": register,
}
"""What `meta.phase` of a stage in dvc.yaml may be → the flow that shows it."""
