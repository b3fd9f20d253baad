"""Checkpoints on a store that machines share: in a folder, and on a real S3 endpoint on the loopback."""

import logging
from collections.abc import Iterator
from pathlib import Path

import boto3
import fsspec
import pytest
import torch
from moto.server import ThreadedMotoServer

from tasks.stores.copies import Copies, copies


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[str, str]]:
    """Endpoint and address of an empty bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket="team")
    yield endpoint, "s3://team/checkpoints"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "folder":
        return str(tmp_path / "shared")
    endpoint, address = request.getfixturevalue("bucket")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    return f"{address}/{tmp_path.name}"


def checkpoint(file: Path, epochs: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"history": [{"epoch": float(number)} for number in range(epochs)]}, file)
    return file


def epochs_of(file: Path) -> int:
    return len(torch.load(file, weights_only=True)["history"])


def held(place: str) -> list[str]:
    system, folder = fsspec.core.url_to_fs(place)
    system.invalidate_cache()
    return sorted(path.rpartition("/")[2] for path in system.find(folder))


def test_another_machine_goes_on_where_the_first_one_died(place: str, tmp_path: Path):
    here, there = tmp_path / "here" / "abc.pt", tmp_path / "there" / "abc.pt"
    first = Copies(place, here)
    first.fetch()
    assert not here.exists()
    for epochs in (1, 2, 3):
        checkpoint(here, epochs)
        first.offer(epochs)
    first.close()
    assert held(place) == ["abc-000003.pt"], "older ones and halves are gone"
    second = Copies(place, there)
    second.fetch()
    assert epochs_of(there) == 3
    checkpoint(there, 4)
    second.offer(4)
    second.close()
    assert held(place) == ["abc-000004.pt"]


def test_what_is_further_here_stays(place: str, tmp_path: Path):
    here, there = tmp_path / "here" / "abc.pt", tmp_path / "there" / "abc.pt"
    first = Copies(place, checkpoint(here, 2))
    first.offer(2)
    first.close()
    second = Copies(place, checkpoint(there, 5))
    second.fetch()
    assert epochs_of(there) == 5
    other = Copies(place, tmp_path / "there" / "abcd.pt")
    other.fetch()
    assert not (tmp_path / "there" / "abcd.pt").exists(), "another training's copy is none of ours"


def test_a_copy_that_cannot_be_read_takes_nobodys_place(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "abc-000009.pt").write_bytes(b"half")
    here = checkpoint(tmp_path / "here" / "abc.pt", 2)
    with caplog.at_level(logging.WARNING):
        Copies(str(tmp_path / "place"), here).fetch()
    assert "the checkpoint was not fetched" in caplog.text
    assert epochs_of(here) == 2


def test_a_place_that_cannot_be_reached_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("no folder")
    lost = Copies(str(tmp_path / "file"), checkpoint(tmp_path / "here" / "abc.pt", 2))
    with caplog.at_level(logging.WARNING):
        lost.fetch()
        lost.offer(2)
        lost.close()
    assert "the checkpoint was not copied (UNDERSTUDY_CHECKPOINTS=" in caplog.text
    assert epochs_of(tmp_path / "here" / "abc.pt") == 2


def test_without_the_setting_nothing_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("UNDERSTUDY_CHECKPOINTS", raising=False)
    with copies(tmp_path / "abc.pt") as opened:
        assert opened is None
    monkeypatch.setenv("UNDERSTUDY_CHECKPOINTS", str(tmp_path / "shared"))
    with copies(checkpoint(tmp_path / "abc.pt", 1)) as opened:
        assert opened is not None
        opened.offer(1)
    assert held(str(tmp_path / "shared")) == ["abc-000001.pt"]
