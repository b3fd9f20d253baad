"""What `doctor --infra` says of pages and checkpoints; the whole of it is in tests/infra/test_installation.py."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from flows.clone import Clone
from flows.doctor import Check, examined
from flows.installation import _checkpoints, _clock, _mlflow, _ui


@contextmanager
def prefect_with(pages: dict[str, str]) -> Iterator[str]:
    """The API's address of a server that has pages: path → what it redirects browsers to, or "" for a page."""

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            there = self.path in pages and self.headers["Accept"] == "text/html"
            self.send_response(404 if not there else 307 if pages[self.path] else 200)
            self.send_header("Location", pages.get(self.path, ""))
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pages_of(api: str, clone: Clone) -> Check:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: api}):
        return examined("Prefect UI", partial(_ui, clone, get_client(sync_client=True)))


def test_pages_are_found_where_the_server_sends_browsers(tmp_path: Path):
    with prefect_with({"/": "/v2/", "/v2/": ""}) as api:
        check = pages_of(api, Clone(tmp_path))
    assert (check.state, check.detail) == ("works", f"at {api.removesuffix('/api')}")


def test_a_server_without_pages_is_trouble(tmp_path: Path):
    with prefect_with({}) as api:
        check = pages_of(api, Clone(tmp_path))
    assert (check.state, check.detail) == ("fails", f"{api.removesuffix('/api')} shows no pages (404)")
    assert "PREFECT_SERVER_UI_STATIC_DIRECTORY" in check.remedy


@pytest.mark.parametrize(
    ("ahead_s", "said"),
    [(0, "that of the server"), (75, "is 75 s behind the server"), (-75, "is 75 s ahead of the server")],
)
def test_a_clock_apart_from_the_servers_is_trouble(tmp_path: Path, ahead_s: int, said: str):
    class Server:
        @staticmethod
        def request(*_: str) -> httpx.Response:
            return httpx.Response(200, headers={"date": formatdate(time.time() + ahead_s, usegmt=True)})

    check = examined("clock", partial(_clock, Clone(tmp_path), Server()))  # type: ignore[arg-type]
    assert check.state == ("fails" if ahead_s else "works")
    assert said in re.sub(r"7[4-6] s", "75 s", check.detail)


def test_a_store_that_is_no_server_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://understudy:s3cr3t@db/mlflow")
    check = examined("MLflow", _mlflow)
    assert check.detail == "MLFLOW_TRACKING_URI names no server, but a postgresql store"


def test_a_folder_for_checkpoints_is_written_and_left_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNDERSTUDY_CHECKPOINTS", f"{tmp_path}/shared/")
    check = examined("checkpoints", _checkpoints)
    assert check.detail == f"UNDERSTUDY_CHECKPOINTS={tmp_path}/shared/ written, read and cleared"
    assert list((tmp_path / "shared").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNDERSTUDY_CHECKPOINTS", f"{tmp_path}/file/shared")
    check = examined("checkpoints", _checkpoints)
    assert (check.state, f"{tmp_path}/file/shared fails: " in check.detail) == ("fails", True)
