"""docs/new-method.md does what it says: its file, its line and its entry make a method that a stage can train."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "new-method.md").read_text(encoding="utf-8")
TRY = """\
from pathlib import Path
import torch
from tasks.study import spec
method, beside_all = (
    spec.compose(spec.read(Path(file)), "sample", Path("params.yaml"), None).params.students["confident"].method
    for file in ("benchmarks/my_study.yaml", "benchmarks/all.yaml")
)
assert method == beside_all
teachers, student = torch.tensor([[0.8, 0.2]]).log(), torch.zeros(1, 2).log_softmax(1)
print(type(method).__name__, method.compare(teachers, student, torch.tensor([0]), 0.0).item())
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_page_makes_a_method(tmp_path: Path):
    for folder in ("models", "tasks", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    code, line = blocks("python")
    entry, beside_all = blocks("yaml")
    (tmp_path / "models" / "distill" / "confident.py").write_text(code)
    union = tmp_path / "models" / "distill" / "__init__.py"
    text = union.read_text().replace("    | KD ", f"{line}    | KD ")
    union.write_text(
        text.replace(
            "from models.distill.dkd",
            "from models.distill.confident import Confident\nfrom models.distill.dkd",
        )
    )
    (tmp_path / "benchmarks" / "my_study.yaml").write_text(entry)
    extending = "extends: study.yaml\nname: all\ndata_sets: {sample: {source: clone}}\nmethods:\n"
    (tmp_path / "benchmarks" / "all.yaml").write_text(extending + beside_all)
    assert yaml.safe_load(entry)["methods"]["confident"]["method"]["kind"] == "confident"
    done = subprocess.run(
        [sys.executable, "-c", TRY],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    name, loss = done.stdout.split()
    # 0.8 · (0.8 ln(0.8/0.5) + 0.2 ln(0.2/0.5))
    assert name == "Confident"
    assert abs(float(loss) - 0.8 * 0.192745) < 1e-4
