"""A team's story against a real MLflow server: a good release, a worse one, a better one, and what became of them."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

pytestmark = pytest.mark.slow

MODEL = "understudy-student"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server of its own on the loopback, registry and artifacts included."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        until = time.monotonic() + 120
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def change(clone: Any, learning_rate: float, head_weights: dict[str, float] | None) -> None:
    """Change the baseline's training in params.yaml, as a person would."""
    file = clone.root / "params.yaml"
    params = yaml.safe_load(file.read_text())
    student = params["students"]["baseline"]
    student["training"] |= {"epochs": 40, "learning_rate": learning_rate}
    student["method"] |= {"head_weights": head_weights}
    file.write_text(yaml.safe_dump(params, sort_keys=False))


def served(clone: Any, model: str, video: Path, log: Path) -> str:
    """The verb that `mlflow models serve` answers for a video that is sent to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=clone.environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        until = time.monotonic() + 180
        while not _answers(f"http://127.0.0.1:{port}/ping"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        content = "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"dataframe_records": [{"video": content}]}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            (found,) = json.load(answer)["predictions"]
        return str(found["verb"])
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def shoot(pages: dict[str, str]) -> None:
    """Pictures of pages, for the documentation, where UNDERSTUDY_TEST_PICTURES names a folder for them."""
    if folder := os.environ.get("UNDERSTUDY_TEST_PICTURES"):
        for name, url in pages.items():
            picture = Path(folder) / f"{name}.png"
            command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
            command += [
                "--window-size=1700,2000",
                "--virtual-time-budget=20000",
                f"--screenshot={picture}",
                url,
            ]
            subprocess.run(command, check=True, capture_output=True, timeout=120)


def test_a_good_a_worse_and_a_better_release(team_clone: Any, server: str, tmp_path: Path):
    clone = replace(team_clone, environment=team_clone.environment | {"MLFLOW_TRACKING_URI": server})
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server)

    def run() -> str:
        done = clone.understudy("run")
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout)

    def aliases() -> dict[str, int]:
        found = client.get_registered_model(MODEL).aliases
        return {alias: int(version) for alias, version in found.items()}

    def tags(version: int) -> dict[str, str]:
        return dict(client.get_model_version(MODEL, str(version)).tags)

    # A good one: it learns colours and guesses directions.
    nouns = {"verb": 0.0, "noun": 1.0}
    change(clone, learning_rate=0.005, head_weights=nouns)
    assert "gate: version 1 is the first, there is no champion to compare it with" in run()
    assert aliases() == {"champion": 1}

    # A worse one: somebody lost the learning rate.
    change(clone, learning_rate=1e-6, head_weights=nouns)
    assert "gate: version 2 failed against version 1: top-1 of the action" in run()
    assert aliases() == {"champion": 1, "challenger": 2}
    assert tags(2)["gate_verdict"] == "failed"
    refused = clone.understudy("promote")
    assert refused.returncode == 2
    assert "does not let version 2 replace the champion" in refused.stderr
    assert aliases() == {"champion": 1, "challenger": 2}

    # A better one: it learns directions, too.
    change(clone, learning_rate=0.005, head_weights=None)
    assert "gate: version 3 passed against version 1: top-1 of the action" in run()
    assert aliases() == {"champion": 1, "challenger": 3}
    better = client.get_model_version(MODEL, "3")
    assert better.description.startswith("**Gate: passed.** Version 3 passed against version 1")
    verdict = json.loads((clone.root / "reports" / "gate" / "verdict.json").read_text())
    assert (verdict["version"], verdict["against"], verdict["outcome"]) == ("3", "1", "passed")
    assert verdict["clips"] == 12

    page = tmp_path / "versus.html"
    compared = clone.understudy("compare", "@champion", "@challenger", "--html", str(page))
    assert compared.returncode == 0, compared.stderr
    assert "Version 3 is better" in compared.stdout
    assert page.read_text().count("<svg") >= 2

    promoted = clone.understudy("promote", "--reason", "tells left from right")
    assert "version 3 promoted in place of version 1" in promoted.stdout, promoted.stderr
    assert aliases() == {"champion": 3, "previous": 1}
    video = clone.root / "data" / "raw" / "videos" / "12-left.mp4"
    asked = clone.understudy("predict", str(video), "--model", f"models:/{MODEL}@champion", "--json")
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)[0]["heads"]["verb"][0][0] == "left"

    assert served(clone, f"models:/{MODEL}@champion", video, tmp_path / "served.log") == "left"

    back = clone.understudy("rollback", "--reason", "misses blue squares")
    assert "version 3 rolled back to version 1" in back.stdout, back.stderr
    assert aliases() == {"champion": 1, "previous": 3}
    history = client.get_registered_model(MODEL).description
    told = [history.index(words) for words in ("misses blue", "left from right", "version 1 is the first")]
    assert told == sorted(told)

    # Nothing is left to do, and nothing that people decided is undone.
    assert "understudy-student version 3 was in the MLflow registry" in run()
    assert aliases() == {"champion": 1, "previous": 3}

    (experiment,) = (found for found in client.search_experiments() if found.name.startswith("understudy/"))
    runs = client.search_runs([experiment.experiment_id])
    pipelines = {found.info.run_id for found in runs if found.data.tags["stage"] == "pipeline"}
    assert len(pipelines) == 3
    nested = [found for found in runs if found.info.run_id not in pipelines]
    assert {found.data.tags["mlflow.parentRunId"] for found in nested} == pipelines
    assert {found.data.tags["stage"] for found in nested} == {"train_teacher", "distill", "register"}
    assert {found.info.status for found in runs} == {"FINISHED"}

    students = [found.info.run_id for found in nested if found.data.tags["stage"] == "distill"]
    shoot(
        {
            "registry-runs": f"{server}/#/compare-runs?runs={quote(json.dumps(students))}"
            f"&experiments={quote(json.dumps([experiment.experiment_id]))}",
            **{
                f"registry-version-{number}": f"{server}/#/models/{MODEL}/versions/{number}"
                for number in (1, 2, 3)
            },
            "registry-history": f"{server}/#/models/{MODEL}",
            "versus": page.as_uri(),
        }
    )
