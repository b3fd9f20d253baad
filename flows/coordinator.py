"""The run of what is due: which stage starts when, in which phase's subflow, and what comes of a failure.

The flows of `flows.pipeline` and `flows.phases` are this with other wishes. It does not know where a stage is made;
an executor does.
"""

import os
import queue
import re
import threading
from collections.abc import Mapping, Sequence
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prefect import Flow, State, get_run_logger, tags, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run as this_run
from prefect.states import Completed

from flows.artifacts import ProgressArtifact, publish
from flows.clone import Clone, of_flow
from flows.display import board
from flows.executor import Executor, ExecutorName, Outcome, StageFailed
from flows.local import LocalExecutor
from flows.plan import Plan, Step, plan
from flows.registration import publish_verdict


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


@dataclass(frozen=True)
class Wishes:
    """What a run is asked for.

    Attributes:
        root: of the clone; None: that of the setting `clone`.
        targets: stages to bring up to date with all they depend on; empty: all.
        force: stages to run even where nothing changed.
        executor: where the stages are made.
    """

    root: Path | None
    targets: Sequence[str]
    force: Sequence[str]
    executor: ExecutorName


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
def stage(step: Step, executor: Executor) -> State[Outcome] | Outcome:
    """Bring one stage up to date."""
    logger = get_run_logger()
    logger.info("%s: %s", step.name, step.reason)
    progress = ProgressArtifact(step.name, logger)
    shown = board.get()
    if shown:
        shown.running(step.name)

    def on_line(text: str) -> None:
        logger.info("%s", text)
        progress.line(text)
        if shown:
            shown.line(step.name, text)

    outcome = executor.run(step, on_line)
    return (
        outcome if outcome is Outcome.RAN else Completed(name="Cached", message=outcome.value, data=outcome)
    )


@task(name="stage", cache_policy=NO_CACHE, persist_result=False)
def cached() -> State[None]:
    """Show a stage that is up to date and is not looked at."""
    return Completed(name="Cached", message="nothing changed")


def bring_up_to_date(wishes: Wishes, phases: Mapping[str, Flow[..., Any]], own: str = "") -> dict[str, str]:
    """Run what is due, each phase's stages in a subflow run, independent ones side by side.

    Args:
        phases: name → the flow that shows it.
        own: the phase whose flow asks: only its stages are wanted, with all they depend on, and they are tasks
            of the run that asks.

    Returns:
        stage → how it came to be up to date: ran, restored or cached.

    Raises:
        PipelineFailed: at least one stage failed.
        UserError: see `flows.plan.plan` and `flows.workers.WorkersExecutor`; also when another run is going on in
            this clone.
    """
    if (part := _shown.get()) is not None:  # another run of ours opened this one, to show its stages
        return part.take_part()
    clone = of_flow(wishes.root)
    # the stages, here or on workers, tell MLflow what they are part of
    os.environ["UNDERSTUDY_PIPELINE_RUN"] = re.sub(r"['\\\\]", " ", f"{this_run.name} {this_run.id}")
    with clone.only_run() as lock:
        todo = plan(clone, wishes.targets, wishes.force, own)
        if shown := board.get():
            shown.show(todo)
        executor = _executor(wishes.executor, clone, lock, todo)
        run = _Run(todo, executor, {name: each for name, each in phases.items() if name != own}, wishes)
        run.to_the_end()
    publish(clone, run.outcomes, get_run_logger())
    run.raise_failures()
    if "register" in run.outcomes:
        publish_verdict(clone)
    return {name: outcome.value for name, outcome in run.outcomes.items()}


def _executor(name: ExecutorName, clone: Clone, lock: int, todo: Plan) -> Executor:
    if name == "local":
        return LocalExecutor(clone, lock)
    from flows.workers import WorkersExecutor  # of no use to a run on one machine

    return WorkersExecutor(clone, lock, todo)


class _Part:
    """Stages whose task runs belong to one flow run: here, the run that asks."""

    def __init__(self, executor: Executor, finished: "queue.SimpleQueue[str | BaseException]"):
        self._executor, self._finished = executor, finished
        self.futures: dict[str, PrefectFuture[Any]] = {}

    def show_cached(self, step: Step) -> None:
        """A stage that is up to date."""
        cached.with_options(task_run_name=step.name, tags={step.reason})()

    def start(self, step: Step) -> None:
        """A stage whose turn has come."""
        # These are done already; naming them lets Prefect's UI draw the graph.
        before = [self.futures[name] for name in step.dependencies if name in self.futures]
        named = stage.with_options(task_run_name=step.name, tags={step.reason})
        future = named.submit(step, self._executor, return_state=False, wait_for=before)
        self.futures[step.name] = future
        future.add_done_callback(partial(self._announce, step.name))

    def close(self) -> None:
        """No more stages will come."""

    def join(self) -> None:
        """Wait until the flow run has ended."""
        for future in self.futures.values():
            future.wait()

    def _announce(self, name: str, _future: PrefectFuture[Any]) -> None:
        self._finished.put(name)


class _Phase(_Part):
    """Stages whose task runs belong to a phase's subflow run, which is open in a thread of its own.

    A flow runs in the thread that calls it. With one thread a phase, a slow teacher holds back nothing that does
    not need it: the subflow runs of several phases are open side by side.
    """

    def __init__(
        self,
        executor: Executor,
        finished: "queue.SimpleQueue[str | BaseException]",
        subflow: Flow[..., Any],
        wishes: Wishes,
    ):
        super().__init__(executor, finished)
        self._subflow, self._wishes = subflow, wishes
        self._asked: queue.SimpleQueue[tuple[Step, bool] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=copy_context().run, args=[self._open], daemon=True)
        self._thread.start()

    def show_cached(self, step: Step) -> None:
        self._asked.put((step, False))

    def start(self, step: Step) -> None:
        self._asked.put((step, True))

    def close(self) -> None:
        self._asked.put(None)

    def join(self) -> None:
        self._thread.join()

    def take_part(self) -> dict[str, str]:
        """Show the stages until there are no more; called by the subflow, in its run.

        Raises:
            PipelineFailed: some of them failed.
        """
        while (asked := self._asked.get()) is not None:
            step, due = asked
            if due:
                super().start(step)
            else:
                super().show_cached(step)
        results: dict[str, Any] = {
            name: future.result(raise_on_failure=False) for name, future in self.futures.items()
        }
        if failures := [result for result in results.values() if isinstance(result, StageFailed)]:
            raise PipelineFailed(failures, [])
        for result in results.values():
            if isinstance(result, BaseException):  # cancelled, or a defect of ours
                raise result
        return {name: str(result) for name, result in results.items()}

    def _open(self) -> None:
        _shown.set(self)
        try:
            with tags(*this_run.tags):  # a subflow run does not inherit them
                self._subflow(self._wishes.root, self._wishes.force, self._wishes.executor)
        except PipelineFailed:  # the run that asks knows
            pass
        except BaseException as error:  # else it would wait for stages that nobody starts
            self._finished.put(error)


_shown: ContextVar[_Phase | None] = ContextVar("shown", default=None)
"""Of a subflow run that shows a phase of another run: what it shows."""


class _Run:
    """Starts every stage that is due as soon as what it depends on is up to date and a slot is free.

    Of several, those with the longest way ahead of them first. So slots are not left empty at the end, and the baseline
    comes after the rgb teacher: where they are one training, it would else wait for that in a slot.
    """

    def __init__(self, todo: Plan, executor: Executor, phases: Mapping[str, Flow[..., Any]], wishes: Wishes):
        self.outcomes = {step.name: Outcome.CACHED for step in todo.steps if step.verdict == "cached"}
        self._executor, self._phases, self._wishes = executor, phases, wishes
        self._todo, self._board = todo, board.get()
        self._waiting = {step.name: step for step in todo.due}
        self._ahead = todo.stages_ahead()
        self._running: dict[str, Step] = {}
        self._finished: queue.SimpleQueue[str | BaseException] = queue.SimpleQueue()
        self._parts: dict[str, _Part] = {}
        self._open: set[str] = set()
        self._failures: list[StageFailed] = []

    def to_the_end(self) -> None:
        """Run all that can be run."""
        try:
            for step in self._todo.steps:
                if self._place(step) not in {self._place(due) for due in self._todo.due}:
                    self._part(step)  # a phase that is cached as a whole is shown at once
            self._go_on()
            while self._running:
                self._note(self._finished.get())
                self._go_on()
        finally:  # cancelled: the parts wait for their tasks, and they for their stages
            self._executor.stop()
            self._close(self._open)
            for part in self._parts.values():
                part.join()
        while not self._finished.empty():
            self._note(self._finished.get())  # a subflow run that could not be ended
        for name in self._waiting:
            if self._board:
                self._board.ended(name, "not started")

    def raise_failures(self) -> None:
        """Raise PipelineFailed where a stage failed."""
        if self._failures:
            raise PipelineFailed(self._failures, list(self._waiting))

    def _go_on(self) -> None:
        ready = [step for step in self._waiting.values() if self.outcomes.keys() >= set(step.dependencies)]
        ready.sort(key=lambda step: -self._ahead[step.name])
        for step in ready[: self._executor.slots - len(self._running)]:
            del self._waiting[step.name]
            self._running[step.name] = step
            self._part(step).start(step)
        busy = {self._place(step) for step in (*self._waiting.values(), *self._running.values())}
        self._close(self._open - busy)

    def _place(self, step: Step) -> str:
        """The phase whose subflow run shows the stage; empty: the run that asks does."""
        return step.phase if step.phase in self._phases else ""

    def _part(self, step: Step) -> _Part:
        """The part of the stage, opened where it is the first."""
        place = self._place(step)
        if place not in self._parts:
            if place:
                self._parts[place] = _Phase(self._executor, self._finished, self._phases[place], self._wishes)
            else:
                self._parts[place] = _Part(self._executor, self._finished)
            self._open.add(place)
            for each in self._todo.steps:
                if each.verdict == "cached" and self._place(each) == place:
                    self._parts[place].show_cached(each)
        return self._parts[place]

    def _close(self, places: set[str]) -> None:
        for place in list(places):
            self._parts[place].close()
            self._open.discard(place)

    def _note(self, news: str | BaseException) -> None:
        if isinstance(news, BaseException):
            raise news
        step = self._running.pop(news)
        result: Any = self._parts[self._place(step)].futures[news].result(raise_on_failure=False)
        if isinstance(result, StageFailed):
            self._failures.append(result)
        elif isinstance(result, BaseException):
            raise result
        else:
            self.outcomes[news] = result
        if self._board and isinstance(result, StageFailed):
            self._board.ended(news, "failed", result.reason)
        elif self._board:
            self._board.ended(news, result.value)
