"""Fetching from a real S3 endpoint on loopback: resumable, whole files only, no path outside the folder."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tasks.errors import InfrastructureError, UserError
from tasks.stores import s3
from tasks.stores.s3 import LOG, download


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "hush-hush",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    name = "b" + "".join(letter for letter in request.node.name if letter.isalnum()).lower()[:50]
    bucket = boto3.resource("s3").create_bucket(Bucket=name)
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()


def fetch(bucket, folder: Path, prefix: str = "set") -> list[tuple[int, int]]:
    told: list[tuple[int, int]] = []
    download(f"s3://{bucket.name}/{prefix}", folder, lambda done, total: told.append((done, total)))
    return told


def test_everything_below_the_prefix_arrives(bucket, tmp_path: Path):
    bucket.put_object(Key="set/annotations.csv", Body=b"clip_id\n")
    bucket.put_object(Key="set/videos/台所 1.mp4", Body=b"film")
    bucket.put_object(Key="set/videos/", Body=b"")
    bucket.put_object(Key="settle/other.txt", Body=b"another prefix")
    told = fetch(bucket, tmp_path / "in")
    files = {p.relative_to(tmp_path / "in").as_posix() for p in (tmp_path / "in").rglob("*") if p.is_file()}
    assert files == {"annotations.csv", "videos/台所 1.mp4", LOG}
    assert told[-1] == (12, 12)


def test_more_objects_than_one_page(bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
    for number in range(5):
        bucket.put_object(Key=f"set/{number}", Body=b"x")
    fetch(bucket, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", "2", "3", "4", LOG}


def test_what_has_arrived_is_not_fetched_again_and_what_changed_is(bucket, tmp_path: Path):
    bucket.put_object(Key="set/a", Body=b"old!")
    bucket.put_object(Key="set/b", Body=b"same")
    fetch(bucket, tmp_path)
    before = (tmp_path / "b").stat().st_mtime_ns
    bucket.put_object(Key="set/a", Body=b"new!")  # same size, another ETag
    with (tmp_path / LOG).open("a") as log:
        log.write('{"key": "set/c", "pa')  # as a kill in the middle of a line leaves it
    fetch(bucket, tmp_path)
    assert (tmp_path / "a").read_bytes() == b"new!"
    assert (tmp_path / "b").stat().st_mtime_ns == before
    (tmp_path / "b").write_bytes(b"half")
    (tmp_path / "b").write_bytes(b"")
    fetch(bucket, tmp_path)
    assert (tmp_path / "b").read_bytes() == b"same"


def test_what_the_store_no_longer_holds_goes(bucket, tmp_path: Path):
    for key in ("annotations.csv", "videos/1", "videos/deep/2", "turned"):
        bucket.put_object(Key=f"set/{key}", Body=b"old")
    fetch(bucket, tmp_path)
    (tmp_path / "videos" / ".1.x3u").write_bytes(b"ol")  # as a kill in the middle of a download leaves it
    bucket.objects.filter(Prefix="set/videos/deep/").delete()
    bucket.objects.filter(Prefix="set/turned").delete()
    bucket.put_object(Key="set/turned/into/a/folder", Body=b"new")
    bucket.put_object(Key="set/videos/deep", Body=b"new")
    fetch(bucket, tmp_path)
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {
        LOG,
        "annotations.csv",
        "videos/1",
        "videos/.1.x3u",
        "videos/deep",
        "turned/into/a/folder",
    }


def test_room_is_asked_for_what_is_still_to_come(bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bucket.put_object(Key="set/a", Body=b"1234")
    bucket.put_object(Key="set/b", Body=b"12345678")
    monkeypatch.setattr(s3, "_free", lambda _: 11)
    with pytest.raises(UserError, match=r"GB are to be fetched from .*, the disk has"):
        fetch(bucket, tmp_path / "in")
    assert not list((tmp_path / "in").iterdir())
    for free in (12, 0):  # the second time, nothing is to come
        monkeypatch.setattr(s3, "_free", lambda _, free=free: free)
        assert fetch(bucket, tmp_path / "in")[-1] == (12, 12)


def test_a_multipart_object(bucket, tmp_path: Path):
    body = bytes(range(256)) * 40000  # 10 MB: two parts, so the ETag is no MD5
    boto3.client("s3").upload_fileobj(BytesIO(body), bucket.name, "set/big")
    fetch(bucket, tmp_path)
    before = (tmp_path / "big").stat().st_mtime_ns
    fetch(bucket, tmp_path)
    assert (tmp_path / "big").read_bytes() == body
    assert (tmp_path / "big").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "key",
    ["set/../../escape", "set//absolute", "set/a\\..\\b", "set/a\tb", "set/./a", "set/~root/x", "set/C:x"],
)
def test_hostile_keys_are_refused_before_anything_is_fetched(bucket, tmp_path: Path, key: str):
    bucket.put_object(Key="set/fine", Body=b"fine")
    bucket.put_object(Key=key, Body=b"not fine")
    with pytest.raises(UserError, match="the key"):
        fetch(bucket, tmp_path / "in")
    assert not (tmp_path / "in").exists()


def test_two_keys_for_one_file_are_refused(bucket, tmp_path: Path):
    bucket.put_object(Key="set/caf\u00e9", Body=b"1")
    bucket.put_object(Key="set/cafe\u0301", Body=b"2")
    with pytest.raises(UserError, match="same file as another key"):
        fetch(bucket, tmp_path)


def test_a_key_below_an_object_is_refused(bucket, tmp_path: Path):
    bucket.put_object(Key="set/a", Body=b"1")
    bucket.put_object(Key="set/a/b", Body=b"2")
    with pytest.raises(UserError, match="below a key that is an object"):
        fetch(bucket, tmp_path)


def test_nothing_there(bucket, tmp_path: Path):
    with pytest.raises(UserError, match="holds no object"):
        fetch(bucket, tmp_path, "empty")
    with pytest.raises(UserError, match="does not exist"):
        download("s3://no-such-bucket/set", tmp_path, lambda done, total: None)


@pytest.mark.parametrize("uri", ["s3://", "http://bucket/x", "s3://key:secret@bucket/x"])
def test_what_is_no_address(uri: str, tmp_path: Path):
    with pytest.raises(UserError, match="not an S3 address") as caught:
        download(uri, tmp_path, lambda done, total: None)
    assert "secret" not in str(caught.value)


def test_an_endpoint_that_is_down_is_no_fault_of_the_user(bucket, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(InfrastructureError, match="cannot be fetched") as caught:
        fetch(bucket, tmp_path)
    assert "hush-hush" not in str(caught.value)


def test_a_busy_endpoint_is_asked_as_often_as_aws_max_attempts_says(bucket, tmp_path: Path, monkeypatch):
    asked: list[str] = []

    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(503)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
        with pytest.raises(InfrastructureError, match="503"):
            fetch(bucket, tmp_path)
        server.shutdown()
    assert len(asked) == 2
