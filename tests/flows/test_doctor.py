"""What the doctor says of data and GPUs; the whole table is in tests/end_to_end/test_pipeline.py."""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from flows.clone import Clone
from flows.doctor import _data, _torch, examined

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


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")
def test_gpus_that_torch_does_not_see_are_trouble_unless_nobody_wants_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As where the driver is too old for the locked torch."""
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for device in ("auto", "cuda"):
        monkeypatch.setenv("UNDERSTUDY_DEVICE", device)
        check = examined("PyTorch", _torch)
        assert (check.state, "sees none of the GPUs 0, 1" in check.detail) == ("fails", True)
        assert "driver for CUDA" in check.remedy or "torch with CUDA" in check.remedy
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as in a worker of the queue cpu
    monkeypatch.setenv("UNDERSTUDY_DEVICE", "auto")
    assert examined("PyTorch", _torch).state == "works"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("UNDERSTUDY_DEVICE", "cpu")
    assert examined("PyTorch", _torch).state == "works"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
def test_a_gpu_that_computes_works():
    assert "GiB)" in examined("PyTorch", _torch).detail
