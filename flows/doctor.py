"""What `understudy doctor` checks, each with what to do where it fails."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flows import gpus
from flows.clone import Clone, find
from tasks.errors import UserError
from tasks.settings import dvc_config

if TYPE_CHECKING:
    from rich.table import Table

State = Literal["works", "fails"]
ENOUGH_DISK = 5 * 2**30
"""Bytes: the sample with its features, checkpoints and DVC's cache takes less."""
_PINNED = re.compile(r"^([A-Za-z0-9][\w.-]*)(?:\[[^]]*\])?==([^\s;]+)(?:\s*;\s*(.+))?$")


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    state: State
    detail: str
    remedy: str = ""


class Trouble(Exception):
    """A check that fails: what is wrong and what to do."""

    def __init__(self, detail: str, remedy: str):
        self.detail, self.remedy = detail, remedy
        super().__init__(detail)


def examine(start: Path) -> list[Check]:
    """Make every check, from the clone that `start` lies in."""
    checks = [examined("Python", _python), examined("PyTorch", _torch), examined("video", _video)]
    try:
        clone = find(start)
    except UserError as error:
        return [*checks, Check("clone", "fails", error.message, error.remedy)]
    rest: dict[str, Callable[[Clone], str]] = {
        "lock": _lock,
        "git": _git,
        "params.yaml": _params,
        "DVC": _dvc,
        "data": _data,
        "DVC remote": _remote,
        "Prefect": _prefect,
        "MLflow": _mlflow,
        "disk": _disk,
    }
    return checks + [examined(name, partial(make, clone)) for name, make in rest.items()]


def table(checks: list[Check]) -> "Table":
    """The checks for a terminal."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for check in checks:
        good = check.state == "works"
        text = Text(check.detail)
        if not good:
            text.append(f"\n→ {check.remedy}", "yellow")
        shown.add_row(Text("✔" if good else "✘", "green" if good else "red"), Text(check.name, "bold"), text)
    return shown


def examined(name: str, make: Callable[[], str]) -> Check:
    """The check `name`: what `make` says, or the trouble it raises."""
    try:
        return Check(name, "works", make())
    except Trouble as trouble:
        return Check(name, "fails", trouble.detail, trouble.remedy)
    except UserError as error:
        return Check(name, "fails", str(error).partition("\n")[0], error.remedy or "mend that")
    except Exception as error:  # a doctor who dies of the illness helps nobody
        return Check(name, "fails", f"{type(error).__name__}: {error}", "make setup, then look again")


def _python() -> str:
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        raise Trouble(
            f"Python {sys.version.split()[0]}", "use Python 3.11 or 3.12: make setup PYTHON=python3.11"
        )
    return f"{sys.version.split()[0]} at {sys.executable}"


def _torch() -> str:
    try:
        import torch
        import torchvision  # noqa: F401  # a CPU-only torch beside the ordinary torchvision fails right here
    except (ImportError, RuntimeError) as error:
        raise Trouble(f"cannot be imported: {error}", "make setup") from None
    from tasks.inference import device

    wanted = gpus.visible()
    if wanted and not torch.cuda.is_available():
        needed = f"a driver for CUDA {torch.version.cuda}" if torch.version.cuda else "a torch with CUDA"
        raise Trouble(
            f"{torch.__version__} sees none of the GPUs {', '.join(wanted)}",
            f"install {needed} (infra/README.md says which), or set UNDERSTUDY_DEVICE=cpu",
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cards = [torch.cuda.get_device_properties(index) for index in range(count)]
    for index, card in enumerate(cards if wanted else []):
        try:
            (torch.zeros(1, device=f"cuda:{index}") + 1).item()  # memory alone is had on any GPU
        except RuntimeError as error:
            raise Trouble(
                f"{card.name} computes nothing: {str(error).splitlines()[0]}",
                f"this torch is built for {', '.join(torch.cuda.get_arch_list())}, and nvidia-smi says whether its "
                "memory is full; UNDERSTUDY_DEVICE=cpu does without",
            ) from None
    device()
    if not cards:
        return f"{torch.__version__}, CPU with {len(os.sched_getaffinity(0))} core(s), no GPU"
    told = (f"{card.name} ({card.total_memory / 2**30:.0f} GiB)" for card in cards)
    return f"{torch.__version__}, {', '.join(told)}"


def _video() -> str:
    """Write two seconds of H.264 with sound and read them back as the stages do."""
    import av
    import numpy as np

    from tasks.stores.video import open_video, read_audio

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "doctor.mp4"
        with av.open(str(path), "w") as container:
            pictures = container.add_stream("h264", rate=10)
            pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
            sound = container.add_stream("aac", rate=16000)
            sound.layout = "mono"
            for grey in range(20):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * grey, np.uint8), format="rgb24")
                container.mux(pictures.encode(frame))
            container.mux(pictures.encode())
            tone = np.sin(np.arange(32000, dtype=np.float32) / 4)[None]
            heard = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            heard.sample_rate = 16000
            container.mux([*sound.encode(heard), *sound.encode()])
        readers = []
        for reader in ("decord", "pyav"):
            with open_video(path, reader) as opened:
                list(opened.frames([0, 10]))
            readers.append(reader)
        if read_audio(path, 16000, 2.0) is None:
            raise Trouble(
                "the sound of an AAC track cannot be read", "make setup (PyAV ships its own FFmpeg)"
            )
    return f"H.264 and AAC written and read by {' and '.join(readers)}"


def _lock(clone: Clone) -> str:
    from packaging.markers import Marker

    wrong = []
    lines = (clone.root / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [match.groups() for line in lines if (match := _PINNED.match(line.strip()))]
    for name, pinned, marker in pins:
        if marker and not Marker(marker.rstrip(" \\")).evaluate():
            continue
        try:
            installed = version(name).partition("+")[0]
        except PackageNotFoundError:
            installed = "not installed"
        if installed != pinned.partition("+")[0]:
            wrong.append(f"{name} {installed} (lock: {pinned})")
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise Trouble(", ".join(wrong[:4]) + more, "make setup")
    return f"{len(pins)} packages as in requirements.lock"


def _git(clone: Clone) -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(clone.root), *arguments], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        changed = len(git("status", "--porcelain").splitlines())
        commit = git("rev-parse", "--short", "HEAD")
    except FileNotFoundError:
        raise Trouble("git is not installed", "install git") from None
    except subprocess.CalledProcessError as error:
        raise Trouble(
            error.stderr.strip().splitlines()[0], "clone the project with git, or commit once"
        ) from None
    return f"at {commit}" + (f", {changed} file(s) changed" if changed else ", nothing changed")


def _params(clone: Clone) -> str:
    from tasks.params import load

    params = load(clone.root / "params.yaml")
    return (
        f"{params.data.name}: {len(params.modalities)} modalities, {len(params.teachers)} teachers, "
        f"{len(params.students)} students, {len(params.seeds)} seed(s)"
    )


def _dvc(clone: Clone) -> str:
    from flows.plan import plan

    try:
        todo = plan(clone)
    except UserError as error:
        if "is not here" in error.message:  # the check named data tells that
            return f"{version('dvc')}, graph is sound"
        raise Trouble(error.message, error.remedy or "mend dvc.yaml") from None
    return f"{version('dvc')}, {len(todo.steps)} stages, {len(todo.due)} to look at"


def _data(clone: Clone) -> str:
    file = clone.root / "data.dvc"
    if not file.is_file():
        raise Trouble("there is no data.dvc", "understudy import YOUR_FOLDER, or git checkout data.dvc")
    from tasks.datasets import dataset
    from tasks.layout import Workspace
    from tasks.params import load

    here = Workspace(clone.root)
    files = sum(1 for path in here.raw.rglob("*") if path.is_file())
    if not files:
        raise Trouble("data/raw is not here", "dvc pull data.dvc")
    try:
        format_ = load(here.params).data.format
        known = dataset(format_).recognises(here.raw)
    except UserError:  # the check named params.yaml tells that
        return f"{files} files in data/raw"
    if not known:
        raise Trouble(
            f"data/raw has no annotations of the format {format_}, which params.yaml names",
            "dvc checkout data.dvc, or take the data in anew: understudy import YOUR_FOLDER",
        )
    return f"{files} files in data/raw, format {format_}"


def _remote(clone: Clone) -> str:
    """Whether the remotes answer; having none is fine for one machine."""
    from dvc.repo import Repo

    with Repo(str(clone.root), config=dvc_config(clone.root)) as repo:
        cache = Path(repo.cache.local.path)
        if cache.exists() and cache.stat().st_dev != clone.root.stat().st_dev:
            raise Trouble(f"DVC's cache {cache} is on another disk, so every file is stored twice",
                          "dvc cache dir, to a folder on this disk")  # fmt: skip
        names = list(repo.config["remote"])
        if not names:
            return "none; data and results stay on this machine"
        for name in names:
            try:
                odb = repo.cloud.get_remote_odb(name)
                there = odb.fs.exists(odb.path)
            except Exception as error:  # each kind of remote has its own
                raise Trouble(
                    f"{name} does not answer: {error}", f"check access, or dvc remote modify {name}"
                ) from None
            if not there and odb.fs.protocol == "local":
                raise Trouble(f"{name} is not at {odb.path}", f"dvc remote modify {name} url FOLDER")
    return f"{', '.join(names)} answer{'s' if len(names) == 1 else ''}"


def _prefect(clone: Clone) -> str:
    from flows.api import API_REMEDY, api_problem, prepare_environment

    prepare_environment(verbose=False)
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        return f"{version('prefect')}, starts a temporary server for each run"
    if (problem := api_problem()) is not None:
        raise Trouble(f"{url} does not answer: {problem}", API_REMEDY)
    return f"{version('prefect')}, server at {url}"


def _mlflow(clone: Clone) -> str:
    from tasks.layout import Workspace
    from tasks.stores import tracking

    workspace = Workspace(clone.root)
    uri = tracking.shown_uri(workspace)
    import mlflow

    if Path(mlflow.__file__ or clone.root / "mlflow").is_relative_to(clone.root / "mlflow"):
        raise Trouble("the folder mlflow/ hides the library", "remove mlflow/__init__.py")
    try:
        client = tracking.client(workspace)
        client.search_experiments(max_results=1)
        versions = client.search_model_versions("name = 'understudy-student'")
    except Exception as error:  # every store has its own
        said = tracking.told(error, workspace)
        raise Trouble(
            f"{uri} does not answer: {said}", "start the server or unset MLFLOW_TRACKING_URI"
        ) from None
    if not os.environ.get("MLFLOW_TRACKING_URI") and not os.access(clone.work, os.W_OK):
        raise Trouble(f"{clone.work} is not writable", "set UNDERSTUDY_WORK to a folder that is")
    return f"{mlflow.__version__} at {uri}, {len(versions)} version(s) of understudy-student"


def _disk(clone: Clone) -> str:
    free = shutil.disk_usage(clone.root).free
    if free < ENOUGH_DISK:
        raise Trouble(
            f"{free / 2**30:.1f} GiB free",
            f"free some: remove trainings, shards, probes and studies in {clone.work}; or, once dvc push holds what "
            "you would miss, dvc gc --all-commits (it deletes what no commit names)",
        )
    return f"{free / 2**30:.0f} GiB free"
