"""What a worker takes for a stage from the DVC remote, by the project's own dvc.yaml."""

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from flows.clone import Clone
from flows.remote import readings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """The pipeline with a fused teacher, and an omnivorous student beside those of the sample."""
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["fused"] = {"umt": {"teachers": ["rgb", "flow"]}}
    shown = deepcopy(params["students"]["baseline"])
    shown |= {"learns_from": "artifacts/teachers", "method": {"kind": "omnivorous", "teachers": ["flow"]}}
    params["students"]["shown"] = shown
    Repo.init(str(tmp_path), no_scm=True).close()
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for file in ("dvc.yaml", "data.dvc"):
        shutil.copy(ROOT / file, tmp_path)
    return Clone(tmp_path)


def test_a_worker_takes_what_a_stage_reads_and_no_more(clone: Clone):
    found = readings(clone)
    assert found["ingest"] == ["data.dvc"]
    assert found["distill@baseline"] == ["extract@rgb", "ingest"]
    taught = {f"teach@{name}" for name in ("rgb", "flow", "detections", "audio")}
    assert set(found["distill@student"]) == taught | {"teach_fused@umt", "extract@rgb", "ingest"}


def test_networks_and_senses_that_a_dependency_stands_for_are_taken_as_well(clone: Clone):
    found = readings(clone)
    assert "fuse@umt" in found["evaluate"]
    assert {"extract@flow", "train_teacher@flow"} <= set(found["distill@shown"])
