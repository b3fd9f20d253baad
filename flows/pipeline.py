"""The pipeline flow: what DVC calls stale, each stage a Prefect task, independent ones side by side."""

import queue
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from flows.clone import Clone
from flows.display import Board, board
from flows.local import LocalExecutor, Outcome, StageFailed
from flows.plan import Plan, Step, plan
from tasks.layout import Workspace
from tasks.settings import settings


class PipelineFailed(Exception):
    """Some stages failed; what does not depend on them is done.

    Attributes:
        failures: one a failed stage.
        not_started: the stages that wait for a failed one.
    """

    def __init__(self, failures: Sequence[StageFailed], not_started: Sequence[str]):
        self.failures, self.not_started = list(failures), list(not_started)
        super().__init__("\n".join(str(failure) for failure in failures))

    @property
    def exit_code(self) -> int:
        """That of the first failed stage."""
        return self.failures[0].exit_code


def _worth_retrying(_task: Any, _run: Any, state: Any) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailed) and error.worth_retrying


@task(
    name="stage",
    cache_policy=NO_CACHE,  # DVC is the cache
    persist_result=False,
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=_worth_retrying,
)
def stage(step: Step, executor: LocalExecutor) -> Outcome:
    """Bring one stage up to date."""
    logger = get_run_logger()
    logger.info("%s: %s", step.name, step.reason)
    shown = board.get()
    if shown:
        shown.running(step.name)

    def on_line(text: str) -> None:
        logger.info("%s", text)
        if shown:
            shown.line(step.name, text)

    return executor.run(step.name, step.forced, on_line)


@flow(name="pipeline", log_prints=True, persist_result=False, validate_parameters=False)
def pipeline(root: str, targets: Sequence[str] = (), force: Sequence[str] = ()) -> dict[str, str]:
    """Bring the pipeline of the clone at `root` up to date.

    Args:
        targets: stages to bring up to date with all they depend on; empty: all.
        force: stages to run even where nothing changed.

    Returns:
        stage → how it came to be up to date: ran, restored or cached.

    Raises:
        PipelineFailed: at least one stage failed.
        UserError: see `flows.plan.plan`; also when another run is going on in this clone.
    """
    clone = Clone(Path(root))
    with clone.only_run() as lock:
        todo = plan(clone, targets, force)
        if shown := board.get():
            shown.show(todo)
        outcomes = _Run(todo, LocalExecutor(clone, lock), shown).to_the_end()
    _publish_comparison(clone)
    return outcomes


class _Run:
    """Starts every stage that is due as soon as what it depends on is up to date and a slot is free."""

    def __init__(self, todo: Plan, executor: LocalExecutor, shown: Board | None):
        self._executor, self._shown = executor, shown
        self._outcomes = {step.name: Outcome.CACHED for step in todo.steps if step.verdict == "cached"}
        self._waiting = {step.name: step for step in todo.due}
        self._futures: dict[str, PrefectFuture[Outcome]] = {}
        self._running: set[str] = set()
        self._finished: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._failures: list[StageFailed] = []

    def to_the_end(self) -> dict[str, str]:
        """Stage → outcome. Raises PipelineFailed once all that could run has run."""
        slots = settings().slots
        runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=slots)
        with runner:
            try:
                self._start(runner, slots)
                while self._running:
                    self._note(self._finished.get())
                    self._start(runner, slots)
            finally:  # cancelled: the runner waits for its threads, and they for their stages
                self._executor.stop()
        for name in self._waiting:
            if self._shown:
                self._shown.ended(name, "not started")
        if self._failures:
            raise PipelineFailed(self._failures, list(self._waiting))
        return {name: outcome.value for name, outcome in self._outcomes.items()}

    def _start(self, runner: "ThreadPoolTaskRunner[Any]", slots: int) -> None:
        ready = [step for step in self._waiting.values() if self._outcomes.keys() >= set(step.dependencies)]
        for step in ready[: slots - len(self._running)]:
            del self._waiting[step.name]
            self._running.add(step.name)
            # These are done already; naming them lets Prefect's UI draw the graph.
            before = [self._futures[name] for name in step.dependencies if name in self._futures]
            named = stage.with_options(task_run_name=step.name)
            future = runner.submit(named, {"step": step, "executor": self._executor}, wait_for=before)
            self._futures[step.name] = future
            future.add_done_callback(partial(self._announce, step.name))

    def _announce(self, name: str, _future: PrefectFuture[Outcome]) -> None:
        self._finished.put(name)

    def _note(self, name: str) -> None:
        self._running.remove(name)
        result: Any = self._futures[name].result(raise_on_failure=False)
        if isinstance(result, StageFailed):
            self._failures.append(result)
        elif isinstance(result, BaseException):
            raise result
        else:
            self._outcomes[name] = result
        if self._shown:
            self._shown.ended(name, "failed" if isinstance(result, StageFailed) else result.value)


def _publish_comparison(clone: Clone) -> None:
    """The comparison table as an artifact of this run, where evaluate has written one."""
    file = Workspace(clone.root).reports / "comparison.json"
    if not file.is_file():
        return
    from tasks.compare import current, markdown

    create_markdown_artifact(
        markdown(current(Workspace(clone.root))),
        key="comparison",
        description="Teachers, baseline and student on the test split",
    )
