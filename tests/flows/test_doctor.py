"""What the doctor says of data; the whole table is in tests/end_to_end/test_pipeline.py."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from flows.clone import Clone
from flows.doctor import _data, examined

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """Data as DVC checks it out, and the shipped params."""
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    (tmp_path / "data.dvc").write_text("outs:\n- path: data/raw\n")
    raw = tmp_path / "data" / "raw"
    raw.mkdir(parents=True)
    (raw / "annotations.csv").write_text("clip_id\n")
    return Clone(tmp_path)


def test_data_of_the_named_format_works(clone: Clone):
    assert examined("data", partial(_data, clone)).detail == "1 files in data/raw, format folder"


def test_data_of_a_published_set_works_without_annotations_csv(clone: Clone):
    raw = clone.root / "data" / "raw"
    (raw / "annotations.csv").unlink()
    (raw / "train.json").write_text("[]")
    (raw / "labels.json").write_text("{}")
    params = clone.root / "params.yaml"
    params.write_text(params.read_text().replace("format: folder", "format: something_else"))
    assert examined("data", partial(_data, clone)).detail == "2 files in data/raw, format something_else"


def test_data_of_another_format_is_trouble(clone: Clone):
    (clone.root / "data" / "raw" / "annotations.csv").rename(clone.root / "data" / "raw" / "labels.csv")
    check = examined("data", partial(_data, clone))
    assert (check.state, "understudy import" in check.remedy) == ("fails", True)
    assert "no annotations of the format folder" in check.detail


def test_data_that_is_not_there_is_fetched(clone: Clone):
    shutil.rmtree(clone.root / "data")
    check = examined("data", partial(_data, clone))
    assert (check.state, check.remedy) == ("fails", "dvc pull data.dvc")
