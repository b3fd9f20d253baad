"""What a stage runs, DVC watches: a change of code that could change a result makes the stage stale.

Starting from `tasks/<stage>.py`, the imports of our own modules are followed. Every module found must be among the
`deps` of the stage, itself or by its folder, unless one of the reasons below says why it cannot change a result.
"""

import ast
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from tasks.register import ANSWERS

ROOT = Path(__file__).parents[2]
ROOMS = ("tasks", "models")
SECTIONS = {
    "extract": "modalities",
    "train_teacher": "teachers",
    "teach": "teachers",
    "fuse": "fused",
    "teach_fused": "fused",
    "specialise": "specialists",
    "distill": "students",
}
"""Of the stages that come once an entry, the section of params.yaml that holds the entries."""

EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "fused": {"teachers": ["rgb", "flow"]},
    "specialists": {"fused": "example"},
}
"""Of the sections of params.yaml that may be empty, an entry."""

CANNOT_CHANGE_RESULTS = {
    # Words and places. They say where a file lies or what a person reads.
    "tasks/errors.py",
    "tasks/layout.py",
    "tasks/mortal.py",
    "tasks/progress.py",
    # Which process writes, and what each is given; put together in tasks/gathering.py.
    "tasks/ranks.py",
    # Settings are promised not to change a result; params are what may.
    "tasks/settings.py",
    # Params are checked here, not made: DVC watches the values themselves, under `params`.
    "tasks/params.py",
    "tasks/section.py",
    "tasks/yaml_file.py",
    # A training may be refused for its processor; one that is not is what it was.
    "tasks/precision.py",
    # How bytes reach the disk whole, and the names of checkpoints; the bytes are the stage's.
    "tasks/atomic.py",
    "tasks/stores/copies.py",
    # MLflow is told of a training and never asked.
    "tasks/stores/tracking.py",
    "tasks/stores/spool.py",
    "tasks/stores/failures.py",
    # The gate judges a release that is written, and tells the registry.
    "tasks/promotion.py",
}
REGISTRIES = {
    "models/backbones/__init__.py",
    "models/distill/__init__.py",
    "tasks/modalities/__init__.py",
    "tasks/modalities/registry.py",
}
"""They map a `kind` to its file. Which kind it is stands in params; `families` asks for that file alone."""
NOT_RUN: Mapping[str, set[str]] = {
    # No view is rendered yet, and only `understudy import` probes videos to convert boxes.
    "extract": {"tasks/probing.py", "tasks/stores/probe.py", "tasks/views.py"},
    # A teacher learns from labels alone.
    "train_teacher": {"models/distill/divergences.py"},
    # Fused and auxiliary teachers are trained before: only their folds and specs are used.
    "specialise": {"models/distill/supervised.py", "models/distill/umt.py"},
    # A teacher is trained before it teaches: only the folds and the container of its parts are used.
    "teach_fused": {
        "models/distill/divergences.py",
        "models/distill/method.py",
        "models/distill/supervised.py",
        "models/distill/umt.py",
        "models/metrics.py",
        "tasks/stores/weights.py",
        "tasks/training.py",
    },
    "teach": {
        "models/distill/divergences.py",
        "models/distill/method.py",
        "models/distill/supervised.py",
        "models/metrics.py",
        "tasks/stores/weights.py",
        "tasks/training.py",
    },
    # A student reads teachings with the code of `teach` but trains no teacher; it asks whether a method is mst.
    "distill": {
        "models/distill/mst.py",
        "models/distill/omnivorous.py",
        "models/distill/supervised.py",
        "tasks/train_teacher.py",
    },
    # Trained networks are read, none begins from pretrained weights.
    "evaluate": {"tasks/stores/weights.py"},
    # The student was trained, and its test views are rendered from the shards; nothing is decoded.
    "register": {
        "models/ensemble.py",
        "models/fusion.py",
        "models/weights.py",
        "tasks/batches.py",
        "tasks/example_video.py",
        "tasks/inference.py",
        "tasks/modalities/modality.py",
        "tasks/senses.py",
        "tasks/stores/weights.py",
        # Two registered versions are compared by a command, not by the stage.
        "models/metrics.py",
        "tasks/pairing.py",
        "tasks/report/__init__.py",
        "tasks/report/ece_interval.py",
        "tasks/versus/compared.py",
    },
}
BY_THE_SHARDS = {"tasks/modalities/frames.py", "tasks/stores/video.py"}
"""With the modality's own file: their digest is in the keys of the shards' manifest (tasks/extract.py), so a change
in one of them changes data/modalities/<modality>, which every stage that renders views depends on."""


def ours(name: str) -> str | None:
    """The file of one of our modules, relative to the root; None for what is not ours or no module."""
    if name.partition(".")[0] not in ROOMS:
        return None
    place = ROOT.joinpath(*name.split("."))
    for file in (place.with_suffix(".py"), place / "__init__.py"):
        if file.is_file():
            return file.relative_to(ROOT).as_posix()
    return None


@cache
def imports(file: str) -> frozenset[str]:
    """The files of ours that a file imports anywhere in it; for types alone counts as well."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found for name in names if (found := ours(name)) is not None) - {file}


def reached(start: str, ignored: Iterable[str]) -> set[str]:
    """`start` and all that it imports, through other files too, but not through the ignored ones."""
    ignored = set(ignored)
    found: set[str] = set()
    waiting = [start]
    while waiting:
        file = waiting.pop()
        if file in found or file in ignored:
            continue
        found.add(file)
        waiting += imports(file)
    return {file for file in found if not _is_bare_package(file)}


def _is_bare_package(file: str) -> bool:
    """Whether it is an `__init__.py` that holds nothing but its docstring."""
    return (
        file.endswith("__init__.py") and len(ast.parse((ROOT / file).read_text(encoding="utf-8")).body) <= 1
    )


def families(stage: str, entry: Mapping[str, Any]) -> set[str]:
    """The files of the kinds that the stage's own entry of params names."""
    if stage == "extract":
        return {f"tasks/modalities/{entry['kind']}.py"}
    if "backbone" not in entry:
        return every_backbone()
    found = {f"models/backbones/{entry['backbone']['kind']}.py"}
    if stage == "distill":
        found.add(f"models/distill/{entry['method']['kind']}.py")
    return found


def expected(stage: str, entry: Mapping[str, Any] | None) -> set[str]:
    """The files that a stage must name among its deps."""
    ignored = CANNOT_CHANGE_RESULTS | REGISTRIES | NOT_RUN.get(stage, set())
    files = reached(f"tasks/{stage}.py", ignored)
    if entry is not None:
        for family in families(stage, entry):
            files |= reached(family, ignored - {family})
    elif stage == "evaluate":
        files |= every_backbone()
    return files


def every_backbone() -> set[str]:
    return {file.relative_to(ROOT).as_posix() for file in (ROOT / "models/backbones").glob("[!_]*.py")}


@cache
def stages() -> dict[str, tuple[set[str], Mapping[str, Any] | None]]:
    """Stage name → its deps as DVC expands them, and its entry of params where it is one of several.

    Sections that are empty as shipped get an entry, so that their stages are looked at too.
    """
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for section, entry in EXAMPLES.items():
        params[section] = params[section] or {"example": entry}
    found: dict[str, tuple[set[str], Mapping[str, Any] | None]] = {}
    with TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        (root / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text(encoding="utf-8"), encoding="utf-8")
        (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        with Repo.init(str(root), no_scm=True) as repo:
            for stage in repo.stage.load_all(str(root / "dvc.yaml")):
                name, _, item = stage.name.partition("@")
                deps = {
                    Path(dep.fs_path).relative_to(root).as_posix()
                    for dep in stage.deps
                    if dep.def_path != "params.yaml"
                }
                found[stage.name] = deps, params[SECTIONS[name]][item] if item else None
    return found


def test_the_pipeline_as_shipped_loads_with_its_empty_sections():
    with Repo(str(ROOT)) as repo:
        assert {stage.name for stage in repo.stage.load_all(str(ROOT / "dvc.yaml"))} <= stages().keys()


def covered(file: str, deps: Iterable[str]) -> bool:
    return any(Path(file).is_relative_to(dep) for dep in deps)


def renders(deps: Iterable[str]) -> bool:
    return any(dep.startswith("data/modalities") for dep in deps)


@pytest.mark.parametrize("name", sorted(stages()))
def test_a_stage_depends_on_the_code_it_runs(name: str):
    deps, entry = stages()[name]
    files = expected(name.partition("@")[0], entry)
    if renders(deps):
        files -= BY_THE_SHARDS
    assert sorted(file for file in files if not covered(file, deps)) == []


@pytest.mark.parametrize("name", sorted(stages()))
def test_a_stage_depends_on_nothing_that_is_not_there(name: str):
    deps, _ = stages()[name]
    made = ("data/", "artifacts/", "reports/")
    assert sorted(dep for dep in deps if not dep.startswith(made) and not (ROOT / dep).exists()) == []


@pytest.mark.parametrize("file", sorted(CANNOT_CHANGE_RESULTS | REGISTRIES | set().union(*NOT_RUN.values())))
def test_an_exempt_file_exists(file: str):
    assert (ROOT / file).is_file()


@pytest.mark.parametrize("stage", sorted(NOT_RUN))
def test_a_stage_imports_what_it_is_exempt_from(stage: str):
    """An exemption that is no longer needed would hide the next import of that file."""
    everything = reached(f"tasks/{stage}.py", CANNOT_CHANGE_RESULTS)
    assert sorted(NOT_RUN[stage] - everything) == []


def test_the_shards_name_the_code_that_made_them():
    tree = ast.parse((ROOT / "tasks/extract.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (call,) = [node for node in calls if ast.unparse(node.func) == "code_digest"]
    assert {"sys.modules[type(modality).__module__]", "frames", "video_reader"} <= set(
        map(ast.unparse, call.args)
    )


def test_a_mended_answer_makes_a_new_version():
    """What the served student runs between a request and its network is named in the release."""
    ignored = CANNOT_CHANGE_RESULTS | REGISTRIES | NOT_RUN["register"] | {"tasks/shards.py"}  # extraction's
    between = reached("tasks/serving.py", ignored) - reached("tasks/networks.py", ignored)
    assert sorted(between - set(ANSWERS)) == []
    assert sorted(file for file in ANSWERS if not covered(file, stages()["register"][0])) == []


def test_the_student_learns_from_what_its_entry_names():
    deps, entry = stages()["distill@student"]
    assert entry is not None
    assert {entry["learns_from"], f"models/distill/{entry['method']['kind']}.py"} <= deps


def test_nothing_as_shipped_waits_for_specialists():
    """They take long to make, and only a student of method mst learns from them."""
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["specialise"]["do"]
    made = stage["outs"][0].replace("${key}", "example")
    assert [name for name, (deps, _) in stages().items() if covered(made, deps)] == []
