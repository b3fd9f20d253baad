"""The room of tensors pulls in no client, no server and no other room."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ABROAD = ("mlflow", "prefect", "dvc", "boto3", "botocore", "av", "cv2", "decord", "pandas", "tasks", "flows")


def test_importing_every_module_of_models_loads_no_client():
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "models").rglob("*.py")
    )
    script = f"import sys, {', '.join(name.removesuffix('.__init__') for name in modules)}\n"
    script += f"print([name for name in {ABROAD} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"
