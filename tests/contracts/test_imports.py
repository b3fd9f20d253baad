"""Prefect lives in flows/ alone, so that `dvc repro` works without it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = sorted(path.stem for path in (ROOT / "tasks").glob("*.py"))


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("room", ["tasks", "models", "mlflow"])
def test_no_other_room_imports_prefect_or_flows(room: str):
    guilty = [str(path) for path in (ROOT / room).rglob("*.py") if imported(path) & {"prefect", "flows"}]
    assert guilty == []


def test_importing_every_stage_loads_no_prefect():
    modules = ", ".join(f"tasks.{name}" for name in STAGES if not name.startswith("__"))
    script = f"import sys, {modules}\nassert 'prefect' not in sys.modules\nassert 'flows' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_planning_loads_no_prefect():
    modules = ", ".join(
        f"flows.{name}" for name in ("plan", "local", "clone", "executor", "remote", "lockfile")
    )
    script = f"import sys, {modules}\nassert 'prefect' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
