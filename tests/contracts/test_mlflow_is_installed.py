"""The folder mlflow/ at the top must never hide the library of that name."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_mlflow_is_the_installed_library():
    program = "import sys; sys.path.insert(0, sys.argv[1]); import mlflow; print(mlflow.__file__)"
    run = subprocess.run(
        [sys.executable, "-c", program, str(ROOT)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    place = Path(run.stdout.strip())
    assert "site-packages" in place.parts
    assert ROOT / "mlflow" not in place.parents


def test_our_folder_is_no_package():
    assert not list((ROOT / "mlflow").rglob("__init__.py"))
