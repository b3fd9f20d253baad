"""MLflow's store: where it is, how a training writes its run to it, and how a registered version is found.

MLflow remembers; it never decides. Whatever goes wrong here is said once and the training goes on, and a run
that MLflow never heard of can still be registered later, from the stage's outputs.
"""

import json
import logging
import os
import re
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

from tasks import ranks
from tasks.atomic import alone, file_digest
from tasks.errors import InfrastructureError, UserError
from tasks.layout import Workspace
from tasks.settings import settings
from tasks.stores.spool import Story, forget, keep, kept

# MLflow reads these when it is imported, so every module of ours imports this one before it.
os.environ.update(
    MLFLOW_DISABLE_TELEMETRY="true",
    MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false",
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
)
# Its own patience (7 tries, 2 minutes each) would hold a training up for a quarter of an hour.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
_TIMEOUT, _SHORT_S, _LONG_S = "MLFLOW_HTTP_REQUEST_TIMEOUT", "20", "120"
os.environ.setdefault(_TIMEOUT, _SHORT_S)
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MODEL = "understudy-student"
"""The registered model's name; interfaces outside rely on it."""
SYSTEM_METRICS_INTERVAL_S = 30
_MODEL_URI = re.compile(r"models:/(?P<name>[\w-]+)(@(?P<alias>[\w-]+)|/(?P<version>\d+))")
_RELATIVE = re.compile(r"sqlite:///(?P<path>[^/].*)")
_SHORT = re.compile(r"@(?P<alias>[\w-]+)|v(?P<version>\d+)")
VERSIONS = (
    "a number or an alias, as MLflow's UI shows them; the first version is champion, later ones challenger; "
    "where there is none yet: understudy run"
)
"""What a person is told who names a version that is not there."""
_TRAINING_TAG = "training"
_STORY_TAG = "story"
_PIPELINE_TAG, _PARENT_TAG = "pipeline_run", "mlflow.parentRunId"
_RETRY_AFTER_S, _RETRY_AT_LEAST_EVERY_S = 60.0, 1800.0
LONGEST_PARAM = 6000
_PARAMS_A_BATCH = 100
_METRICS_A_BATCH = 1000


def store_uri(workspace: Workspace) -> str:
    """The tracking URI: MLFLOW_TRACKING_URI if set, else a SQLite file in the work folder.

    A SQLite file that is set by a relative path, as in the README, is the one it names from here: another working
    directory would mean another file, and the work folder's own store would not be known for it.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI") or _local_uri(workspace)
    relative = _RELATIVE.fullmatch(given)
    return f"sqlite:///{Path(relative['path']).resolve()}" if relative else given


def shown_uri(workspace: Workspace) -> str:
    """The tracking URI for people: without the user and password that may stand in it."""
    return _without_password(store_uri(workspace), workspace)


def told(error: Exception, workspace: Workspace) -> str:
    """The first line of what an error of MLflow says, which may hold the tracking URI, without its password."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _without_password(lines[0], workspace)


def _without_password(text: str, workspace: Workspace) -> str:
    userinfo, at, _ = urlsplit(store_uri(workspace)).netloc.rpartition("@")
    return text.replace(userinfo + at, "") if at else text


def experiment_name(data_name: str) -> str:
    """The experiment that holds all runs on one data set."""
    return f"understudy/{data_name}"


def client(workspace: Workspace) -> "MlflowClient":
    """A client of the tracking store and the registry; the local store is created if need be."""
    from mlflow import MlflowClient

    # A new SQLite store says one line for each of some fifty migrations.
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)  # that pip itself is not installed
    warnings.filterwarnings(
        "ignore", message="The ``noload`` loader strategy"
    )  # MLflow's own, with SQLAlchemy 2.1
    if store_uri(workspace) == _local_uri(workspace):
        _ensure_local_store(_work(workspace))
    return MlflowClient(tracking_uri=store_uri(workspace))


@contextmanager
def addressed(workspace: Workspace) -> Iterator[None]:
    """Point MLflow's own functions, which know one store a process, at the workspace's; undone at the end.

    They move whole models, and the server answers when its store has them: MLflow's own patience, unless another was
    set.
    """
    import mlflow

    given, patience = os.environ.get("MLFLOW_TRACKING_URI"), os.environ.get(_TIMEOUT, _SHORT_S)
    os.environ[_TIMEOUT] = _LONG_S if patience == _SHORT_S else patience
    mlflow.set_tracking_uri(store_uri(workspace))  # sets the variable, too
    try:
        yield
    finally:
        os.environ[_TIMEOUT] = patience
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # None unsets it
        if given is not None:
            os.environ["MLFLOW_TRACKING_URI"] = given


def experiment(mlflow_client: "MlflowClient", workspace: Workspace, data_name: str) -> str:
    """The id of the data set's experiment; see `experiment_named`."""
    return experiment_named(mlflow_client, workspace, experiment_name(data_name))


def experiment_named(mlflow_client: "MlflowClient", workspace: Workspace, name: str) -> str:
    """The id of an experiment, which is created if need be.

    Raises:
        mlflow.exceptions.MlflowException: the store fails, or the experiment was deleted in MLflow.
    """
    from mlflow.exceptions import MlflowException

    found = mlflow_client.get_experiment_by_name(name)
    if found is None:
        try:
            return mlflow_client.create_experiment(name, artifact_location=_artifacts(workspace))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = mlflow_client.get_experiment_by_name(name)  # another stage was faster
    if found is None or found.lifecycle_stage == "deleted":
        raise MlflowException(
            f"experiment {name!r} was deleted in MLflow; restore it there or use another name"
        )
    return found.experiment_id


def address(name: str) -> str:
    """`name` as models:/…, where it is @ALIAS or vN for short; anything else as it is."""
    short = _SHORT.fullmatch(name)
    if short is None:
        return name
    return f"models:/{MODEL}@{short['alias']}" if short["alias"] else f"models:/{MODEL}/{short['version']}"


def model_version(model: str, workspace: Workspace) -> "ModelVersion":
    """The registered version that `model`, models:/NAME@ALIAS or models:/NAME/VERSION, names.

    Raises:
        UserError: it is not written so, or the registry has no such version.
        InfrastructureError: the registry cannot be reached.
    """
    parsed = _MODEL_URI.fullmatch(model)
    if parsed is None:
        raise UserError(
            f"{model!r} is no model of the registry",
            remedy="write models:/NAME@ALIAS or models:/NAME/VERSION",
        )
    from mlflow.exceptions import MlflowException

    try:
        if parsed["alias"]:
            return client(workspace).get_model_version_by_alias(parsed["name"], parsed["alias"])
        return client(workspace).get_model_version(parsed["name"], parsed["version"])
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UserError(f"the registry has no {model}", remedy=VERSIONS) from None
        raise InfrastructureError(f"MLflow cannot be asked for {model}: {told(error, workspace)}") from error


def git_commit(workspace: Workspace) -> str:
    """The commit of the clone, with `-dirty` behind it where tracked files differ; empty outside git.

    Not counted is dvc.lock: DVC writes it as a run goes on, and what stands in it follows from the other files.
    """
    git = ["git", "-C", str(workspace.root)]
    changes = [*git, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)dvc.lock"]
    try:
        commit, changed = (
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
            for command in ([*git, "rev-parse", "HEAD"], changes)
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}-dirty" if changed else commit


def lineage(workspace: Workspace) -> dict[str, str]:
    """What the clone says of where a run comes from, as tags; what is missing is left out."""
    found = {"git_commit": git_commit(workspace)}
    data = workspace.root / "data.dvc"
    if data.exists():
        found["data_dvc_md5"] = str(
            yaml.safe_load(data.read_text(encoding="utf-8"))["outs"][0].get("md5", "")
        )
    for tag, file in {"dvc_lock_sha256": "dvc.lock", "params_sha256": "params.yaml"}.items():
        if (workspace.root / file).exists():
            found[tag] = file_digest(workspace.root / file)
    return {tag: value for tag, value in found.items() if value}


def pipeline_run(mlflow_client: "MlflowClient", workspace: Workspace, experiment_id: str, name: str) -> str:
    """The id of the run that stands for the whole pipeline run of that name; empty where there is no name.

    The first of its stages creates it. Its status is that of the nested run that ended last.
    """
    if not name:
        return ""

    def first() -> str:
        wanted, order = f"tags.{_PIPELINE_TAG} = '{name}'", ["attributes.start_time ASC"]
        found = mlflow_client.search_runs([experiment_id], wanted, max_results=1, order_by=order)
        return found[0].info.run_id if found else ""

    with alone(_work(workspace) / "pipeline-run.lock"):
        if there := first():
            mlflow_client.update_run(there, status="RUNNING")
            return there
        tags = lineage(workspace) | {_PIPELINE_TAG: name, "stage": "pipeline"}
        tags["mlflow.source.name"] = "understudy run"
        run_name = f"pipeline {name.split()[0]}"
        created = mlflow_client.create_run(experiment_id, run_name=run_name, tags=tags).info.run_id
        # The lock is this machine's: another worker may have begun at the same moment.
        there = first() or created
        if there != created:
            mlflow_client.delete_run(created)
        return there


def nested(parent: str) -> dict[str, str]:
    """The tag of a run inside `parent`; none where that is empty."""
    return {_PARENT_TAG: parent} if parent else {}


class Run:
    """One MLflow run, written to in batches. Every method returns, whether or not MLflow does.

    What could not be sent is kept and goes with the next batch, so a server that was away for a while loses
    nothing of a curve. What is left at the end is written down in the work folder (`tasks.stores.spool`), and the next
    run that reaches MLflow delivers it.
    """

    def __init__(self, workspace: Workspace, story: Story, late: bool = False):
        self._workspace, self._story, self._late = workspace, story, late
        self._client: MlflowClient | None = None
        self._parent = ""
        self._silent_until, self._silence_s = 0.0, _RETRY_AFTER_S
        self._warned = False

    @property
    def id(self) -> str:
        """MLflow's; empty where MLflow has not heard of it."""
        return self._story.run_id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send the metrics of one step (an epoch, 0-based) as one batch."""
        now_ms = _now_ms()
        self._story.metrics += [(key, float(value), now_ms, step) for key, value in metrics.items()]
        if time.monotonic() >= self._silent_until:
            self._try(self._send)

    def artifact(self, path: Path) -> None:
        """Copy a file, or a folder under its own name, to the run."""
        if (reached := self._client) is None or not self.id:
            return
        if path.is_dir():
            self._try(lambda: reached.log_artifacts(self.id, str(path), artifact_path=path.name))
        else:
            self._try(lambda: reached.log_artifact(self.id, str(path)))

    def _begin(self) -> bool:
        """Open the run; whether MLflow answered."""
        return self._try(self._send)

    def _end(self, status: str) -> None:
        self._story.status, self._story.ended_ms = status, _now_ms()
        if not self._try(self._tell_the_end):
            keep(_spool(self._workspace), self._story)

    def _send(self) -> None:
        """Open the run if it is not open, and send what is to be sent."""
        from mlflow.entities import Metric

        story = self._story
        if self._client is None:
            self._client = client(self._workspace)
        if not story.run_id:
            self._open(self._client)
        while story.metrics:
            batch = [Metric(*metric) for metric in story.metrics[:_METRICS_A_BATCH]]
            self._client.log_batch(story.run_id, metrics=batch)
            del story.metrics[:_METRICS_A_BATCH]

    def _open(self, mlflow_client: "MlflowClient") -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        story = self._story
        name, digest = story.data
        experiment_id = experiment(mlflow_client, self._workspace, name)
        self._parent = pipeline_run(mlflow_client, self._workspace, experiment_id, story.pipeline)
        begun = mlflow_client.search_runs([experiment_id], f"tags.{_STORY_TAG} = '{story.key}'")
        run_id = (
            begun[0].info.run_id  # opened by somebody who was killed before the rest
            if begun
            else mlflow_client.create_run(
                experiment_id,
                run_name=story.name,
                start_time=story.started_ms,
                tags=story.tags | nested(self._parent) | {_STORY_TAG: story.key},
            ).info.run_id
        )
        flat = [Param(key, value) for key, value in story.params.items()]
        for first in range(0, len(flat), _PARAMS_A_BATCH):
            mlflow_client.log_batch(run_id, params=flat[first : first + _PARAMS_A_BATCH])
        dataset = Dataset(name, digest, source_type="dvc", source=json.dumps({"path": "data/index"}))
        context = [InputTag("mlflow.data.context", "training")]
        mlflow_client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags=context)])
        story.run_id = run_id
        if not self._late:  # else the training may have been taken up since, by a run that is going on
            self._end_killed(mlflow_client, experiment_id)

    def _end_killed(self, mlflow_client: "MlflowClient", experiment_id: str) -> None:
        """Mark other runs of this training that seem to run as killed: after a SIGKILL nobody else would.

        One that does run, in another clone that shares the server, says at its end how it ended.
        """
        running = (
            f"tags.{_TRAINING_TAG} = '{self._story.tags[_TRAINING_TAG]}' and attributes.status = 'RUNNING'"
        )
        for left in mlflow_client.search_runs([experiment_id], running):
            if left.info.run_id != self.id:
                mlflow_client.set_terminated(left.info.run_id, "KILLED")
                parent = left.data.tags.get(_PARENT_TAG)
                if parent and parent != self._parent:
                    mlflow_client.set_terminated(parent, "KILLED")

    def _tell_the_end(self) -> None:
        self._send()
        assert self._client is not None
        self._client.set_terminated(self.id, self._story.status, self._story.ended_ms)
        if self._parent:
            self._client.set_terminated(self._parent, self._story.status)

    def _try(self, step: Callable[[], object]) -> bool:
        """Take a step; where MLflow fails, say so once and leave it alone for a while."""
        try:
            step()
        except Exception as error:  # each store has its own
            # A server that answers nothing costs a minute each time it is asked, so it is asked less and less.
            self._silent_until = time.monotonic() + self._silence_s
            self._silence_s = min(2 * self._silence_s, _RETRY_AT_LEAST_EVERY_S)
            self._warn(error)
            return False
        self._silence_s = _RETRY_AFTER_S
        return True

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            reason = told(error, self._workspace)
            warnings.warn(f"MLflow failed, the stage goes on without it: {reason}", stacklevel=4)
        self._warned = True


class _Unheard(Run):
    """The run of a rank that is not the first: MLflow hears of a training once."""

    def __init__(self) -> None: ...

    id = ""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def artifact(self, path: Path) -> None: ...


def deliver(workspace: Workspace) -> None:
    """Tell MLflow of the runs that it could not be told of; those that it still cannot be told of stay written down.

    The rest of a run that MLflow knows goes to that run; any other is made anew, with its own times. One that is
    refused, as its run was deleted, does not hold up those behind it.
    """
    folder = _spool(workspace)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    with alone(folder.with_suffix(".lock")):
        for story in kept(folder):
            late = Run(workspace, story, late=True)
            if late._try(late._tell_the_end):
                forget(folder, story)
                continue
            keep(folder, story)
            if not _answers(workspace):
                return


def _answers(workspace: Workspace) -> bool:
    """Whether MLflow can be reached at all."""
    try:
        client(workspace).search_experiments(max_results=1)
    except Exception:  # each store has its own
        return False
    return True


@contextmanager
def run(
    workspace: Workspace,
    name: str,
    stage: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    data_digest: str,
    data_name: str,
    training: str,
) -> Iterator[Run]:
    """Open an MLflow run for one training, and close it as finished, failed or killed.

    Earlier runs of the same training that a SIGKILL left open are closed as killed, too. Of several ranks the first
    alone tells MLflow.

    Args:
        name: the run's name in the UI, for example "distill@student seed 0".
        stage: the stage of dvc.yaml; becomes a tag.
        params: what the numbers depend on; nested keys are joined by dots.
        tags: more tags, for example item, seed and method.
        data_digest: names the content of the data, at most 36 characters, so that the UI compares runs on the
            same data.
        data_name: params' data.name; names the experiment and the data set.
        training: names everything that the training depends on; becomes a tag.
    """
    if not ranks.is_first():
        yield _Unheard()
        return
    found = lineage(workspace)
    commit = found.get("git_commit", "")
    all_tags = {"stage": stage, "data_digest": data_digest, _TRAINING_TAG: training, **found, **tags}
    all_tags["mlflow.source.name"] = f"python -m tasks {stage}"
    all_tags["mlflow.source.git.commit"] = commit.removesuffix("-dirty")
    flat = {key: value[:LONGEST_PARAM] for key, value in flatten(params)}
    pipeline = settings().pipeline_run
    opened = Run(workspace, Story(name, all_tags, flat, (data_name, data_digest), pipeline, _now_ms()))
    if opened._begin():
        deliver(workspace)
    monitor = _system_metrics(workspace, opened)
    status = "KILLED"
    try:
        yield opened
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        if monitor is not None:
            monitor.finish()
        opened._end(status)


def _system_metrics(workspace: Workspace, opened: Run) -> Any:
    """Start measuring CPU, memory, disk, network and, where there is one, the GPU; None where that fails."""
    if not opened.id:
        return None
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    try:
        monitor = SystemMetricsMonitor(
            opened.id, sampling_interval=SYSTEM_METRICS_INTERVAL_S, tracking_uri=store_uri(workspace)
        )
        monitor.start()
        return monitor
    except Exception as error:
        opened._warn(error)
        return None


def _local_uri(workspace: Workspace) -> str:
    return f"sqlite:///{_work(workspace) / 'mlflow.db'}"


def _work(workspace: Workspace) -> Path:
    return (workspace.root / settings().work).resolve()


def _spool(workspace: Workspace) -> Path:
    return _work(workspace) / "spool"


def _now_ms() -> int:
    return int(time.time() * 1000)


def _artifacts(workspace: Workspace) -> str | None:
    """Where a new experiment keeps its artifacts: beside the SQLite file; a server decides for itself."""
    if store_uri(workspace) != _local_uri(workspace):
        return None
    return (_work(workspace) / "mlartifacts").as_uri()


def _ensure_local_store(work: Path) -> None:
    """Create the SQLite file, whole or not at all.

    MLflow fills a new one in some fifty migrations: two processes that interleave them both fail, and one
    that is killed among them leaves a file that no later run can open.
    """
    from mlflow import MlflowClient

    store = work / "mlflow.db"
    if store.exists():
        return
    with alone(work / "mlflow.lock"):
        if store.exists():
            return
        unfinished = work / "mlflow.db.new"
        unfinished.unlink(missing_ok=True)
        blank = MlflowClient(tracking_uri=f"sqlite:///{unfinished}")
        blank.search_experiments(max_results=1)
        blank.search_registered_models(max_results=1)
        unfinished.replace(store)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Params as MLflow takes them: nested keys joined by dots, values as text."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value if isinstance(value, str) else json.dumps(value, default=str)
