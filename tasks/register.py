"""Stage `register`: the best student by validation, packaged with a model card, becomes a version in MLflow.

The release folder depends on the stage's inputs alone, so it can be cached and compared; what depends on the
clone (git commit, hashes of dvc.lock) goes to the registry's tags.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pandas as pd

from tasks.atomic import digest, file_digest, new_folder, write_json, write_text
from tasks.clips import SPLITS, read_clips, read_videos
from tasks.compare import markdown
from tasks.errors import InfrastructureError, UserError
from tasks.example_video import data_url
from tasks.export import ONNX, PARITY, PT2, export, latency_ms
from tasks.layout import Workspace
from tasks.networks import Committee
from tasks.params import Params
from tasks.predict import FILE_TAG, refuse_pickles
from tasks.scorecard import Scorecard
from tasks.seen import Seen
from tasks.serving import CLIP, RATE, VIDEO
from tasks.settings import settings
from tasks.stores import tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MODEL = tracking.MODEL
ABOUT = "Recognises actions in first-person video, RGB alone."
HISTORY = "history."
"""Begins the name of a version's tag that says who moved it, or did not want it, and why."""
LONGEST_DESCRIPTION = 5000
"""Characters of a description that every store of MLflow takes."""

_ROOT = Path(__file__).parents[1]
_SERVED = ("tasks", "models")  # the rooms that mlflow/student.py imports; they travel with the model
ANSWERS = (
    "mlflow/student.py", "tasks/looking.py", "tasks/modalities/frames.py", "tasks/modalities/rgb.py",
    "tasks/predict.py", "tasks/serving.py", "tasks/stores/aside.py", "tasks/stores/faults.py", "tasks/stores/probe.py",
    "tasks/stores/video.py",
)  # fmt: skip
"""Code that stands between a request and the network: mended, it makes a new version of the same weights."""
_REQUIREMENTS = (
    "mlflow", "torch", "torchvision", "timm", "safetensors", "numpy", "scipy", "pandas", "pyarrow", "pydantic",
    "pydantic-settings", "PyYAML", "psutil", "opencv-python-headless", "av", "decord",
)  # fmt: skip
_REPEATS = 20
"""Clips that a form's latency is the median of."""
_TEST_FIGURES = ("top1", "top5", "ece_scaled", "nll_scaled")


@dataclass(frozen=True)
class Candidate:
    """A trained student that may be shipped.

    Attributes:
        folder: artifacts/students/<name>.
        about: its student.json.
    """

    folder: Path
    about: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Candidate":
        """Read what `distill` wrote.

        Raises:
            UserError: the student was not trained.
        """
        file = folder / "student.json"
        try:
            return cls(folder, json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UserError("not found", file=file, remedy="run `dvc repro` or `dvc pull`") from None

    @property
    def name(self) -> str:
        """Its entry in params.yaml."""
        return str(self.about["name"])

    def nll(self, head: str) -> float:
        """NLL of `head` on validation, mean over seeds."""
        return float(np.mean([figures[head]["nll"] for figures in self.about["validation"].values()]))

    def best_seed(self, head: str) -> int:
        """The seed with the lowest NLL of `head` on validation; the first of equals."""
        return min(self.about["seeds"], key=lambda seed: self.about["validation"][str(seed)][head]["nll"])


def run(params: Params, workspace: Workspace, item: str | None = None) -> None:
    """Package the student to ship as artifacts/release, register it, and have the gate judge it.

    Raises:
        UserError: a student of params.yaml was not trained.
        InfrastructureError: MLflow failed; the release is built, and registering again is cheap.
    """
    package(params, workspace)
    register(params, workspace)


def register(params: Params, workspace: Workspace) -> None:
    """Make the release a version of the registered model unless it is one, and have the gate judge it.

    Raises:
        UserError, InfrastructureError: see `ensure` and `tasks.promotion.settle`.
    """
    from tasks import promotion  # it knows the release; this module need not know it to write one

    promotion.settle(params, workspace, ensure(workspace))


def choose(candidates: Sequence[Candidate], asked: str, head: str) -> Candidate:
    """The candidate named `asked`, or for auto the one with the lowest validation NLL of `head`.

    The baseline is a candidate like the others: where teachers did not help, it ships.
    """
    if asked != "auto":
        return next(candidate for candidate in candidates if candidate.name == asked)
    return min(candidates, key=lambda candidate: candidate.nll(head))


def package(params: Params, workspace: Workspace) -> None:
    """Write artifacts/release: the network in all its forms, release.json, the model card, tables and pictures.

    Raises:
        UserError: nothing was trained or evaluated, or an exported form differs from the network.
    """
    asked, head = params.register_.student, params.register_.head
    candidates = [Candidate.read(workspace.student(name)) for name in params.students]
    chosen = choose(candidates, asked, head)
    seed = chosen.best_seed(head)
    comparison = _comparison(workspace)
    scorecard = _scorecard(workspace, chosen.name, seed)
    settled = chosen.about["chosen"].get(str(seed), {})
    is_refused = settled.get("refusal", {}).get("refused", False)
    teachers = params.heard_by(chosen.name)
    release = {
        "name": MODEL,
        "answers": digest([file_digest(_ROOT / name) for name in ANSWERS]),
        "student": chosen.name,
        "role": chosen.about["role"],
        "seed": seed,
        "method": chosen.about["method"],
        "lesson": "refused" if is_refused else "heard" if teachers else "none",
        "teachers": [] if is_refused else teachers,
        "chosen": settled,
        "chosen_by": {
            "asked": asked,
            "head": head,
            "candidates": [
                {"name": candidate.name, "role": candidate.about["role"], "nll": candidate.nll(head)}
                for candidate in candidates
            ],
        },
        "data": params.data.name,
        "data_digest": _data_digest(workspace),
        "validation": chosen.about["validation"][str(seed)],
        "test": _test_figures(comparison, chosen.name),
        "test_digest": scorecard.digest if scorecard else None,
        "params_count": chosen.about["params_count"],
        "gmacs": chosen.about["gmacs"],
    }
    with new_folder(workspace.release) as folder:
        shutil.copytree(chosen.folder / f"seed-{seed}", folder, dirs_exist_ok=True)
        parity = export(folder, params.register_.parity, workspace)
        for picture in _pictures(workspace):
            shutil.copyfile(picture, folder / picture.name)
        write_json(folder / "comparison.json", comparison)
        write_text(folder / "comparison.md", markdown(comparison) + "\n")
        card = _card(params, workspace, release, comparison, Committee.load(folder), parity)
        write_text(folder / "model_card.md", card)
        if scorecard:
            scorecard.write(folder)
        Seen.of(read_clips(workspace.index), read_videos(workspace.index)).write(folder)
        refuse_pickles(folder, MODEL)
        files = {file.name: file_digest(file) for file in sorted(folder.iterdir())}
        write_json(folder / "release.json", release | {"files": files})


def ensure(workspace: Workspace) -> "ModelVersion":
    """Make the release a version of the registered model unless it is one, and give it its alias.

    The first version becomes champion, later ones challenger.

    Returns:
        The version.

    Raises:
        UserError: there is no release, or its files are not those of release.json.
        InfrastructureError: MLflow cannot be reached or fails.
    """
    release = _read_release(workspace.release)
    key = file_digest(workspace.release / "release.json")
    from tasks.stores import failures

    try:
        client = tracking.client(workspace)
        found = client.search_model_versions(f"name = '{MODEL}' and tags.release_digest = '{key}'")
        with tracking.addressed(workspace):
            registered = found[0] if found else _register(client, workspace, release, key)
        _point_alias(client, registered)
        tracking.deliver(workspace)  # trainings that no run came after
    except failures.REGISTRY as error:
        raise InfrastructureError(
            f"MLflow at {tracking.shown_uri(workspace)} did not register the release "
            f"({tracking.told(error, workspace)})\n  → the release itself is in {workspace.release}; "
            "run `dvc repro register` again when MLflow is back"
        ) from error
    print(
        f"{MODEL} version {registered.version} {'was' if found else 'is now'} in the MLflow registry: "
        + _why_chosen(release)
    )
    return registered


def _why_chosen(release: Mapping[str, Any]) -> str:
    """Which student it is, and by what."""
    asked, head = release["chosen_by"]["asked"], release["chosen_by"]["head"]
    if asked != "auto":
        return f"{release['student']}, as params.yaml says"
    found = [
        f"{candidate['name']} {candidate['nll']:.3f}" for candidate in release["chosen_by"]["candidates"]
    ]
    return f"{release['student']}, by NLL of the {head} on validation ({', '.join(found)})"


def _register(
    client: "MlflowClient", workspace: Workspace, release: Mapping[str, Any], key: str
) -> "ModelVersion":
    """Log the release as a model with code, and make it a version."""
    import mlflow
    from mlflow.entities import Dataset, DatasetInput

    tags = tracking.lineage(workspace) | {
        "release_digest": key,
        "data": release["data"],
        "data_digest": release["data_digest"],
        "test_digest": release["test_digest"] or "",
        "student": release["student"],
        "role": release["role"],
        "method": release["method"],
        "lesson": release["lesson"],
        "teachers": ", ".join(release["teachers"]) or "none",
        "seed": str(release["seed"]),
    }
    figures = _flat_figures(release)
    experiment = tracking.experiment(client, workspace, release["data"])
    name = f"register {release['student']} seed {release['seed']}"
    parent = tracking.pipeline_run(client, workspace, experiment, settings().pipeline_run)
    with mlflow.start_run(
        experiment_id=experiment,
        run_name=name,
        tags=tags | {"stage": "register"} | tracking.nested(parent),
    ) as opened:
        dataset = Dataset(
            release["data"],
            release["data_digest"],
            source_type="dvc",
            source=json.dumps({"path": "data/index"}),
        )
        client.log_inputs(opened.info.run_id, datasets=[DatasetInput(dataset, tags=[])])
        mlflow.log_metrics(figures)
        logged = _log_model(workspace)
        try:
            client.create_registered_model(MODEL, description=ABOUT)
        except mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        card = (workspace.release / "model_card.md").read_text(encoding="utf-8")
        if parent:
            client.set_terminated(parent)
        return client.create_model_version(
            MODEL,
            logged.model_uri,
            run_id=opened.info.run_id,
            model_id=logged.model_id,
            description=without_pictures(card)[:LONGEST_DESCRIPTION],
            tags=tags
            | {metric: f"{value:.4f}" for metric, value in figures.items()}
            | _measured(workspace.release)
            | {FILE_TAG + file: value for file, value in _digests(workspace.release).items()},
        )


def _measured(release: Path) -> dict[str, str]:
    """Tags that tell the exported forms: parity, size, and the latency of a clip on this machine."""
    parity = json.loads((release / PARITY).read_text(encoding="utf-8"))
    weights = sum(file.stat().st_size for file in release.glob("weights-*.safetensors"))
    sizes = {
        "safetensors": weights,
        "pt2": (release / PT2).stat().st_size,
        "onnx": (release / ONNX).stat().st_size,
    }
    return (
        {f"parity.{name}": f"{form['max_abs_diff']:g}" for name, form in parity["forms"].items()}
        | {f"size_bytes.{name}": str(size) for name, size in sizes.items()}
        | {f"latency_ms.{name}": f"{value:.2f}" for name, value in latency_ms(release, _REPEATS).items()}
    )


def _log_model(workspace: Workspace) -> Any:
    """The LoggedModel: mlflow/student.py, the rooms it imports, and the release folder."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec
    from mlflow.types.schema import AnyType, Map

    # MLflow would check an array of four dimensions number by number, which takes minutes; serving.py does it at once.
    asked: list[ColSpec | TensorSpec] = [
        ColSpec("string", VIDEO, required=False),
        ColSpec(AnyType(), CLIP, required=False),
        ColSpec("double", RATE, required=False),
    ]
    answers: list[ColSpec | TensorSpec] = []
    for head in Committee.load(workspace.release).spec.heads:
        answers += [ColSpec("string", head), ColSpec(Map("double"), f"{head}_probs")]
    return mlflow.pyfunc.log_model(
        name=MODEL,
        python_model=str(_ROOT / "mlflow" / "student.py"),
        artifacts={"release": str(workspace.release)},
        code_paths=[str(_ROOT / room) for room in _SERVED],
        pip_requirements=[f"{name}=={installed_version(name).split('+')[0]}" for name in _REQUIREMENTS],
        signature=ModelSignature(inputs=Schema(asked), outputs=Schema(answers)),
        input_example=pd.DataFrame({VIDEO: [data_url()]}),
    )


def _point_alias(client: "MlflowClient", registered: "ModelVersion") -> None:
    """Champion for the first version, challenger for the newest one; older ones keep what they have.

    Where there are others and no champion, somebody took it away: the next one is for a person to choose.

    Done also for a version that was there before, because the run that created it may have been killed; not for
    one with a history: it was champion, or declined, and somebody had a reason.
    """
    model = client.get_registered_model(MODEL)
    versions = [int(found.version) for found in client.search_model_versions(f"name = '{MODEL}'")]
    newest = max(versions)
    if "champion" not in model.aliases and len(versions) == 1:
        client.set_registered_model_alias(MODEL, "champion", registered.version)
    elif (
        int(registered.version) == newest
        and str(newest) not in map(str, model.aliases.values())
        and not any(tag.startswith(HISTORY) for tag in registered.tags)
    ):
        client.set_registered_model_alias(MODEL, "challenger", registered.version)


def _flat_figures(release: Mapping[str, Any]) -> dict[str, float]:
    flat = {
        f"validation_{head}_{metric}": value
        for head, figures in release["validation"].items()
        for metric, value in figures.items()
    }
    for head, figures in (release["test"] or {}).items():
        flat |= {f"test_{head}_{metric}": figures[metric] for metric in _TEST_FIGURES}
    return flat


def _digests(release: Path) -> dict[str, str]:
    return {file.name: file_digest(file) for file in sorted(release.iterdir())}


def _read_release(folder: Path) -> dict[str, Any]:
    try:
        release: dict[str, Any] = json.loads((folder / "release.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("there is no release", file=folder, remedy="run `dvc repro` or `dvc pull`") from None
    found = _digests(folder)
    del found["release.json"]
    if found != release["files"]:
        wrong = sorted(name for name, _ in found.items() ^ release["files"].items())
        raise UserError(
            f"changed since it was packaged: {', '.join(dict.fromkeys(wrong))}",
            file=folder,
            remedy="run `dvc repro register`",
        )
    return release


def _scorecard(workspace: Workspace, student: str, seed: int) -> Scorecard | None:
    """What the network that ships said of the test clips; None where the report does not hold it."""
    file = workspace.reports / "predictions.parquet"
    try:
        predictions = pd.read_parquet(file)
    except FileNotFoundError:
        raise UserError("not found", file=file, remedy="run `dvc repro evaluate`") from None
    clips, videos = read_clips(workspace.index, "test"), read_videos(workspace.index)
    return Scorecard.of(predictions, student, seed, clips, videos)


def _data_digest(workspace: Workspace) -> str:
    """Names the clips with their labels and splits, and the bytes of their videos."""
    return digest([file_digest(workspace.index / name) for name in ("clips.csv", "videos.csv")])


def _comparison(workspace: Workspace) -> dict[str, Any]:
    file = workspace.reports / "comparison.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError("not found", file=file, remedy="run `dvc repro evaluate`") from None


def _pictures(workspace: Workspace) -> list[Path]:
    """The report's reliability diagrams and confusion matrices."""
    folder = workspace.reports / "plots" / "pictures"
    return [folder / "reliability.png", *sorted(folder.glob("confusion-*.png"))]


def _row(comparison: Mapping[str, Any], student: str) -> Mapping[str, Any] | None:
    rows = (
        row for row in comparison["rows"] if row["name"] == student and row["role"] in ("baseline", "student")
    )
    return next(rows, None)


def _test_figures(comparison: Mapping[str, Any], student: str) -> dict[str, Any] | None:
    row = _row(comparison, student)
    return None if row is None else row["heads"]


def _card(
    params: Params,
    workspace: Workspace,
    release: Mapping[str, Any],
    comparison: Mapping[str, Any],
    committee: Committee,
    parity: Mapping[str, Any],
) -> str:
    """The model card as Markdown, from mlflow/model_card.md.jinja."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ROOT / "mlflow"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    clips = read_clips(workspace.index)
    row = _row(comparison, release["student"])
    return environment.get_template("model_card.md.jinja").render(
        name=MODEL,
        release=release,
        views=committee.spec.views,
        heads=committee.spec.heads,
        data={
            "name": params.data.name,
            "clips": {
                split: count
                for split in (*SPLITS, "unlabelled")
                if (count := sum(clip.split == split for clip in clips))
            },
        },
        teachers=[
            {"name": name, "modality": " + ".join(params.seen_by(name)), "folds": params.folds(name)}
            for name in params.heard_by(release["student"])
        ],
        temperature=committee.temperature,
        pictures=[picture.name for picture in _pictures(workspace)],
        parity=parity,
        interval=_interval,
        test=None
        if row is None
        else {
            "row": row,
            "rows": comparison["rows"],
            "clips": comparison["clips"],
            "seeds": comparison["seeds"],
            "head": params.register_.head,
            "slices": _slices(comparison, release["student"]),
        },
    )


def without_pictures(card: str) -> str:
    """A model card for a page that has no files beside it, as MLflow's and Prefect's: its pictures are named."""
    return re.sub(r"^!\[(.*)\]\((.*)\)$", r"\1: `\2` among the model's artifacts.", card, flags=re.MULTILINE)


def _interval(figures: Mapping[str, Any], metric: str) -> str:
    """A figure with its 95 % interval, as 0.612 [0.540, 0.683]."""
    low, high = figures[f"{metric}_ci95"]
    return f"{figures[metric]:.3f} [{low:.3f}, {high:.3f}]"


def _slices(comparison: Mapping[str, Any], student: str) -> dict[str, dict[str, Any]]:
    """Slice column → value → number of clips and the student's top-1 of the action."""
    return {
        column: {
            value: {"clips": part["clips"], "top1": part["top1"][student]} for value, part in values.items()
        }
        for column, values in comparison["slices"].items()
    }
