"""`mlflow models serve` with the registered student: a real server, and all that a request should not be."""

import base64
import contextlib
import io
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd
import psutil
import pytest

from tasks import register
from tasks.atomic import write_json
from tasks.errors import InfrastructureError, UserError
from tasks.inference import device
from tasks.layout import Workspace
from tasks.serving import Served
from tasks.stores import tracking

MOST_BYTES, MOST_VIDEOS, MOST_S = 300_000, 4, 60.0


def release_of(workspace, committee):
    workspace.release.mkdir(parents=True)
    committee.save(workspace.release)
    write_json(workspace.release / "release.json", {"name": register.MODEL})
    return workspace


@pytest.fixture(scope="module")
def served_folder(tmp_path_factory, films):
    """What the server may read: a video, and what only looks like one it may read."""
    folder = tmp_path_factory.mktemp("served")
    films.write(folder / "clip.mp4", films.grey(10))
    (folder / "sub").mkdir()
    (folder.parent / "secret.mp4").write_bytes((folder / "clip.mp4").read_bytes())
    (folder / "out.mp4").symlink_to(folder.parent / "secret.mp4")
    os.mkfifo(folder / "pipe.mp4")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory, served_folder, rgb_student):
    """Address and process of `mlflow models serve` with a registered student, on loopback."""
    import mlflow

    root = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        workspace = release_of(Workspace(root / "clone"), rgb_student(change_s=0.1))
        client = tracking.client(workspace)
        place = client.create_experiment("served", artifact_location=(root / "artifacts").as_uri())
        with tracking.addressed(workspace), mlflow.start_run(experiment_id=place):
            logged = register._log_model(workspace)
        client.create_registered_model(register.MODEL)
        version = client.create_model_version(register.MODEL, logged.model_uri, model_id=logged.model_id)
        client.set_registered_model_alias(register.MODEL, "champion", version.version)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        process = subprocess.Popen(
            [
                sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/{register.MODEL}@champion",
                "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port),
            ],
            cwd=root,
            env=environment
            | {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # MLflow starts uvicorn by its name
                "OMP_NUM_THREADS": "1",
                "UNDERSTUDY_SERVE_ROOT": str(served_folder),
                "UNDERSTUDY_SERVE_MAX_BYTES": str(MOST_BYTES),
                "UNDERSTUDY_SERVE_MAX_VIDEOS": str(MOST_VIDEOS),
                "UNDERSTUDY_SERVE_MAX_S": str(MOST_S),
            },
            stdout=(root / "log").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(f"{address}/ping", process, root / "log")
        yield address, process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(url, process, log):
    deadline, why = time.monotonic() + 180, None
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError as error:
            why = error
            time.sleep(0.2)
    pytest.fail(f"the server did not start: {why!r}; {log.read_text()[-2000:]}")


def post(address, body, content_type="application/json"):
    """Status and text of the answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/invocations", data, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def rows(*records):
    return {"dataframe_records": list(records)}


def url(content, head="data:video/mp4;base64,"):
    return head + base64.b64encode(content).decode()


def video(content):
    return rows({"video": url(content)})


def encoded(frames, stamps, options=None, suffix=".mp4"):
    """Frames shown at `stamps` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "video").with_suffix(suffix)
        _encode(file, frames, stamps, options or {})
        return file.read_bytes()


def _encode(file, frames, stamps, options):
    with av.open(str(file), "w", options=options) as container:
        track = container.add_stream("mpeg4", rate=10)
        track.height, track.width = frames[0].shape[:2]
        track.pix_fmt = "yuv420p"
        track.codec_context.time_base = Fraction(1, 10)
        for pixels, stamp_s in zip(frames, stamps, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(10 * stamp_s), Fraction(1, 10)
            container.mux(track.encode(frame))
        container.mux(track.encode(None))


def grey(count):
    return [np.full((48, 64, 3), 20 * number % 256, np.uint8) for number in range(count)]


def second(**options):
    return encoded(grey(10), np.arange(10) / 10, **options)


def with_header_of(hours):
    """A second of video whose header says it lasts so long."""
    content = bytearray(second(suffix=".mkv"))
    place = content.index(b"\x44\x89\x88") + 3  # Matroska's Duration, a double, in milliseconds
    struct.pack_into(">d", content, place, hours * 3600e3)
    return bytes(content)


def sound():
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("aac", rate=16000, layout="mono")
        block = av.AudioFrame.from_ndarray(np.full((1, 8000), 0.3, np.float32), format="fltp", layout="mono")
        block.sample_rate, block.pts = 16000, 0
        container.mux(track.encode(block))
        container.mux(track.encode(None))
    return stream.getvalue()


def frames_of(count=2, size=(4, 5)):
    return np.full((count, *size, 3), 7).tolist()


class Planted:
    def __reduce__(self):
        return os.mkdir, ("planted",)


SECOND = second()
CUT = second(options={"movflags": "faststart"})
BAD = {
    # not a request at all
    "nothing": (b"", "JSON"),
    "no JSON": (b"\x00\x01\x02", "JSON"),
    "cut JSON": (json.dumps(video(SECOND)).encode()[:500], "JSON"),
    "a list": ([1, 2], "list"),
    "a text": ("clip.mp4", "unexpected input type"),
    "another key": ({"videos": ["clip.mp4"]}, ""),
    "two formats": ({**video(SECOND), "inputs": ["clip.mp4"]}, ""),
    "no list of rows": ({"dataframe_records": "clip.mp4"}, "must be a list"),
    "no row": (rows(), "brings no row"),
    "another column": (rows({"film": "clip.mp4"}), "brings no row"),
    "rows of unlike length": ({"dataframe_split": {"columns": ["video"], "data": [["a", "b"]]}}, ""),
    "too many rows": (rows(*[{"video": "clip.mp4"}] * (MOST_VIDEOS + 1)), "1 to 4 videos, not 5"),
    "video and clip": (rows({"video": "clip.mp4", "clip": frames_of()}), "either a video or a clip"),
    "neither": (rows({"video": None}), "either a video or a clip"),
    # no path
    "a number": (rows({"video": 7}), "neither a path nor a data URL"),
    "a truth": (rows({"video": True}), "neither a path nor a data URL"),
    "a nested list": (rows({"video": ["clip.mp4"]}), ""),
    "an object": (rows({"video": {"path": "clip.mp4"}}), ""),
    "an empty text": (rows({"video": ""}), "neither a path nor a data URL"),
    "a path of the system": (rows({"video": "/etc/passwd"}), "no such file below the folder"),
    "a path that climbs": (rows({"video": "../secret.mp4"}), "no such file below the folder"),
    "a link that leads out": (rows({"video": "out.mp4"}), "no such file below the folder"),
    "a missing file": (rows({"video": "nowhere.mp4"}), "no such file below the folder"),
    "a folder": (rows({"video": "sub"}), "no such file below the folder"),
    "a pipe": (rows({"video": "pipe.mp4"}), "no such file below the folder"),
    "a path with NUL": (rows({"video": "clip.mp4\0.txt"}), "no such file below the folder"),
    "an endless path": (rows({"video": "a" * 10_000}), "no such file below the folder"),
    "an address": (rows({"video": "http://127.0.0.1:9/a.mp4"}), "no such file below the folder"),
    # no bytes of a video
    "no base64": (rows({"video": "data:video/mp4;base64,?"}), "is not base64"),
    "letters beyond ASCII": (rows({"video": "data:video/mp4;base64,ä"}), "is not base64"),
    "another data URL": (rows({"video": "data:video/mp4,abc"}), "a data URL has the form"),
    "no bytes": (video(b""), "is empty (0 bytes)"),
    "text": (video(b"These are my notes.\n" * 40), "not a video"),
    "noise": (video(np.random.default_rng(0).bytes(4096)), "row 0: "),
    "a playlist": (video(b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n"), "not a video"),
    "a list of files": (video(b"ffconcat version 1.0\nfile /etc/passwd\n"), "not a video"),
    "a pickle": (video(pickle.dumps(Planted())), "not a video"),
    "an archive": (video(b"PK\x03\x04" + bytes(400)), "not a video"),
    "sound alone": (video(sound()), "no video track"),
    "a cut video": (video(CUT[: len(CUT) * 2 // 3]), "is truncated"),
    "a head alone": (video(SECOND[:300]), "row 0: "),
    "a body alone": (video(SECOND[-600:]), "row 0: "),
    "ten hours by its header": (video(with_header_of(10)), "is 36000 s long; at most 60 s"),
    "ten hours by its stamps": (video(encoded(grey(2), [0, 36_000])), "s long; at most 60 s"),
    "too many bytes": (video(bytes(MOST_BYTES + 1)), "more than a request may bring"),
    "too many bytes together": (rows(*[{"video": url(bytes(MOST_BYTES // 2))}] * 3), "more than a request may bring"),
    "one bad among good": (rows({"video": url(SECOND)}, {"video": url(b"x")}), "row 1: "),
    # no clip
    "a flat clip": (rows({"clip": [1, 2, 3]}), "(frames, height, width, 3)"),
    "a clip of one frame's shape": (rows({"clip": frames_of()[0]}), "(frames, height, width, 3)"),
    "a ragged clip": (rows({"clip": [frames_of()[0], [[1]]]}), "alike"),
    "a clip of texts": (rows({"clip": [[[["a", "b", "c"]]]]}), "(frames, height, width, 3)"),
    "a clip of fractions": (rows({"clip": [[[[0.5, 0.5, 0.5]]]]}), "float64"),
    "a clip out of range": (rows({"clip": [[[[0, 0, 256]]]]}), "0 to 256"),
    "a clip below zero": (rows({"clip": [[[[0, 0, -1]]]]}), "-1 to 0"),
    "a clip of huge numbers": (rows({"clip": [[[[0, 0, 2**70]]]]}), "(frames, height, width, 3)"),
    "a clip of four channels": (rows({"clip": [[[[1, 2, 3, 4]]]]}), "(frames, height, width, 3)"),
    "an empty clip": (rows({"clip": [[]]}), "(frames, height, width, 3)"),
    "a clip that is a text": (rows({"clip": "clip.mp4"}), "(frames, height, width, 3)"),
    "a clip that is an object": (rows({"clip": {"0": [1]}}), "(frames, height, width, 3)"),
    "a clip that is too large": (rows({"clip": frames_of(110, (30, 31))}), "more than a request may bring"),
    "a clip that is too wide": (rows({"clip": frames_of(1, (1, 9000))}), "more than 8192 pixels"),
    "no rate": (rows({"clip": frames_of(), "rate_hz": 0}), "not a number of frames a second"),
    "a rate below zero": (rows({"clip": frames_of(), "rate_hz": -5}), "not a number of frames a second"),
    "a rate of ten hours": (rows({"clip": frames_of(), "rate_hz": 1e-4}), "20000 s long"),
    "a rate that is a text": (rows({"clip": frames_of(), "rate_hz": "fast"}), ""),
    "a rate without end": (b'{"dataframe_records": [{"clip": [[[[1,2,3]]]], "rate_hz": Infinity}]}', "not a number"),
}  # fmt: skip


def test_a_served_student_answers(server, served_folder):
    address, _ = server
    status, answer = post(
        address, rows({"video": "clip.mp4"}, {"video": url((served_folder / "clip.mp4").read_bytes())})
    )
    assert status == 200, answer
    by_path, by_bytes = json.loads(answer)["predictions"]
    assert by_path == by_bytes
    assert set(by_path) == {"verb", "verb_probs", "noun", "noun_probs"}
    assert by_path["verb"] == max(by_path["verb_probs"], key=by_path["verb_probs"].get)
    assert sum(by_path["noun_probs"].values()) == pytest.approx(1, abs=1e-6)
    with av.open(str(served_folder / "clip.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24").tolist() for frame in container.decode(video=0)]
    status, answer = post(address, rows({"clip": frames, "rate_hz": 10.0}, {"clip": frames_of()}))
    assert status == 200, answer
    by_frames = json.loads(answer)["predictions"][0]
    for head in ("verb", "noun"):  # the two readers differ in the last bit of a colour
        assert by_frames[f"{head}_probs"] == pytest.approx(by_path[f"{head}_probs"], abs=0.02)


def test_the_example_that_was_registered_is_answered(server):
    from tasks.example_video import data_url

    address, _ = server
    status, answer = post(address, {"dataframe_split": {"columns": ["video"], "data": [[data_url()]]}})
    assert status == 200, answer


def test_every_bad_request_is_refused_with_a_reason_and_the_server_stays(server, tmp_path):
    """All in one test, because what is tested is that the same process answers to the end."""
    address, process = server
    family = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    good = post(address, video(SECOND))
    assert good[0] == 200
    answered = {name: post(address, body) for name, (body, _) in BAD.items()}
    for content_type, body in (
        ("text/csv", b"\xff\xfe"),
        ("application/octet-stream", SECOND),
        ("video/mp4", SECOND),
        ("application/x-parquet", b"PAR1"),
        ("application/json; charset=latin-1", b"{}"),
    ):
        answered[content_type] = post(address, body, content_type)
    wrong = {
        name: (status, text[-300:])
        for name, (status, text) in answered.items()
        if not 400 <= status < 500 or not text or BAD.get(name, ("", ""))[1] not in text
    }
    assert wrong == {}
    assert post(address, video(SECOND)) == good
    assert process.poll() is None
    assert family <= {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    assert not list(tmp_path.rglob("planted"))
    print(f"{len(answered)} kinds of bad requests, all answered")


def test_without_a_folder_no_path_is_read(rgb_student, tmp_path, films, monkeypatch):
    monkeypatch.delenv("UNDERSTUDY_SERVE_ROOT", raising=False)
    clip = films.write(tmp_path / "clip.mp4", films.grey(5))
    served = Served(release_of(Workspace(tmp_path), rgb_student()).release)
    for path in (str(clip), "clip.mp4", "/etc/passwd"):
        with pytest.raises(UserError, match=r"row 0: this server reads no paths .*data:video/mp4;base64"):
            served.answer(pd.DataFrame({"video": [path]}))


def test_the_networks_lie_where_their_inputs_go(rgb_student, tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_DEVICE", "meta")
    served = Served(release_of(Workspace(tmp_path), rgb_student()).release)
    places = {value.device for member in served.committee.members for value in member.parameters()}
    assert places == {device()}
    assert device().type == "meta"


def test_what_strangers_send_is_opened_by_pyav_alone_in_limited_memory(
    rgb_student, tmp_path, films, monkeypatch
):
    monkeypatch.setenv("UNDERSTUDY_SLOTS", "1")
    served = Served(release_of(Workspace(tmp_path), rgb_student()).release)
    (looker,) = served._lookers._all
    asked, real = [], looker.ask
    monkeypatch.setattr(looker, "ask", lambda request: asked.append(request) or real(request))
    served.answer(pd.DataFrame({"video": [url(SECOND)]}))
    assert [request["try_decord"] for request in asked] == [False]
    most, _ = psutil.Process(looker._process.pid).rlimit(psutil.RLIMIT_AS)
    assert 4 << 30 < most < 64 << 30
    wide = films.write(tmp_path / "wide.mp4", films.grey(2, (8208, 16))).read_bytes()
    with pytest.raises(UserError, match="row 0: has frames of 8208 x 16 pixels"):
        served.answer(pd.DataFrame({"video": [url(wide)]}))


def test_a_decoder_that_hangs_is_given_up_and_the_next_video_is_answered(rgb_student, tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_SERVE_TIMEOUT_S", "2")
    monkeypatch.setenv("UNDERSTUDY_SLOTS", "1")
    served = Served(release_of(Workspace(tmp_path), rgb_student()).release)
    ask = pd.DataFrame({"video": [url(SECOND)]})
    first = served.answer(ask)
    (looker,) = served._lookers._all
    real = looker.ask

    def hang(request):
        os.kill(looker._started().pid, signal.SIGSTOP)
        return real(request)

    with monkeypatch.context() as patch:
        patch.setattr(looker, "ask", hang)
        with pytest.raises(UserError, match="row 0: decoding took longer than 2 s"):
            served.answer(ask)
    assert served.answer(ask).equals(first)


def test_a_machine_that_starts_no_decoder_is_not_the_client_s_fault(rgb_student, tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_SLOTS", "1")
    served = Served(release_of(Workspace(tmp_path), rgb_student()).release)
    ask = pd.DataFrame({"video": [url(SECOND)]})
    first = served.answer(ask)
    (looker,) = served._lookers._all
    looker.close()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(InfrastructureError, match="cannot be started: No such file"):
            served.answer(ask)
    assert served.answer(ask).equals(first)
