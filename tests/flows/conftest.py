"""A tiny DVC project with real stages, and one real Prefect server for all tests of the room."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.clone import Clone

ROOT = Path(__file__).parents[2]
STAGE = """\
import json, pathlib, sys, time
name, source, target, seconds = sys.argv[1:]
began = time.time()
words = pathlib.Path(source).read_text()
print(f"{name} 1/2", flush=True)
time.sleep(float(seconds))
if "poison" in words:
    print(f"{source}, row 1: poison", file=sys.stderr)
    sys.exit(2)
pathlib.Path(target).write_text(words + name)
with open("runs.jsonl", "a") as file:
    file.write(json.dumps([name, began, time.time()]) + "\\n")
"""
DVC_YAML = """\
vars: ['tiny.yaml:seconds']
stages:
  ingest:
    cmd: python stage.py ingest source.txt index.txt ${seconds}
    meta: {queue: cpu, phase: extract}
    deps: [source.txt]
    params: [{tiny.yaml: [seconds]}]
    outs: [index.txt]
  extract:
    foreach: [rgb, flow]
    do:
      cmd: python stage.py ${item} index.txt ${item}.txt ${seconds}
      meta: {queue: gpu, phase: extract}
      deps: [index.txt]
      params: [{tiny.yaml: ["modalities.${item}"]}]
      outs: ["${item}.txt"]
  evaluate:
    cmd: cat rgb.txt flow.txt > report.txt
    meta: {queue: gpu, phase: evaluate_calibration}
    deps: [rgb.txt, flow.txt]
    outs: [report.txt]
  aside:
    cmd: python stage.py aside aside-source.txt aside.txt ${seconds}
    deps: [aside-source.txt]
    outs: [aside.txt]
"""


@pytest.fixture
def environment() -> dict[str, str]:
    """That of a command: the rooms importable, this interpreter first, nothing of the user's Prefect."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",
        "UNDERSTUDY_SLOTS": "2",
        "COLUMNS": "100",
    }


@pytest.fixture
def project(tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Clone:
    """ingest → extract@rgb, extract@flow → evaluate, and `aside`, which hangs on nothing and is of no phase."""
    root = tmp_path / "clone"
    root.mkdir()
    for name in ("PATH", "PYTHONPATH", "DVC_NO_ANALYTICS", "UNDERSTUDY_SLOTS"):
        monkeypatch.setenv(name, environment[name])
    (root / "stage.py").write_text(STAGE)
    (root / "dvc.yaml").write_text(DVC_YAML)
    shutil.copy(ROOT / "params.yaml", root)  # what `understudy run` checks; the stages below read tiny.yaml
    (root / "tiny.yaml").write_text("seconds: 0.0\nmodalities: {rgb: 1, flow: 1}\n")
    (root / "source.txt").write_text("words ")
    (root / "aside-source.txt").write_text("words ")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True, env=environment)
    return Clone(root)


@pytest.fixture
def runs(project: Clone) -> Callable[[], list[tuple[str, float, float]]]:
    """(stage, began, ended) of every stage that really ran to its end, in the order they ended."""

    def read() -> list[tuple[str, float, float]]:
        file = project.root / "runs.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [tuple(json.loads(line)) for line in lines]

    return read


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real temporary Prefect server with a home of its own."""
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield
