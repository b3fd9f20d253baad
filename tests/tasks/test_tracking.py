import subprocess
import sys
import textwrap
import warnings

import pytest

from tasks.layout import Workspace
from tasks.stores import tracking

DIGEST = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One clone for all tests that leave its store whole: creating one takes seconds."""
    return tmp_path_factory.mktemp("clone")


@pytest.fixture
def workspace(store, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("UNDERSTUDY_WORK", "work")
    return Workspace(store)


def open_run(workspace, params=None, tags=None, training="one"):
    return tracking.run(
        workspace, "distill@student seed 0", "distill", params or {}, tags or {}, DIGEST, "kitchen", training
    )


def stored(workspace, run_id):
    return tracking.client(workspace).get_run(run_id)


def test_a_run_keeps_params_tags_metrics_data_and_files(workspace, tmp_path):
    curves = tmp_path / "curves.csv"
    curves.write_text("epoch\n0\n")
    params = {"training": {"epochs": 3, "decay": "cosine"}, "zoom": [1.0, 1.25], "note": "x" * 9000}
    with open_run(workspace, params, {"item": "student"}) as run:
        run.log({"val_loss": 0.5, "val_top1": 0.25}, step=0)
        run.log({"val_loss": 0.4}, step=1)
        run.artifact(curves)

    found = stored(workspace, run.id)
    assert found.info.status == "FINISHED"
    assert found.data.params["training.epochs"] == "3"
    assert found.data.params["training.decay"] == "cosine"
    assert found.data.params["zoom"] == "[1.0, 1.25]"
    assert len(found.data.params["note"]) == 6000
    assert {"stage": "distill", "item": "student", "data_digest": DIGEST}.items() <= found.data.tags.items()
    assert found.data.metrics["val_loss"] == 0.4
    history = tracking.client(workspace).get_metric_history(run.id, "val_loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.5), (1, 0.4)]
    (dataset,) = found.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("kitchen", DIGEST)
    assert [file.path for file in tracking.client(workspace).list_artifacts(run.id)] == ["curves.csv"]


def test_everything_local_lies_under_the_work_folder(workspace):
    with open_run(workspace) as run:
        run.log({"a": 1.0}, step=0)
    work = workspace.root / "work"
    assert (work / "mlflow.db").exists()
    assert stored(workspace, run.id).info.artifact_uri.startswith((work / "mlartifacts").as_uri())


def test_more_params_than_one_batch_holds(workspace):
    with open_run(workspace, {f"p{number}": number for number in range(250)}) as run:
        pass
    assert len(stored(workspace, run.id).data.params) == 250


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_stage_that_fails_says_so(workspace, error, status):
    with pytest.raises(error), open_run(workspace) as run:
        raise error
    assert stored(workspace, run.id).info.status == status


def test_a_killed_training_is_told_of_by_its_continuation(workspace):
    """SIGKILL leaves two runs open; the next run of one of the trainings closes that one."""
    program = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from tasks.layout import Workspace
        from tasks.stores import tracking

        def opened(training):
            return tracking.run(
                Workspace(Path(sys.argv[1])), "n", "distill", {}, {}, "d", "kitchen", training
            )

        with opened("killed") as killed, opened("other") as other:
            print(killed.id, other.id, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    command = [sys.executable, "-c", program, str(workspace.root)]
    killed, other = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.split()
    assert stored(workspace, killed).info.status == "RUNNING"
    with open_run(workspace, training="killed") as run:
        assert stored(workspace, killed).info.status == "KILLED"
        assert stored(workspace, run.id).info.status == "RUNNING"
    assert stored(workspace, run.id).info.status == "FINISHED"
    assert stored(workspace, other).info.status == "RUNNING"


def test_an_unreachable_server_costs_one_warning(workspace, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # discard: nothing listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with open_run(workspace) as run:
            run.log({"a": 1.0}, step=0)
            run.artifact(tmp_path)
    assert run.id == ""
    assert sum("MLflow failed" in str(warning.message) for warning in caught) == 1


@pytest.mark.filterwarnings("ignore:MLflow failed")
def test_what_an_unreachable_server_was_not_told_is_delivered_once_it_answers(workspace, monkeypatch):
    """One run that MLflow never heard of; another whose server vanishes on the way; both whole in the end."""
    here, nowhere = tracking.store_uri(workspace), "http://127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    spool = workspace.root / "work" / "spool"
    tracking.deliver(workspace)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nowhere)
    with open_run(workspace, {"a": 1}, {"item": "lost"}) as run:
        run.log({"loss": 3.0}, step=0)
        run.log({"loss": 2.0}, step=1)
    assert len(list(spool.glob("*.json"))) == 1

    monkeypatch.setenv("MLFLOW_TRACKING_URI", here)
    with open_run(workspace, training="cut off") as cut:
        cut.log({"loss": 5.0}, step=0)
        cut._client = tracking.client(workspace).__class__(tracking_uri=nowhere)
        cut.log({"loss": 4.0}, step=1)
    assert stored(workspace, cut.id).info.status == "RUNNING"
    assert len(list(spool.glob("*.json"))) == 1, "the first was delivered when the second began"

    with open_run(workspace, training="cut off") as going_on:
        assert stored(workspace, going_on.id).info.status == "RUNNING"
    assert not list(spool.glob("*.json"))
    late = stored(workspace, cut.id)
    assert late.info.status == "FINISHED"
    client = tracking.client(workspace)
    assert [m.value for m in client.get_metric_history(cut.id, "loss")] == [5.0, 4.0]
    (lost,) = client.search_runs([late.info.experiment_id], "tags.item = 'lost'")
    assert (lost.info.status, lost.data.params) == ("FINISHED", {"a": "1"})
    assert lost.info.start_time <= lost.info.end_time < late.info.start_time
    assert [(m.step, m.value) for m in client.get_metric_history(lost.info.run_id, "loss")] == [
        (0, 3.0),
        (1, 2.0),
    ]
    tracking.deliver(workspace)
    assert len(client.search_runs([late.info.experiment_id], "tags.item = 'lost'")) == 1


@pytest.mark.filterwarnings("ignore:MLflow failed")
def test_a_story_that_mlflow_refuses_or_nobody_can_read_holds_up_no_other(workspace, monkeypatch):
    here = tracking.store_uri(workspace)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for item in ("refused", "fine"):
        with open_run(workspace, {"a": 1}, {"item": item}, training=item) as run:
            run.log({"loss": 3.0}, step=0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", here)
    spool = workspace.root / "work" / "spool"
    (refused,) = (file for file in spool.glob("*.json") if '"refused"' in file.read_text())
    first = spool / "0000.json"  # told before all others, of a run that somebody deleted
    first.write_text(
        refused.read_text().replace('"run_id": ""', '"run_id": "gone"').replace(refused.stem, "0000")
    )
    refused.unlink()
    (spool / "00.json").write_text('{"of": "another version"}')
    tracking.deliver(workspace)
    assert [file.name for file in spool.glob("*.json")] == ["0000.json"]
    assert (spool / "00.unreadable").is_file()
    client = tracking.client(workspace)
    (told,) = client.search_runs(
        [each.experiment_id for each in client.search_experiments()], "tags.item = 'fine'"
    )
    assert told.info.status == "FINISHED"


def test_metrics_wait_for_a_store_that_was_away(workspace, tmp_path, monkeypatch):
    """The SQLite file vanishes in mid-training and comes back: the curve has no hole."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    monkeypatch.setattr(tracking, "_RETRY_AFTER_S", 0.0)
    database, away = workspace.root / "work" / "mlflow.db", tmp_path / "away.db"
    with open_run(workspace) as run:
        run.log({"loss": 3.0}, step=0)
        database.rename(away)
        database.mkdir()  # so that SQLite cannot create a new one
        for engine in SqlAlchemyStore._engine_map.values():
            engine.dispose()
        with pytest.warns(UserWarning, match="MLflow failed"):
            run.log({"loss": 2.0}, step=1)
        database.rmdir()
        away.rename(database)
        run.log({"loss": 1.0}, step=2)
    history = tracking.client(workspace).get_metric_history(run.id, "loss")
    assert [metric.value for metric in history] == [3.0, 2.0, 1.0]


def test_the_own_store_by_a_relative_path_is_the_own_store(tmp_path, monkeypatch):
    """As the README has it for `mlflow models serve`: elsewhere it would be another file, its artifacts in ./mlruns."""
    monkeypatch.setenv("UNDERSTUDY_WORK", "work")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    own = tracking.store_uri(Workspace(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///work/mlflow.db")
    assert tracking.store_uri(Workspace(tmp_path / "studies" / "x")) == own
    with open_run(Workspace(tmp_path)) as run:
        pass
    assert stored(Workspace(tmp_path), run.id).info.artifact_uri.startswith((tmp_path / "work").as_uri())
    assert not (tmp_path / "mlruns").exists()
    for given in ("sqlite:////srv/mlflow.db", "http://server:5000"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
        assert tracking.store_uri(Workspace(tmp_path)) == given


def test_a_creation_that_was_killed_is_begun_anew(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("UNDERSTUDY_WORK", "work")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mlflow.db.new").write_bytes(b"half a file")
    with open_run(Workspace(tmp_path)) as run:
        pass
    assert stored(Workspace(tmp_path), run.id).info.status == "FINISHED"


def test_two_processes_may_create_the_store_at_once(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("UNDERSTUDY_WORK", "work")
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from tasks.layout import Workspace
        from tasks.stores import tracking

        workspace, training = Workspace(Path(sys.argv[1])), sys.argv[2]
        with tracking.run(workspace, "n", "distill", {}, {}, "d", "kitchen", training) as run:
            run.log({"a": 1.0}, step=0)
        print(run.id)
    """)
    command = [sys.executable, "-W", "error:MLflow failed", "-c", program, str(tmp_path)]
    processes = [
        subprocess.Popen([*command, training], stdout=subprocess.PIPE, text=True)
        for training in ("one", "another")
    ]
    ids = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert len(set(ids)) == 2
    assert all(stored(Workspace(tmp_path), run_id).info.status == "FINISHED" for run_id in ids)


def test_the_runs_of_one_pipeline_run_are_nested_in_one(workspace, monkeypatch):
    (workspace.root / "data.dvc").write_text("outs:\n- md5: 0123.dir\n  path: raw\n")
    monkeypatch.setenv("UNDERSTUDY_PIPELINE_RUN", "brisk-otter 1234")
    runs = []
    for training in ("first", "second"):
        with open_run(workspace, training=training) as run:
            runs.append(stored(workspace, run.id))
            (parent,) = {found.data.tags["mlflow.parentRunId"] for found in runs}
            assert stored(workspace, parent).info.status == "RUNNING"
        assert stored(workspace, parent).info.status == "FINISHED"
    found = stored(workspace, parent)
    assert found.info.run_name == "pipeline brisk-otter"
    expected = {"stage": "pipeline", "pipeline_run": "brisk-otter 1234", "data_dvc_md5": "0123.dir"}
    assert expected.items() <= found.data.tags.items()
    assert runs[0].data.tags["data_dvc_md5"] == "0123.dir"
    monkeypatch.delenv("UNDERSTUDY_PIPELINE_RUN")
    with open_run(workspace) as run:
        assert "mlflow.parentRunId" not in stored(workspace, run.id).data.tags


def test_of_two_machines_that_begin_at_once_both_take_the_first_pipeline_run(workspace):
    """The lock that keeps processes of one machine apart is no use between two."""
    real = tracking.client(workspace)
    experiment = tracking.experiment(real, workspace, "race")

    class Late:
        """The other machine looks once before the first has created its run."""

        blind = True

        def __getattr__(self, name):
            return getattr(real, name)

        def search_runs(self, *args, **kwargs):
            if self.blind:
                self.blind = False
                return []
            return real.search_runs(*args, **kwargs)

    first = tracking.pipeline_run(real, workspace, experiment, "swift-hare 1")
    assert tracking.pipeline_run(Late(), workspace, experiment, "swift-hare 1") == first
    assert [run.info.run_id for run in real.search_runs([experiment])] == [first]


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("@champion", "models:/understudy-student@champion"),
        ("v12", "models:/understudy-student/12"),
        ("HEAD~1", "HEAD~1"),
        ("v1.0", "v1.0"),
    ],
)
def test_short_names_of_versions(name, address):
    assert tracking.address(name) == address


@pytest.mark.parametrize("uri", ["https://user:pa55@host:5000/x", "postgresql://user:pa55@host:5000/x"])
def test_the_password_of_the_address_is_not_told(workspace, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    plain = uri.replace("user:pa55@", "")
    assert tracking.shown_uri(workspace) == plain
    said = OSError(f"{uri} did not answer: GET {uri}/api\nand more")
    assert tracking.told(said, workspace) == f"{plain} did not answer: GET {plain}/api"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", plain)
    assert tracking.told(OSError("a@b did not answer"), workspace) == "a@b did not answer"
    assert tracking.told(OSError(), workspace) == "OSError"


def test_the_commit_is_that_of_the_code_whatever_dvc_wrote(tmp_path):
    def git(*words):
        names = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        told = subprocess.run(
            ["git", *names, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return told.stdout.strip()

    git("init", "-q")
    for name in ("dvc.lock", "params.yaml"):
        (tmp_path / name).write_text("before")
    git("add", ".")
    git("commit", "-qm", "all")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "dvc.lock").write_text("after")
    (tmp_path / "untracked").write_text("x")
    assert tracking.git_commit(Workspace(tmp_path)) == commit
    (tmp_path / "params.yaml").write_text("after")
    assert tracking.git_commit(Workspace(tmp_path)) == f"{commit}-dirty"
    assert tracking.git_commit(Workspace(tmp_path / "nowhere")) == ""
