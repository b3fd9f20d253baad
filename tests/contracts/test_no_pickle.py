"""Nothing of ours loads what could run code: no pickle, no unsafe torch.load, no yaml.load."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("flows", "tasks", "models", "infra", "mlflow")
FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "shelve",
    "marshal",
    "jsonpickle",
}
FORBIDDEN_CALLS = {
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load",
    "yaml.full_load_all", "pandas.read_pickle", "pd.read_pickle",
}  # fmt: skip
FILES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))


def offences(source):
    """What is wrong with a module, as (row, words)."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            names = []
        found += [(node.lineno, name) for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
        found += [(node.lineno, name) for name in names if name in FORBIDDEN_CALLS | {"torch.load"}]
        if isinstance(node, ast.Call):
            found += [(node.lineno, words) for words in _call_offences(node)]
    return found


def _call_offences(call):
    name = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in FORBIDDEN_CALLS or name.endswith(".to_pickle"):
        yield name
    if name == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if given.get("allow_pickle", "False") != "False":
        yield f"{name} with allow_pickle"
    if name in ("__import__", "import_module", "importlib.import_module") and call.args:
        words = ast.unparse(call.args[0]).strip("'\"")
        if words.split(".")[0] in FORBIDDEN_MODULES:
            yield f"import of {words}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_loads_nothing_that_could_run_code(file):
    assert offences(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import joblib as j",
        "from pickle import loads",
        "from torch import load",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "import yaml\nyaml.load(x, Loader=yaml.Loader)",
        "from yaml import unsafe_load",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "__import__('pickle')",
        "import importlib\nimportlib.import_module('dill')",
        "import pandas as pd\npd.read_pickle('x')",
        "table.to_pickle('x')",
    ],
)
def test_the_search_finds(source):
    assert offences(source)


@pytest.mark.parametrize(
    "source",
    ["import torch\ntorch.load('x', weights_only=True)", "import yaml\nyaml.safe_load(x)", "np.load('x')"],
)
def test_the_search_lets_pass(source):
    assert not offences(source)
