"""The flow `stage` as a worker runs it: in its own clone at a given commit, inputs from the remote, outputs to it."""

import errno
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from flows import lockfile
from flows.clone import Clone
from flows.local import LocalExecutor
from flows.plan import Step
from flows.remote import SAMPLE, require
from tasks.errors import InfrastructureError, UserError

pytestmark = pytest.mark.usefixtures("prefect_server")
MADE = "*.txt\n!source.txt\n!aside-source.txt\nruns.jsonl\n.understudy/\n__pycache__/\n"


def do(folder: Path, *command: str) -> str:
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def asking(project: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """The project, committed, with a DVC remote in a folder."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "t")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "t@example.org")
    (project.root / ".gitignore").write_text(MADE)
    do(project.root, "dvc", "remote", "add", "-q", "-d", "storage", str(tmp_path / "remote"))
    commit(project)
    return project


@pytest.fixture
def worker(asking: Clone, tmp_path: Path) -> Clone:
    """A clone of it, as a worker has one."""
    do(tmp_path, "git", "clone", "-q", str(asking.root), "worker")
    return Clone(tmp_path / "worker")


def commit(clone: Clone) -> str:
    do(clone.root, "git", "add", ".")
    do(clone.root, "git", "commit", "-q", "-m", "more")
    return do(clone.root, "git", "rev-parse", "HEAD")


def commit_of(clone: Clone) -> str:
    return do(clone.root, "git", "rev-parse", "HEAD")


def made(worker: Clone, stage: str, commit: str, outputs: dict[str, Any] | None = None, **more: Any) -> Any:
    """The state that the flow ends in."""
    from flows.stage import stage as flow

    return flow(stage, commit, outputs, root=worker.root, return_state=True, **more)


def test_a_stage_is_made_at_the_commit_and_fetched_elsewhere_by_what_it_tells(asking: Clone, worker: Clone):
    from flows.workers import _entry

    at = commit_of(asking)
    first = made(worker, "ingest", at)
    assert (first.name, first.message) == ("Completed", "ran")
    entry = _entry(first.state_details.flow_run_id)
    assert entry == lockfile.entries(worker)["ingest"]
    lockfile.merge(asking, {"ingest": entry})
    with asking.only_run() as lock:
        executor = LocalExecutor(asking, lock)
        executor.repro("ingest", ["--pull", "--no-run-cache"], print, {}, may_run=False)
    assert (asking.root / "index.txt").read_text() == "words ingest"
    assert not (asking.root / "runs.jsonl").exists()

    fresh = {"ingest": lockfile.outputs(entry)}
    assert made(worker, "extract@rgb", at, fresh).message == "ran"
    assert (worker.root / "rgb.txt").read_text() == "words ingestrgb"
    assert made(worker, "extract@rgb", at, fresh).message == "restored"
    assert made(worker, "extract@rgb", at, fresh, force=True).message == "ran"


def test_what_another_worker_made_is_restored_and_older_inputs_are_replaced(
    asking: Clone, worker: Clone, tmp_path: Path
):
    at = commit_of(asking)
    assert made(worker, "ingest", at).message == "ran"
    fresh = {"ingest": lockfile.outputs(lockfile.entries(worker)["ingest"])}
    do(tmp_path, "git", "clone", "-q", str(asking.root), "another")
    another = Clone(tmp_path / "another")
    assert made(another, "ingest", at).message == "restored"
    (another.root / "index.txt").write_text("of yesterday ")
    assert made(another, "extract@rgb", at, fresh).message == "ran"
    assert (another.root / "rgb.txt").read_text() == "words ingestrgb"


def test_what_a_rule_of_the_store_removed_of_the_run_cache_is_not_sent_again(
    asking: Clone, worker: Clone, tmp_path: Path
):
    at, runs = commit_of(asking), tmp_path / "remote" / "runs"
    assert made(worker, "ingest", at).message == "ran"
    (first,) = (file for file in runs.rglob("*") if file.is_file())
    shutil.rmtree(runs)
    fresh = {"ingest": lockfile.outputs(lockfile.entries(worker)["ingest"])}
    assert made(worker, "extract@rgb", at, fresh).message == "ran"
    (second,) = (file for file in runs.rglob("*") if file.is_file())
    assert second.parent.name != first.parent.name


def test_a_commit_made_since_is_fetched(asking: Clone, worker: Clone):
    (asking.root / "source.txt").write_text("newer ")
    assert made(worker, "ingest", commit(asking)).message == "ran"
    assert (worker.root / "index.txt").read_text() == "newer ingest"


def test_exit_codes_and_words_make_the_trip(asking: Clone, worker: Clone):
    from flows.stage import told

    (asking.root / "source.txt").write_text("poison")
    failed = made(worker, "ingest", commit(asking))
    assert failed.is_failed()
    code, reason = told(failed)
    assert code == 2
    assert reason.endswith("source.txt, row 1: poison")
    (asking.root / "stage.py").write_text("import sys; sys.exit(75)")
    assert told(made(worker, "ingest", commit(asking)))[0] == 75


def test_a_stage_that_failed_where_the_device_computes_nothing_is_worth_another_try(
    asking: Clone, worker: Clone, monkeypatch: pytest.MonkeyPatch
):
    from flows.stage import told

    monkeypatch.setenv("UNDERSTUDY_DEVICE", "meta-analysis")
    assert made(worker, "ingest", commit_of(asking)).message == "ran", "one that needs no device is no matter"
    (asking.root / "source.txt").write_text("poison")
    code, reason = told(made(worker, "ingest", commit(asking)))
    assert code == 75
    assert reason.startswith(
        "this worker's device computes nothing any more: UNDERSTUDY_DEVICE is 'meta-analysis'"
    )
    assert reason.endswith("source.txt, row 1: poison")


def test_a_worker_refuses_a_changed_clone_and_a_commit_that_nobody_pushed(asking: Clone, worker: Clone):
    from flows.stage import told

    (worker.root / "stage.py").write_text("print('mine')")
    code, reason = told(made(worker, "ingest", commit_of(asking)))
    assert code == 2
    assert reason.startswith(
        f"stage.py in {worker.root} is not committed\n  → a worker's clone is for stages alone"
    )
    do(worker.root, "git", "checkout", "-q", "stage.py")
    code, reason = told(made(worker, "ingest", "0" * 40))
    assert code == 2
    assert "git push" in reason


def test_a_checkout_that_was_killed_does_not_keep_a_worker_from_its_stages(asking: Clone, worker: Clone):
    (asking.root / "stage.py").write_text((asking.root / "stage.py").read_text() + "# newer")
    (asking.root / "new.py").write_text("")
    at = commit(asking)
    worker.fetch()
    # what is there when git, and we, were killed as it had written two files of the commit
    worker.work.mkdir()
    (worker.work / "check-out").write_text(at)
    (worker.root / ".git" / "index.lock").touch()
    (worker.root / "stage.py").write_text((asking.root / "stage.py").read_text())
    (worker.root / "new.py").write_text("")
    (asking.root / "new.py").unlink()
    assert made(worker, "ingest", commit(asking)).message == "ran"


def test_a_worker_whose_disk_is_full_leaves_the_stage_to_another(asking: Clone, worker: Clone):
    from flows.stage import told

    log = worker.log("ingest")
    log.parent.mkdir(parents=True)
    log.symlink_to("/dev/full")
    code, reason = told(made(worker, "ingest", commit_of(asking)))
    assert code == 75
    assert "No space left on device" in reason


def test_a_worker_whose_disk_became_read_only_leaves_the_stage_to_another(
    asking: Clone, worker: Clone, monkeypatch: pytest.MonkeyPatch
):
    from flows.stage import told

    def fails(_: Clone) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "run.lock")

    monkeypatch.setattr(Clone, "only_run", fails)
    code, reason = told(made(worker, "ingest", commit_of(asking)))
    assert code == 75
    assert "Read-only file system" in reason


def test_runs_that_prefect_ended_are_told_apart():
    from prefect.states import Cancelled, Crashed, Failed

    from flows.stage import told

    assert told(Crashed(message="the heart stopped")) == (75, "the heart stopped")
    assert told(Cancelled(message="by hand")) == (130, "by hand")
    assert told(Failed(message="exit code 3: a\nb")) == (3, "a\nb")
    assert told(Failed(message="validation failed")) == (1, "validation failed")


def test_only_what_the_stages_before_made_is_in_a_folder_that_a_stage_depends_on(
    asking: Clone, worker: Clone
):
    (asking.root / "dvc.yaml").write_text("""\
stages:
  make:
    foreach: [a, b]
    do:
      cmd: mkdir -p made/${item} && echo ${item} > made/${item}/file.txt
      deps: [source.txt]
      outs: ["made/${item}"]
  all:
    cmd: ls -R made > all.txt
    deps: [made]
    outs: [all.txt]
""")
    (asking.root / ".gitignore").write_text(MADE + "/made/\n")
    at = commit(asking)
    fresh = {}
    for stage in ("make@a", "make@b"):
        assert made(worker, stage, at).message == "ran"
        fresh[stage] = lockfile.outputs(lockfile.entries(worker)[stage])
    (worker.root / "made" / "of-yesterday").mkdir()
    (worker.root / "made" / "stray.txt").write_text("stray")
    (worker.root / "made" / "a" / "file.txt").write_text("mine")
    assert made(worker, "all", at, fresh).message == "ran"
    assert (worker.root / "all.txt").read_text() == "made:\na\nb\n\nmade/a:\nfile.txt\n\nmade/b:\nfile.txt\n"
    assert (worker.root / "made" / "a" / "file.txt").read_text() == "a\n"


def test_what_no_stage_makes_any_more_is_dropped_where_stages_read_it(asking: Clone):
    """Workers have none of it: left there, what they made would be of something else than is here."""
    from flows import remote

    (asking.root / "dvc.yaml").write_text("""\
stages:
  make:
    foreach: [a]
    do:
      cmd: mkdir -p made/${item} && echo ${item} > made/${item}/file.txt
      outs: ["made/${item}"]
  all:
    cmd: ls -R made > all.txt
    deps: [made]
    outs: [all.txt]
""")
    for name in ("a", "of-yesterday"):
        (asking.root / "made" / name).mkdir(parents=True)
    remote.drop_leftovers(asking, {"make@a"})
    assert (asking.root / "made" / "of-yesterday").is_dir()  # the stage that is due does not read it
    remote.drop_leftovers(asking, {"all"})
    assert [path.name for path in (asking.root / "made").iterdir()] == ["a"]


def test_a_store_that_fails_is_tried_again_and_then_said(asking: Clone, monkeypatch: pytest.MonkeyPatch):
    from flows import remote

    monkeypatch.setattr(remote, "PAUSES_S", (0.0, 0.0))
    with asking.only_run() as lock:
        LocalExecutor(asking, lock).run(Step("ingest", "stale", "", ()), print)
    storage = asking.root.parent / "remote"
    storage.write_text("no folder")
    with pytest.raises(InfrastructureError, match="dvc push failed 3 times"):
        remote.push_inputs(asking, {"extract@rgb"})
    storage.unlink()
    remote.push_inputs(asking, {"extract@rgb"})
    assert list(storage.rglob("*"))


@pytest.mark.parametrize("name", ["", SAMPLE])
def test_a_clone_without_a_remote_that_others_see_is_refused(project: Clone, tmp_path: Path, name: str):
    if name:
        do(project.root, "dvc", "remote", "add", "-q", "-d", name, str(tmp_path))
    with pytest.raises(UserError, match="dvc remote add -d storage"):
        require(project)


def test_the_workers_executor_refuses_what_no_worker_would_see(asking: Clone):
    from flows.pipeline import pipeline

    (asking.root / "new.py").write_text("pass")
    with pytest.raises(UserError, match=r"not committed: new\.py"):
        pipeline(asking.root, executor="workers")
    (asking.root / "new.py").unlink()
    with pytest.raises(UserError, match="understudy deploy"):
        pipeline(asking.root, executor="workers")
