"""A study on the small clone: killed, run on, given a method and a seed, under another name, on imported data."""

import json
import re
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml

from benchmarks.small import survivors

pytestmark = pytest.mark.slow

STUDY = {
    "name": "small",
    "seeds": [0, 1],
    "baseline": "labels",
    "data_sets": {"squares": {"source": "clone"}},
    "methods": {
        "labels": {"like": "baseline"},
        "kd": {
            "like": "student",
            "method": {
                "kind": "kd",
                "temperature": 1.0,
                "divergence": "forward_kl",
                "distillation_weight": 0.5,
                "ground_truth_weight": 0.5,
                "unlabelled_weight": 0.0,
                "head_weights": None,
            },
        },
    },
}


def outcomes(stdout: str) -> dict[str, str]:
    """Stage → how it ended, from the lines of a run without a terminal."""
    return dict(
        re.findall(r"^\d+:\d+ ([\w@-]+): (ran|restored|cached|failed|not started)", stdout, re.MULTILINE)
    )


def run(workspace, study: dict, *options: str) -> "subprocess.CompletedProcess[str]":
    """Write the study beside the clone's files and run it."""
    (workspace.root / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    done = workspace.understudy("study", "study.yaml", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def checkpoints(workspace) -> dict[str, int]:
    """Training → when it was last written."""
    folder = workspace.root / ".understudy" / "trainings"
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.pt")}


@pytest.fixture(scope="module")
def studied(small_clone, tmp_path_factory):
    """A copy of the clone, and what a study printed that goes on where a SIGKILL ended it."""
    workspace = small_clone.copy(tmp_path_factory.mktemp("study") / "clone")
    (workspace.root / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    killed = workspace.start("flows.cli", "study", "study.yaml")
    lock = workspace.root / ".understudy" / "studies" / "small" / "squares" / "dvc.lock"
    while killed.poll() is None and not (lock.is_file() and "ingest:" in lock.read_text()):
        time.sleep(0.2)
    family = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.wait()
    assert not survivors(family)
    return workspace, run(workspace, STUDY)


def test_a_study_ends_in_tables_tests_pictures_and_runs(studied):
    workspace, done = studied
    assert outcomes(done.stdout)["distill@kd"] == "ran"
    assert "ingest" not in outcomes(done.stdout)  # was done before the kill
    assert "of training left" in done.stdout
    folder = workspace.root / "reports" / "study" / "small"
    study = json.loads((folder / "study.json").read_text())
    (data,) = study["data_sets"]
    labels, kd = data["methods"]
    assert (labels["name"], labels["differences"]) == ("labels", None)
    for head in ("action", "verb", "noun"):
        difference = kd["differences"][head]["top1"]
        ours, theirs = (row["heads"][head]["top1"] for row in (kd, labels))
        assert difference["mean"] == pytest.approx(ours["mean"] - theirs["mean"])
        assert len(difference["per_seed"]) == 2
    assert kd["teachers"] == ["detections", "audio"]
    assert labels["training"]["networks"] == 2
    assert labels["training"]["seconds"] > 0
    page = (folder / "index.html").read_text()
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "MLflow experiment study/small: 5 runs, 5 of them new" in done.stdout


def test_again_nothing_runs_and_no_run_is_new(studied):
    workspace, _ = studied
    done = run(workspace, STUDY)
    assert outcomes(done.stdout) == {}
    assert "5 runs, 0 of them new" in done.stdout


def test_a_new_method_trains_itself_and_a_new_seed_its_networks_alone(studied):
    workspace, _ = studied
    more = {**STUDY, "methods": {**STUDY["methods"], "softer": {**STUDY["methods"]["kd"]}}}
    more["methods"]["softer"]["method"] = {**more["methods"]["kd"]["method"], "temperature": 3.0}
    planned = run(workspace, more, "--dry-run")
    assert "trainings show at most" in planned.stdout
    assert not re.search(r"^(train_teacher|teach)@\w+\s+(?!cached|\s)", planned.stdout, re.MULTILINE)
    before = checkpoints(workspace)
    assert outcomes(run(workspace, more).stdout) == {"distill@softer": "ran", "evaluate": "ran"}
    with_method = checkpoints(workspace)
    assert len(with_method) == len(before) + 2

    done = run(workspace, {**more, "seeds": [0, 1, 2]})
    assert outcomes(done.stdout)["train_teacher@audio"] == "ran"
    with_seed = checkpoints(workspace)
    assert {name: with_seed[name] for name in with_method} == with_method
    assert len(with_seed) == len(with_method) + 2 * 2 + 3  # two folds of two teachers, three methods


def test_another_study_of_the_same_takes_everything_from_the_cache(studied):
    workspace, _ = studied
    before = checkpoints(workspace)
    done = run(workspace, {**STUDY, "name": "again"})
    assert set(outcomes(done.stdout).values()) == {"restored"}
    assert checkpoints(workspace) == before


def test_data_of_another_folder_is_taken_in_without_its_absent_senses(studied, tmp_path: Path):
    workspace, _ = studied
    folder = tmp_path / "silent"
    subprocess.run(["cp", "-r", workspace.root / "data" / "raw", folder], check=True)
    subprocess.run(["rm", "-r", folder / "detections"], check=True)
    boxes = {**STUDY["methods"]["kd"], "learns_from": "artifacts/teachings/detections"}
    boxes["ensemble"] = {"teachers": ["detections"]}
    study = {**STUDY, "name": "taken", "data_sets": {"silent": {"source": str(folder)}}}
    study["methods"] = {**STUDY["methods"], "boxes": boxes}
    done = run(workspace, study, "--dry-run")
    assert "without boxes: the data has nothing that its teachers see (detections)" in done.stdout
    assert "distill@kd" in done.stdout
    assert "detections" not in re.findall(r"^train_teacher@(\w+)", done.stdout, re.MULTILINE)
