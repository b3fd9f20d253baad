"""What a run shows in Prefect's UI beside its states: how far a training is, the comparison, the model card, MLflow."""

import logging
import os
import re
import time
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from flows.clone import Clone
from tasks.layout import Workspace

Logger = logging.Logger | logging.LoggerAdapter[Any]
"""What Prefect's `get_run_logger` gives."""
UPDATE_S = 3.0
"""Seconds between two updates of a progress artifact, at least."""
_PROGRESS = re.compile(r"^.+ (?P<done>\d+)/(?P<total>\d+) \w+, .*\d+ s left$")
"""What `tasks.progress` prints where there is no terminal."""


class ProgressArtifact:
    """A bar in the UI that follows what a stage prints: its last line with loss, top-1 and time left.

    Where a stage trains several networks, it begins anew with each. An API that fails takes no stage with it.
    """

    def __init__(self, stage: str, logger: Logger):
        self._stage, self._logger = stage, logger
        self._id: UUID | None = None
        self._told = float("-inf")

    def line(self, text: str) -> None:
        """The stage printed `text`."""
        match = _PROGRESS.match(text)
        if match is None or int(match["total"]) == 0:
            return
        share = int(match["done"]) / int(match["total"])
        if share < 1 and time.monotonic() - self._told < UPDATE_S:
            return
        self._told = time.monotonic()
        try:
            self._show(100 * share, text)
        except Exception as error:  # of many kinds, and none is worth a training
            self._logger.warning("progress could not be shown: %s", error)

    def _show(self, percent: float, text: str) -> None:
        if self._id is None:
            made: Any = create_progress_artifact(percent, key=key(self._stage), description=text)
            self._id = made  # a coroutine only where it is awaited
        else:
            update_progress_artifact(self._id, percent, description=text)


def key(stage: str) -> str:
    """The stage's name as Prefect allows it for an artifact."""
    return re.sub(r"[^a-z0-9]+", "-", stage.lower()).strip("-")


def publish(clone: Clone, done: Collection[str], logger: Logger) -> None:
    """Show what the stages that are up to date have to show, in the run that asks.

    Args:
        done: those stages; what others made may be old.
    """
    workspace = Workspace(clone.root)
    comparison, card = workspace.reports / "comparison.json", workspace.release / "model_card.md"
    if "evaluate" in done and comparison.is_file():
        from tasks.compare import current, markdown

        create_markdown_artifact(
            markdown(current(workspace)),
            key="comparison",
            description="Teachers, baseline and student on the test split",
        )
    if "register" in done and card.is_file():
        from tasks.register import without_pictures

        create_markdown_artifact(
            without_pictures(card.read_text(encoding="utf-8")),
            key="model-card",
            description="The student that ships",
        )
    if os.environ.get("MLFLOW_TRACKING_URI", "").startswith(("http://", "https://")):
        try:
            _link_to_mlflow(workspace)
        except Exception as error:  # each store has its own; a link is worth no run
            from tasks.stores.tracking import told

            logger.warning("no link to MLflow: %s", told(error, workspace))


def _link_to_mlflow(workspace: Workspace) -> None:
    from tasks.params import load
    from tasks.stores import tracking

    name = tracking.experiment_name(load(workspace.params).data.name)
    found = tracking.client(workspace).get_experiment_by_name(name)
    if found is None:  # no training was there yet
        return
    server = urlsplit(tracking.shown_uri(workspace))
    page = urlunsplit((server.scheme, server.netloc, server.path.rstrip("/") + "/", "", ""))
    create_link_artifact(
        f"{page}#/experiments/{found.experiment_id}",
        key="mlflow",
        link_text=f"MLflow experiment {name}",
        description="Every training's params, curves and system metrics",
    )
