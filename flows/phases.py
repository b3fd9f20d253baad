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

_ARGUMENTS = """

    Args:
        root: The clone to work in. Default: UNDERSTUDY_CLONE, else the current folder.
        force: Stages to run even where nothing changed, for example {example}.
        executor: Where stages are made: local (this machine) or workers (whichever are free).
"""
"""What Prefect's UI says of the parameters."""


def _phase(name: str, what: str, example: str) -> Flow[..., Any]:
    """The flow of a phase; `what` it does and an `example` of its stages are shown in Prefect's UI."""

    def phase(
        root: Path | None = None, force: Sequence[str] = (), executor: ExecutorName = "local"
    ) -> dict[str, str]:
        return bring_up_to_date(Wishes(root, (), force, executor), PHASES, own=name)

    phase.__name__ = phase.__qualname__ = name
    phase.__doc__ = what + _ARGUMENTS.format(example=example)
    return flow(log_prints=True, persist_result=False, result_serializer="json")(phase)


extract = _phase("extract", "Check the raw folder and take every modality out of new videos.", "extract@flow")
train_teachers = _phase(
    "train_teachers",
    "Train the teachers and write down what they say of every training view.",
    "train_teacher@flow",
)
distill = _phase("distill", "Train the students and the baseline.", "distill@student")
evaluate_calibration = _phase(
    "evaluate_calibration", "Score every model on the test split, its calibration included.", "evaluate"
)
register = _phase("register", "Package the best student and register it in MLflow.", "register")

_ALL = (extract, train_teachers, distill, evaluate_calibration, register)
PHASES = {phase.fn.__name__: phase for phase in _ALL}
"""What `meta.phase` of a stage in dvc.yaml may be → the flow that shows it."""
