"""What a trained student says of videos it has never seen: RGB alone, calibrated, one bad file at a time.

Networks come from a folder (artifacts/release) or from the MLflow registry. Only safetensors and JSON are
read; a model that holds a pickle, or a file that is not the one that was registered, is refused.
"""

import json
import os
import re
import tempfile
import zipfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from tasks.atomic import digest, file_digest
from tasks.errors import InfrastructureError, UserError
from tasks.inference import device
from tasks.layout import Workspace
from tasks.looking import Look, Lookers
from tasks.modalities.modality import Span
from tasks.modalities.rgb import Rgb
from tasks.networks import Committee, Spec
from tasks.settings import settings
from tasks.stores import tracking

RELEASE = "artifacts/release"
"""Where the release folder lies inside the registered model."""
FILE_TAG = "sha256."
"""Version tags that start so hold the digest of the release's file of that name."""

_HERE = Workspace(Path())
_PICKLES = {
    ".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".dill", ".cloudpickle", ".npy", ".npz", ".ckpt",
}  # fmt: skip
_PICKLE_MAGIC = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_ZIP_MAGIC = b"PK\x03\x04"  # torch.save puts its pickle into one
_PT2_MEMBERS = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id|models/model\.json"
    r"|data/sample_inputs/model\.pt|data/(weights|constants)/model_(weights|constants)_config\.json"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+)"
)
"""All that `torch.export.save` writes of a network whose tensors are plain."""


@dataclass(frozen=True)
class Prediction:
    """What the student says of one stretch of a video.

    Attributes:
        video: the path as it was given; bytes of it that are no UTF-8 are spelled \\xNN.
        start_s, stop_s: the stretch, seconds from the first frame; 0 and 0 where the video cannot be read.
        heads: head → (class, calibrated probability), the most probable first.
        error: why there are none; None where all went well.
    """

    video: str
    start_s: float = 0.0
    stop_s: float = 0.0
    heads: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class Answering:
    """Networks, and which model they are.

    Attributes:
        committee: the networks.
        name: of the registered model, or of the folder.
        version: in the registry; empty for a folder.
        digest: SHA-256 of its release.json, the same in a folder and in the registry; of a folder without one,
            of its files.
    """

    committee: Committee
    name: str
    version: str
    digest: str

    @property
    def title(self) -> str:
        """Which model it is, for people."""
        version = f" version {self.version}" if self.version else ""
        return f"{self.name}{version} ({self.digest[:12]})"


def load(model: str, workspace: Workspace = _HERE) -> Committee:
    """The networks of `model`; see `identify`."""
    return identify(model, workspace).committee


def identify(model: str, workspace: Workspace = _HERE) -> Answering:
    """The networks of `model`, and which model it is.

    Args:
        model: a folder as artifacts/release, or models:/NAME@ALIAS or models:/NAME/VERSION in the registry.
        workspace: whose registry is meant where MLFLOW_TRACKING_URI is not set.

    Raises:
        UserError: there is no such model, it holds a pickle, or a file is not the one that was registered.
        InfrastructureError: the registry cannot be reached.
    """
    if not model.startswith("models:"):
        folder = Path(model)
        if not (folder / "spec.json").is_file():
            raise UserError(
                "is no trained student",
                file=model,
                remedy="--model takes a folder as artifacts/release (`dvc repro` or `dvc pull` brings it), "
                "or a registered version (@champion, v2, models:/…)",
            )
        return Answering(Committee.load(folder), *_named(folder))
    version = tracking.model_version(model, workspace)
    with tempfile.TemporaryDirectory(prefix="understudy-") as place:
        release = download(f"models:/{version.name}/{version.version}", workspace, Path(place))
        return Answering(
            Committee.load(release), version.name, str(version.version), file_digest(release / "release.json")
        )


def _named(folder: Path) -> tuple[str, str, str]:
    """Name, no version, and digest of a folder with networks."""
    if (folder / "release.json").is_file():
        name = json.loads((folder / "release.json").read_text(encoding="utf-8"))["name"]
        return name, "", file_digest(folder / "release.json")
    weights = sorted(folder.glob("weights-*.safetensors"))
    return folder.resolve().name, "", digest([file_digest(file) for file in (folder / "spec.json", *weights)])


def predict(
    videos: Sequence[Path],
    committee: Committee,
    top: int | None = None,
    span: Span | None = None,
    batch: int = 1,
) -> list[Prediction]:
    """Classify videos, each as one clip; see `predictions`."""
    return [found for several in predictions(videos, committee, batch, top, span) for found in several]


def predictions(
    videos: Sequence[Path],
    committee: Committee,
    batch: int,
    top: int | None = None,
    span: Span | None = None,
) -> Iterator[list[Prediction]]:
    """Classify videos, each as one clip, batch by batch.

    Decoding is ahead of the network by a batch, in as many processes as there are slots.

    Args:
        videos: files; one that cannot be read gets an error in its prediction and the others go on.
        committee: networks that look at RGB, on any device; they are moved to this machine's.
        batch: videos that go through the network at once.
        top: classes to give for each head; None for all.
        span: start and stop in seconds of the stretch to look at; None for the whole video.

    Raises:
        UserError: the networks look at something else than RGB, or the span is none.
        InfrastructureError: no process to decode in can be started (while the predictions are taken).
    """
    rgb = looks_at(committee.spec)
    if span is not None and not 0 <= span[0] < span[1]:
        raise UserError(
            f"the span {span[0]:g}..{span[1]:g} s does not start before it stops, at 0 or later",
            remedy="give seconds from the first frame, as --start 2.2 --stop 4.5",
        )
    committee.to(device())
    return _predictions(videos, committee, rgb, batch, top, span)


def _predictions(
    videos: Sequence[Path], committee: Committee, rgb: Rgb, batch: int, top: int | None, span: Span | None
) -> Iterator[list[Prediction]]:
    count = min(settings().slots, len(videos)) or 1
    with Lookers(rgb, committee.spec.views, settings().decode_timeout_s, None, count) as lookers:
        ahead: deque[list[tuple[Path, Future[Look | str]]]] = deque()
        for first in range(0, len(videos), batch):
            ahead.append([(video, lookers.look(video, span)) for video in videos[first : first + batch]])
            if len(ahead) > 1:
                yield _said(ahead.popleft(), committee, top)
        while ahead:
            yield _said(ahead.popleft(), committee, top)


def _said(
    looked: "Sequence[tuple[Path, Future[Look | str]]]", committee: Committee, top: int | None
) -> list[Prediction]:
    found = [(spelled(video), look.result()) for video, look in looked]
    ranked = iter(classify([look for _, look in found if isinstance(look, Look)], committee, top))
    return [
        Prediction(video, look.start_s, look.stop_s, next(ranked))
        if isinstance(look, Look)
        else Prediction(video, error=look)
        for video, look in found
    ]


def classify(
    looks: Sequence[Look], committee: Committee, top: int | None = None
) -> list[dict[str, list[tuple[str, float]]]]:
    """What the networks say of views, in one batch: for each one head → (class, calibrated probability), ranked."""
    if not looks:
        return []
    inputs = torch.from_numpy(np.stack([look.shown for look in looks])).to(device())
    logits = committee.calibrated(committee.logits(inputs))
    probs = {head: values.softmax(-1).cpu().numpy() for head, values in logits.items()}
    classes = committee.spec.heads
    return [
        {head: _ranked(classes[head], values[place], top) for head, values in probs.items()}
        for place in range(len(looks))
    ]


def looks_at(spec: Spec) -> Rgb:
    """How networks of `spec` look at RGB.

    Raises:
        UserError: they look at something else.
    """
    if not isinstance(spec.modality_params, Rgb):
        raise UserError(f"this model looks at {spec.modality}; only models of rgb predict from a video alone")
    return spec.modality_params


def spelled(path: Path) -> str:
    """A path as text that any file and terminal takes: bytes that are no UTF-8 as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _ranked(classes: Sequence[str], probs: np.ndarray, top: int | None) -> list[tuple[str, float]]:
    order = np.argsort(-probs, kind="stable")[:top]
    return [(classes[place], float(probs[place])) for place in order]


def download(model: str, workspace: Workspace, folder: Path) -> Path:
    """Fetch a version into `folder`, check it, and give the release folder in it."""
    from mlflow.artifacts import download_artifacts

    from tasks.stores import failures

    version = tracking.model_version(model, workspace)
    try:
        with tracking.addressed(workspace):
            download_artifacts(artifact_uri=f"models:/{version.name}/{version.version}", dst_path=str(folder))
    except failures.REGISTRY as error:
        said = tracking.told(error, workspace)
        raise InfrastructureError(f"the files of {model} cannot be fetched: {said}") from error
    refuse_pickles(folder, model)
    _refuse_changed(folder / RELEASE, version.tags, model)
    return folder / RELEASE


def refuse_pickles(folder: Path, model: str) -> None:
    """Make sure that nothing under `folder` can run code when it is loaded as data.

    An exported network (.pt2) is an archive of JSON and of tensors as they lie in memory, and may stay where it
    holds nothing else. No prediction loads it: `torch.export.load` looks operators up by their names and
    evaluates expressions, so that what it is given must be trusted.

    Raises:
        UserError: a file is a pickle by its name or its first bytes, or an archive that may hold one.
    """
    for file in _files(folder):
        with file.open("rb") as stream:
            first = stream.read(4)
        if file.suffix == ".pt2" and _is_pickle_free(file):
            continue
        if file.suffix.lower() in _PICKLES | {".pt2"} or first[:2] in _PICKLE_MAGIC or first == _ZIP_MAGIC:
            raise UserError(
                f"{model} holds {file.relative_to(folder)}, which may be a pickle: loading it could run code",
                remedy="do not use this version; find out who registered it",
            )


def _is_pickle_free(file: Path) -> bool:
    """Whether an archive of `torch.export.save` holds nothing but members that are known to be no pickle."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = {member.filename: member for member in archive.infolist()}
            known = all(_PT2_MEMBERS.fullmatch(name) for name in members)
            plain = all(member.compress_type == zipfile.ZIP_STORED for member in members.values())
            if not known or not plain or len(members) < len(archive.infolist()):
                return False
            if any(members[name].file_size for name in members if name.endswith("/sample_inputs/model.pt")):
                return False  # they are pickled
            configs = [json.loads(archive.read(name)) for name in members if name.endswith("_config.json")]
            return not any(part["use_pickle"] for config in configs for part in config["config"].values())
    except (zipfile.BadZipFile, ValueError, KeyError, AttributeError, TypeError, RuntimeError):
        return False


def _refuse_changed(release: Path, tags: dict[str, str], model: str) -> None:
    """Raise a UserError unless `release` holds the files that the version's tags name, and no others."""
    registered = {
        key.removeprefix(FILE_TAG): value for key, value in tags.items() if key.startswith(FILE_TAG)
    }
    found = {str(file.relative_to(release)): file_digest(file) for file in _files(release)}
    wrong = sorted(
        name for name in registered.keys() | found.keys() if registered.get(name) != found.get(name)
    )
    if wrong or not registered:
        raise UserError(
            f"{model} is not what was registered: {', '.join(wrong) or 'its version has no digests'}",
            remedy="do not use this version; register the release again",
        )


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file())
