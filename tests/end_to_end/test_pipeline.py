"""The whole real pipeline in small: once, again, with one line changed, and killed on the way."""

import json
import os
import random
import re
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.small import survivors
from flows.clone import Clone
from flows.plan import plan

KILLS = int(os.environ.get("UNDERSTUDY_TEST_KILLS", "2"))
"""How often the killed run is killed; README's figure is of ten."""


def outcomes(stdout: str) -> dict[str, str]:
    """Stage → how it ended, from the lines that `understudy run` prints where there is no terminal."""
    found = re.findall(r"^\d+:\d+ ([\w@]+): (ran|restored|cached|failed|not started)", stdout, re.MULTILINE)
    return dict(found)


def test_the_first_run_trains_reports_and_registers(finished):
    rows = {row["name"]: row for row in finished.report["rows"]}
    assert {"detections", "audio", "baseline", "student"} <= rows.keys()
    assert rows["student"]["inference_modalities"] == ["rgb"]
    for row in rows.values():
        assert 0 <= row["heads"]["action"]["top1"] <= 1
    assert (finished.root / "reports" / "index.html").stat().st_size > 1000
    assert (finished.root / "artifacts" / "release" / "release.json").is_file()


def test_auto_is_settled_on_validation_and_told(finished):
    student = json.loads((finished.root / "artifacts" / "students" / "student" / "student.json").read_text())
    chosen = student["chosen"]["0"]
    assert chosen["distillation_weight"].keys() == {"verb", "noun"}
    for head, weight in chosen["distillation_weight"].items():
        assert weight in (0.0, 0.5)
        assert weight + chosen["ground_truth_weight"][head] == 1
    assert chosen["temperature"] == 1.0
    assert chosen["divergence"] in {"forward_kl", "reverse_then_forward"}
    assert set(chosen["weights_temperature"].values()) <= {0.2, 1.0}
    for weights in chosen["teacher_weights"].values():
        assert weights.keys() == {"detections", "audio"}
        assert sum(weights.values()) == pytest.approx(1)


@pytest.mark.slow
def test_the_report_tells_how_teachers_were_fused_and_clips_were_routed(fused):
    assert {"both", "routed"} <= {row["name"] for row in fused.report["rows"]}
    both = fused.report["fused"]["both"]
    assert set(both["validation"]) == {"ume", "head", "umt"}
    page = (fused.root / "reports" / "index.html").read_text()
    assert f"Fused teacher both: {both['kind']}" in page
    routing = fused.report["chosen"]["routed"]["0"]["routing"]
    assert list(routing) == ["both-moments", "both-features", "audio-moments", "audio-features"]
    assert sum(route["share"] for route in routing.values()) == pytest.approx(1, abs=1e-5)
    assert "Whom the gate of routed picked" in page


def test_the_second_run_recomputes_nothing_and_finds_its_release_registered(finished):
    done = finished.understudy("run")
    assert done.returncode == 0, done.stderr
    assert re.match(r"All \d+ stages are cached", done.stdout)
    assert "understudy-student version 1" in done.stdout


def test_dvc_agrees_that_nothing_is_left(finished):
    status = subprocess.run(
        ["dvc", "status"],
        cwd=finished.root,
        env=finished.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "up to date" in status.stdout


def test_the_student_predicts_from_a_video_alone(finished):
    video = finished.root / "data" / "raw" / "videos" / "0-left.mp4"
    done = finished.understudy("predict", str(video), "nowhere.mp4", "--json")
    assert done.returncode == 2  # one of the two is not there
    assert '"left"' in done.stdout
    assert "there is no such file" in done.stdout


def test_compare_and_doctor_print_what_there_is(finished):
    compared = finished.understudy("compare")
    assert compared.returncode == 0
    assert "baseline" in compared.stdout
    doctor = finished.understudy("doctor")
    assert "params.yaml" in doctor.stdout
    assert "Traceback" not in doctor.stderr


def test_no_secret_of_the_environment_is_written_anywhere(finished, secret_holders):
    """Neither Git's nor DVC's files, MLflow's store, Prefect's database, logs, reports nor the release hold one."""
    assert not secret_holders(finished.root)
    doctor = finished.understudy("doctor", "--json")
    assert finished.environment["MLFLOW_TRACKING_PASSWORD"] not in doctor.stdout + doctor.stderr


AGAIN = {"train_teacher@audio", "teach@audio", "distill@student", "evaluate", "register"}
"""What follows from a change of the audio teacher."""
AGAIN_FUSED = AGAIN | {
    *("fuse@both", "teach_fused@both", "specialise@masked", "distill@routed", "distill@shown")
}


def test_one_changed_line_is_that_teacher_and_what_follows(finished, tmp_path: Path):
    changed = finished.copy(tmp_path / "changed")
    changed.set_epochs("audio", 3)
    assert {step.name for step in plan(Clone(changed.root)).due} == AGAIN
    done = changed.understudy("run", "train_teacher@audio")
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcomes(done.stdout) == {"train_teacher@audio": "ran"}


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_in_the_same_report(fused, tmp_path: Path):
    whole, killed = (fused.copy(tmp_path / name) for name in ("whole", "killed"))
    for workspace in (whole, killed):
        workspace.set_epochs("audio", 3)
    done = whole.understudy("run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcomes(done.stdout).keys() == AGAIN_FUSED

    for number in range(KILLS):
        command = (["flows.cli", "run"], ["dvc", "--wait-for-lock", "repro"])[number % 2]
        process = killed.start(*command)
        moment_s = random.uniform(2, 20)
        time.sleep(moment_s)
        print(f"kill {number + 1}: {' '.join(command)} after {moment_s:.1f} s", flush=True)
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()  # nothing to kill where the run had ended before
        process.wait()
        left = survivors(family)
        assert not left, f"{command} left behind {left}"
    done = killed.understudy("run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert killed.report == whole.report
