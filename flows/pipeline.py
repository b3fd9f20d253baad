"""The pipeline flow: what DVC calls stale, each stage a Prefect task in the subflow of its phase."""

from collections.abc import Sequence
from pathlib import Path

from prefect import flow

from flows.coordinator import Wishes, bring_up_to_date
from flows.executor import ExecutorName
from flows.phases import PHASES


@flow(log_prints=True, persist_result=False, result_serializer="json")
def pipeline(
    root: Path | None = None,
    targets: Sequence[str] = (),
    force: Sequence[str] = (),
    executor: ExecutorName = "local",
) -> dict[str, str]:
    """Bring the pipeline of a clone up to date.

    Args:
        root: The clone to work in. Default: UNDERSTUDY_CLONE, else the current folder.
        targets: Stages to bring up to date with all they depend on, for example evaluate. Empty: all.
        force: Stages to run even where nothing changed, for example train_teacher@flow.
        executor: Where stages are made: local (this machine) or workers (whichever are free).

    Returns:
        stage → how it came to be up to date: ran, restored or cached.

    Raises:
        PipelineFailed: at least one stage failed.
        UserError: see `flows.coordinator.bring_up_to_date`.
    """
    return bring_up_to_date(Wishes(root, targets, force, executor), PHASES)
