"""What a trained student says of videos it has never seen: RGB alone, calibrated, one bad file at a time.

Networks come from a folder (artifacts/release) or from the MLflow registry. Only safetensors and JSON are
read; a model that holds a pickle, or a file that is not the one that was registered, is refused.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from tasks.atomic import file_digest
from tasks.clips import Clip
from tasks.errors import InfrastructureError, UserError
from tasks.inference import device
from tasks.layout import Workspace
from tasks.modalities.modality import RawVideo, Span
from tasks.modalities.rgb import Rgb
from tasks.networks import Committee, Spec
from tasks.settings import settings
from tasks.shards import Row, Rows
from tasks.stores import tracking
from tasks.stores.probe import Prober
from tasks.stores.video import VideoError
from tasks.views import evaluation_views

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


@dataclass(frozen=True)
class Prediction:
    """What the student says of one stretch of a video.

    Attributes:
        video: the path as it was given.
        start_s, stop_s: the stretch, seconds from the first frame; 0 and 0 where the video cannot be read.
        heads: head → (class, calibrated probability), the most probable first.
        error: why there are none; None where all went well.
    """

    video: str
    start_s: float = 0.0
    stop_s: float = 0.0
    heads: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    error: str | None = None


def load(model: str, workspace: Workspace = _HERE) -> Committee:
    """The networks of `model`.

    Args:
        model: a folder as artifacts/release, or models:/NAME@ALIAS or models:/NAME/VERSION in the registry.
        workspace: whose registry is meant where MLFLOW_TRACKING_URI is not set.

    Raises:
        UserError: there is no such model, it holds a pickle, or a file is not the one that was registered.
        InfrastructureError: the registry cannot be reached.
    """
    if not model.startswith("models:"):
        if not Path(model, "spec.json").is_file():
            raise UserError(
                "is no trained student",
                file=model,
                remedy="--model takes a folder as artifacts/release (`dvc repro` or `dvc pull` brings it), "
                "or models:/NAME@ALIAS or models:/NAME/VERSION",
            )
        return Committee.load(Path(model))
    with tempfile.TemporaryDirectory(prefix="understudy-") as folder:
        return Committee.load(download(model, workspace, Path(folder)))


def predict(
    videos: Sequence[Path], committee: Committee, top: int | None = None, span: Span | None = None
) -> list[Prediction]:
    """Classify videos, each as one clip.

    Args:
        videos: files; one that cannot be read gets an error in its prediction and the others go on.
        committee: networks that look at RGB, on any device; they are moved to this machine's.
        top: classes to give for each head; None for all.
        span: start and stop in seconds of the stretch to look at; None for the whole video.

    Raises:
        UserError: the networks look at something else than RGB, or the span is none.
    """
    spec = committee.spec
    if not isinstance(spec.modality_params, Rgb):
        raise UserError(f"this model looks at {spec.modality}; only models of rgb predict from a video alone")
    if span is not None and not 0 <= span[0] < span[1]:
        raise UserError(f"the span {span[0]:g}..{span[1]:g} s does not start before it stops, at 0 or later")
    committee.to(device())
    with Prober(settings().decode_timeout_s) as prober:
        return [_predict_one(video, committee, top, span, prober) for video in videos]


def _predict_one(
    video: Path, committee: Committee, top: int | None, span: Span | None, prober: Prober
) -> Prediction:
    try:
        clip, inputs = _look(video, committee.spec, span, prober)
    except (VideoError, OSError) as error:
        return Prediction(str(video), error=str(error))
    except Exception as error:  # whatever else bad bytes provoke is this video's fault, not the others'
        return Prediction(str(video), error=f"cannot be read ({type(error).__name__}: {error})")
    logits = committee.calibrated(committee.logits(inputs.to(device())))
    heads = {
        head: _ranked(committee.spec.heads[head], values[0].softmax(-1).cpu().numpy(), top)
        for head, values in logits.items()
    }
    return Prediction(str(video), clip.start_s, clip.stop_s, heads)


def _ranked(classes: Sequence[str], probs: np.ndarray, top: int | None) -> list[tuple[str, float]]:
    order = np.argsort(-probs, kind="stable")[:top]
    return [(classes[place], float(probs[place])) for place in order]


def _look(path: Path, spec: Spec, span: Span | None, prober: Prober) -> tuple[Clip, torch.Tensor]:
    """The stretch of the video and its test view, (1, frames, channels, size, size).

    Raises:
        VideoError: the file is missing or too large, cannot be decoded, ends before the span does, or is
            truncated and no span says that the rest will do.
    """
    if path.is_dir():
        raise VideoError(f"is a folder; name its files, as {path}/*.mp4")
    if not path.is_file():
        raise VideoError("there is no such file")
    if path.stat().st_size > settings().max_video_bytes:
        raise VideoError(f"is larger than {settings().max_video_bytes} bytes (UNDERSTUDY_MAX_VIDEO_BYTES)")
    found = prober.probe(path, ())
    if span is None and found.truncated:
        raise VideoError(
            f"is truncated: it promises {found.promised_s:.3f} s and holds {found.duration_s:.3f} s; "
            "give a start and a stop to look at what there is"
        )
    start_s, stop_s = span or (0.0, found.duration_s)
    if stop_s > found.duration_s + found.frame_s:
        raise VideoError(f"ends at {found.duration_s:.2f} s, before the span {start_s:g}..{stop_s:g} s does")
    clip = Clip(str(path), str(path), start_s, stop_s, group="", split="test", labels={}, slices={})
    (view,) = evaluation_views(clip, spec.views)
    prober.probe(
        path, view.times_s
    )  # so that a frame which kills its decoder kills another process than this
    video = found.video(str(path), path.stat().st_size, sha256="", detections_sha256="")
    assert isinstance(spec.modality_params, Rgb)
    rows = rows_of(spec.modality_params, RawVideo(path, path, video), view.times_s)
    rendered = spec.modality_params.render(rows, view, spec.views.size)
    return clip, torch.from_numpy(rendered)[None]


def rows_of(modality: Rgb, raw: RawVideo, moments_s: Sequence[float]) -> Rows:
    """The rows that a view of these moments looks up, as if read from an extracted shard.

    The row nearest to a moment is one of its two neighbours on the extraction's grid. Those alone are
    decoded, so an hour of video costs no more than a second.
    """
    extracted = list(modality.extract(raw, [(moment_s, moment_s) for moment_s in moments_s]))
    return _in_memory(extracted)


def _in_memory(rows: Sequence[Row]) -> Rows:
    payloads = pa.array([row.payload for row in rows], pa.large_binary())
    aspect = float(np.float32(rows[0].aspect))  # a shard stores float32, and the crop follows from it
    return Rows(
        np.array([row.time_s for row in rows]), aspect, [(payloads, place) for place in range(len(rows))]
    )


def download(model: str, workspace: Workspace, folder: Path) -> Path:
    """Fetch a version into `folder`, check it, and give the release folder in it."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    version = tracking.model_version(model, workspace)
    try:
        with tracking.addressed(workspace):
            download_artifacts(artifact_uri=f"models:/{version.name}/{version.version}", dst_path=str(folder))
    except (MlflowException, OSError) as error:
        raise InfrastructureError(f"the files of {model} cannot be fetched: {error}") from error
    refuse_pickles(folder, model)
    _refuse_changed(folder / RELEASE, version.tags, model)
    return folder / RELEASE


def refuse_pickles(folder: Path, model: str) -> None:
    """Make sure that nothing under `folder` can run code when it is loaded as data.

    Raises:
        UserError: a file is a pickle by its name or its first bytes, or an archive that may hold one.
    """
    for file in _files(folder):
        with file.open("rb") as stream:
            first = stream.read(4)
        if file.suffix.lower() in _PICKLES or first[:2] in _PICKLE_MAGIC or first == _ZIP_MAGIC:
            raise UserError(
                f"{model} holds {file.relative_to(folder)}, which may be a pickle: loading it could run code",
                remedy="do not use this version; find out who registered it",
            )


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
