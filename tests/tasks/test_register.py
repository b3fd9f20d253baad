"""The release and the registry, with a real store, a real report and tiny real networks."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from tasks import params as params_file
from tasks import register
from tasks.atomic import file_digest, write_json
from tasks.clips import Clip, Video, write_clips, write_videos
from tasks.errors import InfrastructureError, UserError
from tasks.export import forms
from tasks.layout import Workspace
from tasks.looking import Looker
from tasks.networks import Committee, Spec
from tasks.predict import load
from tasks.report.comparison import compare, score_models
from tasks.report.predictions import Model, Prediction, TestSplit
from tasks.report.tables import prediction_table
from tasks.scorecard import Scorecard
from tasks.shards import Row, write_shard
from tasks.stores import tracking

ROOT = Path(register.__file__).parents[1]
HEADS = {"verb": ["open", "cut"], "noun": ["pan", "tap", "box"]}
TRAINING = {
    "epochs": 2, "batch": 2, "learning_rate": 0.001, "weight_decay": 0.0, "warmup_epochs": 0,
    "decay": "linear", "clip_norm": 5.0, "ema": 0.0, "precision": "float32", "devices": 1,
}  # fmt: skip
BACKBONE = {
    "kind": "frames", "name": "test_convnext", "pretrained": False, "temporal": "mean", "normalise": "none",
    "dropout": 0.0, "drop_path": 0.0,
}  # fmt: skip
PARAMS = {
    "data": {
        "name": "kitchen", "format": "folder", "heads": HEADS, "validation_share": 0.2, "test_share": 0.2,
        "split_seed": 0, "slices": ["light"],
    },
    "seeds": [0, 1],
    "threads": 1,
    "views": {
        "frames": 2, "size": 32, "per_clip": 2, "zoom": [1.0, 1.2], "test_zoom": 1.0, "flip": False,
        "jitter": {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0},
    },
    "modalities": {
        "rgb": {"kind": "rgb", "shards": 1, "short_side": 32, "rate_hz": 5.0, "quality": 90, "change_s": None},
    },
    "teachers": {"look": {"modality": "rgb", "folds": 2, "hints": False, "backbone": BACKBONE, "training": TRAINING}},
    "fused": {},
    "specialists": {},
    "students": {
        "baseline": {
            "learns_from": "data/index", "backbone": BACKBONE, "training": TRAINING,
            "method": {"kind": "supervised", "head_weights": None, "label_smoothing": 0.0}, "ensemble": None,
        },
        "student": {
            "learns_from": "artifacts/teachings", "backbone": BACKBONE, "training": TRAINING,
            "method": {
                "kind": "kd", "temperature": 4.0, "divergence": "forward_kl", "distillation_weight": 0.5,
                "ground_truth_weight": 0.5, "unlabelled_weight": 0.0, "head_weights": None,
            },
            "ensemble": {
                "teachers": ["look"], "weights": "uniform", "weights_temperature": 1.0, "space": "probs",
                "views": "same",
            },
        },
    },
    "search": {
        "epochs": 1, "temperature": [1.0], "distillation_weight": [0.5], "divergence": ["forward_kl"],
        "weights_temperature": [1.0],
    },
    "gate": {
        "min_top1_gain": 0.0, "max_ece_increase": 0.02, "max_nll_increase": 0.05, "max_worst_slice_drop": 0.1,
        "min_slice_clips": 2, "max_latency_ratio": 1.5, "max_size_mb": 200.0, "promote": "manual",
    },
    "evaluate": {"clips": [1], "crops": [1], "bins": 15, "bootstrap": 50},
    "register": {"student": "auto", "head": "action", "parity": {"clips": 4, "tolerance": 1e-4}},
}  # fmt: skip


def parsed(**changes):
    return params_file.parse(yaml.safe_dump(PARAMS | changes), Path("params.yaml"))


def write_student(workspace, params, name, nlls):
    """artifacts/students/<name> with a network for each seed and the given action NLL on validation."""
    folder = workspace.student(name)
    for seed in nlls:
        torch.manual_seed(seed)
        spec = Spec(
            modality="rgb",
            modality_params=params.modalities["rgb"],
            views=params.views,
            heads=params.data.heads,
            backbone=params.students[name].backbone,
        )
        (folder / f"seed-{seed}").mkdir(parents=True)
        Committee(spec, [spec.new_network()], {"verb": 1.5, "noun": 0.5}).save(folder / f"seed-{seed}")
    method = params.students[name].method.kind
    figures = {"top1": 0.5, "nll": 1.0, "ece": 0.1}
    about = {
        "name": name,
        "role": "baseline" if method == "supervised" else "student",
        "method": method,
        "inference_modalities": ["rgb"],
        "seeds": list(nlls),
        "members": 1,
        "params_count": 123456,
        "gmacs": 0.25,
        "validation": {
            str(seed): {"action": {"top1": 0.25, "nll": nll}, "verb": figures, "noun": figures}
            for seed, nll in nlls.items()
        },
        "chosen": {str(seed): {"temperature": 4.0} if method == "kd" else {} for seed in nlls},
        "runs": {str(seed): None for seed in nlls},
    }
    write_json(folder / "student.json", about)


def write_report(workspace, params):
    """reports/ as far as a release needs it, by the report's own code, from random logits."""
    workspace.reports.mkdir()
    draw = np.random.default_rng(0)
    clips = 12
    test = TestSplit(
        clip_ids=[f"t{number}" for number in range(clips)],
        classes=HEADS,
        labels={head: torch.arange(clips) % len(classes) for head, classes in HEADS.items()},
        slices={"light": ["day", "night"] * 6},
    )
    models = []
    for name, role, method in (("look", "teacher", "supervised"), ("baseline", "baseline", "supervised"),
                               ("student", "student", "kd")):  # fmt: skip
        logits = {
            head: torch.from_numpy(draw.normal(size=(clips, len(c)))).float() for head, c in HEADS.items()
        }
        said = {
            seed: Prediction(logits, logits, torch.ones(clips, dtype=torch.bool)) for seed in params.seeds
        }
        models.append(Model(name, role, method, ["rgb"], 123456, 0.25, 1, said))
    prediction_table(models, test).to_parquet(workspace.reports / "predictions.parquet", index=False)
    scored = score_models(models, test)
    write_json(
        workspace.reports / "comparison.json", compare("kitchen", models, scored, test, params.evaluate)
    )
    pictures = workspace.reports / "plots" / "pictures"
    pictures.mkdir(parents=True)
    for name in ("reliability", "confusion-verb", "confusion-noun", "views"):
        (pictures / f"{name}.png").write_bytes(b"\x89PNG picture of " + name.encode())


def write_rgb(workspace):
    """data/modalities/rgb with the frames of v.mp4, noise."""
    draw = np.random.default_rng(0)

    def rows():
        for moment in range(10):
            _, jpeg = cv2.imencode(".jpg", draw.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            yield "v.mp4", Row(moment / 5, 1.0, jpeg.tobytes())

    write_shard(workspace.modality("rgb") / "shard-0.arrow", rows())
    write_json(
        workspace.modality("rgb") / "manifest.json", {"shards": [{"file": "shard-0.arrow"}], "problems": {}}
    )


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("UNDERSTUDY_WORK", "work")
    workspace, params = Workspace(tmp_path / "clone"), parsed()
    clips = [
        Clip(f"c{n}", "v.mp4", 0.0, 1.0, f"p{n}", split, {"verb": "cut", "noun": "pan"}, {"light": "day"})
        for n, split in enumerate(["train"] * 3 + ["val"])
    ]
    clips += [
        Clip(
            f"t{n}", "v.mp4", 0.0, 1.0, f"q{n}", "test",
            {head: classes[n % len(classes)] for head, classes in HEADS.items()},
            {"light": ["day", "night"][n % 2]},
        )
        for n in range(12)
    ]  # fmt: skip
    write_clips(workspace.index / "clips.csv", clips, HEADS, ["light"])
    write_videos(
        workspace.index / "videos.csv",
        [Video("v.mp4", "0" * 64, 1, "h264", 64, 64, 0, 30.0, 2.0, "decord", 0, False, "")],
    )
    write_student(workspace, params, "baseline", {0: 1.4, 1: 1.3})
    write_student(workspace, params, "student", {0: 1.2, 1: 1.1})
    write_report(workspace, params)
    write_rgb(workspace)
    (workspace.root / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    (workspace.root / "data.dvc").write_text("outs:\n- md5: 0123456789abcdef.dir\n  path: raw\n")
    return workspace


def release_of(workspace):
    return json.loads((workspace.release / "release.json").read_text())


def test_the_release_holds_the_best_seed_of_the_best_student(workspace):
    register.package(parsed(), workspace)
    release = release_of(workspace)
    assert (release["student"], release["seed"], release["method"]) == ("student", 1, "kd")
    assert (release["lesson"], release["teachers"]) == ("heard", parsed().heard_by("student"))
    assert [(c["name"], c["nll"]) for c in release["chosen_by"]["candidates"]] == [
        ("baseline", pytest.approx(1.35)),
        ("student", pytest.approx(1.15)),
    ]
    own = workspace.student("student") / "seed-1" / "weights-0.safetensors"
    assert (workspace.release / "weights-0.safetensors").read_bytes() == own.read_bytes()
    assert set(release["files"]) == {
        "comparison.json", "comparison.md", "confusion-noun.png", "confusion-verb.png", "model_card.md",
        "parity.json", "reliability.png", "seen.json", "spec.json", "student.onnx", "student.pt2",
        "test_predictions.parquet", "weights-0.safetensors",
    }  # fmt: skip
    assert all(file_digest(workspace.release / file) == value for file, value in release["files"].items())
    assert load(str(workspace.release)).temperature == {"verb": 1.5, "noun": 0.5}


def test_the_release_knows_what_its_network_said_of_the_test_clips(workspace):
    register.package(parsed(), workspace)
    scorecard = Scorecard.read(workspace.release)
    assert (scorecard.heads, scorecard.clips) == (["action", "noun", "verb"], 12)
    assert release_of(workspace)["test_digest"] == scorecard.digest
    reported = pd.read_parquet(workspace.reports / "predictions.parquet")
    own = reported.query("name == 'student' and seed == 1 and head == 'noun'").set_index("clip_id")
    kept = scorecard.table.query("head == 'noun'").set_index("clip_id")
    assert kept["confidence"].to_dict() == own["confidence"].to_dict()
    assert kept["slice:light"].to_dict() == {f"t{n}": ["day", "night"][n % 2] for n in range(12)}


def test_the_release_is_the_same_bytes_again(workspace):
    def digests():
        register.package(parsed(), workspace)
        return {file.name: file_digest(file) for file in workspace.release.iterdir()}

    assert digests() == digests()


def test_a_student_that_params_name_is_taken_whatever_its_figures(workspace):
    register.package(parsed(register=PARAMS["register"] | {"student": "baseline"}), workspace)
    assert (release_of(workspace)["student"], release_of(workspace)["seed"]) == ("baseline", 1)
    assert "params.yaml names it" in (workspace.release / "model_card.md").read_text()


def test_a_baseline_that_is_best_ships_and_the_card_says_so(workspace):
    about = json.loads((workspace.student("baseline") / "student.json").read_text())
    about["validation"]["0"]["action"]["nll"] = 0.5
    write_json(workspace.student("baseline") / "student.json", about)
    register.package(parsed(), workspace)
    assert (release_of(workspace)["student"], release_of(workspace)["seed"]) == ("baseline", 0)
    assert "not a distilled student" in (workspace.release / "model_card.md").read_text()


def test_the_card_of_a_refused_lesson_says_who_did_not_teach(workspace):
    file = workspace.student("student") / "student.json"
    about = json.loads(file.read_text())
    for chosen in about["chosen"].values():
        chosen["refusal"] = {"lesson": 1.5, "labels": 1.25, "error": 0.125, "refused": True}
    write_json(file, about)
    register.package(parsed(), workspace)
    card = (workspace.release / "model_card.md").read_text()
    assert "The lesson of its teachers was refused" in card
    assert "Taught by" not in card
    release = release_of(workspace)
    assert (release["lesson"], release["teachers"]) == ("refused", [])


def test_the_card_tells_what_a_user_must_know(workspace):
    register.package(parsed(), workspace)
    card = (workspace.release / "model_card.md").read_text()
    comparison = json.loads((workspace.reports / "comparison.json").read_text())
    action = next(row for row in comparison["rows"] if row["name"] == "student")["heads"]["action"]
    low, high = action["top1_ci95"]
    assert f"| action | {action['top1']:.3f} [{low:.3f}, {high:.3f}] |" in card
    assert "3 clips train, 1 clips val, 12 clips test" in card
    assert "`verb` 1.500, `noun` 0.500" in card
    assert "`look` (rgb, 2 folds" in card
    assert "| night | 6 |" in card
    assert "123,456 parameters, 0.250 GMACs" in card
    assert "![Reliability diagrams of all models on the test split](reliability.png)" in card
    assert "![Confusion matrices on the test split](confusion-verb.png)" in card
    parity = json.loads((workspace.release / "parity.json").read_text())
    assert f"| ONNX | student.onnx | {parity['forms']['onnx']['max_abs_diff']} |" in card
    for part in (
        "Intended use", "Data", "Method", "Figures", "Calibration", "Confusion", "Slices", "Cost", "Forms", "Limits",
    ):  # fmt: skip
        assert f"# {part}" in card
    assert "\n\n\n" not in card


def test_a_student_that_was_not_trained_is_named(workspace):
    (workspace.student("student") / "student.json").unlink()
    with pytest.raises(UserError, match=r"student\.json"):
        register.package(parsed(), workspace)


def test_registering_without_a_release_is_refused(workspace):
    with pytest.raises(UserError, match="there is no release"):
        register.ensure(workspace)


def test_a_release_that_was_changed_is_refused(workspace):
    register.package(parsed(), workspace)
    (workspace.release / "spec.json").write_text("{}")
    with pytest.raises(UserError, match=r"changed since it was packaged: spec\.json"):
        register.ensure(workspace)


def test_without_mlflow_the_release_is_there_and_the_failure_can_be_retried(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # discard: nothing listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InfrastructureError, match="run `dvc repro register` again"):
        register.run(parsed(), workspace)
    assert (workspace.release / "release.json").exists()


def test_the_model_brings_every_library_its_code_imports():
    """What the served rooms import from outside is among the model's pip requirements."""
    program = textwrap.dedent("""
        import ast, sys
        from importlib.metadata import packages_distributions

        import tasks.serving

        known, wanted = packages_distributions(), set()
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] in ("tasks", "models") and getattr(module, "__file__", None):
                for node in ast.walk(ast.parse(open(module.__file__).read())):
                    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                    names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
                    wanted |= {known[name.split(".")[0]][-1] for name in names if name.split(".")[0] in known}
        print(*wanted - {"mlflow-tracing", "mlflow-skinny", "understudy"})
    """)
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert set(run.stdout.split()) <= set(register._REQUIREMENTS)


def versions(workspace):
    return tracking.client(workspace).search_model_versions(f"name = '{register.MODEL}'")


def aliases(workspace):
    found = tracking.client(workspace).get_registered_model(register.MODEL).aliases
    return {alias: int(version) for alias, version in found.items()}


def test_the_registry_from_first_version_to_a_planted_pickle(workspace, tmp_path, capsys):
    """One story, because a store and a logged model take seconds each."""
    register.run(parsed(), workspace)
    assert (
        "version 1 is now in the MLflow registry: student, by NLL of the action on validation "
        "(baseline 1.350, student 1.150)"
    ) in capsys.readouterr().out
    (first,) = versions(workspace)
    assert aliases(workspace) == {"champion": 1}
    expected = {
        "data_dvc_md5": "0123456789abcdef.dir",
        "params_sha256": file_digest(workspace.root / "params.yaml"),
        "teachers": "look",
        "gate_verdict": "first",
        "data_digest": release_of(workspace)["data_digest"],
        "method": "kd",
        "validation_action_nll": "1.1000",
        "release_digest": file_digest(workspace.release / "release.json"),
        "sha256.weights-0.safetensors": file_digest(workspace.release / "weights-0.safetensors"),
        "sha256.release.json": file_digest(workspace.release / "release.json"),
    }
    assert expected.items() <= first.tags.items()
    assert "test_action_top1" in first.tags
    assert first.description.startswith("**Gate: first.** Version 1 is the first")
    assert "# understudy-student: student, seed 1" in first.description
    assert "`reliability.png` among the model's artifacts" in first.description
    assert "![" not in first.description
    assert first.source.startswith("models:/m-")

    # Again, and again by hand: nothing new. A lost alias is mended.
    tracking.client(workspace).delete_registered_model_alias(register.MODEL, "champion")
    register.run(parsed(), workspace)
    assert len(versions(workspace)) == 1
    assert aliases(workspace) == {"champion": 1}

    # Another student becomes the challenger, the champion stays.
    register.run(parsed(register=PARAMS["register"] | {"student": "baseline"}), workspace)
    assert aliases(workspace) == {"champion": 1, "challenger": 2}

    # Both ways of naming a version give its own networks.
    for model, name in (("@champion", "student"), ("/2", "baseline")):
        loaded = load(f"models:/{register.MODEL}{model}", workspace)
        own = Committee.load(workspace.student(name) / "seed-1")
        assert all(
            torch.equal(value, own.members[0].state_dict()[key])
            for key, value in loaded.members[0].state_dict().items()
        )
    with pytest.raises(UserError, match="the registry has no"):
        load(f"models:/{register.MODEL}@nobody", workspace)
    with pytest.raises(UserError, match="the registry has no"):
        load(f"models:/{register.MODEL}/99", workspace)

    of_the_model(workspace, first, tmp_path)
    after_the_round_trip(workspace, tmp_path)

    logged = next(
        (workspace.root / "work" / "mlartifacts").rglob(f"{first.source.removeprefix('models:/')}/artifacts")
    )
    weights = logged / "artifacts" / "release" / "weights-0.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(UserError, match=r"not what was registered: weights-0\.safetensors"):
        load(f"models:/{register.MODEL}@champion", workspace)
    weights.write_bytes(kept)
    (logged / "python_model.pkl").write_bytes(b"\x80\x04\x95")
    with pytest.raises(UserError, match=r"holds python_model\.pkl, which may be a pickle"):
        load(f"models:/{register.MODEL}@champion", workspace)


def of_the_model(workspace, version, tmp_path):
    """Pictures, tables and forms are the LoggedModel's own, and its tags tell what they are."""
    import mlflow

    with tracking.addressed(workspace):
        mlflow.artifacts.download_artifacts(artifact_uri=version.source, dst_path=str(tmp_path / "logged"))
    release = tmp_path / "logged" / "artifacts" / "release"
    for name in ("reliability.png", "confusion-verb.png", "comparison.json", "student.pt2", "student.onnx"):
        assert (release / name).read_bytes() == (workspace.release / name).read_bytes()
        assert version.tags[f"sha256.{name}"] == file_digest(release / name)
    assert "| student | student | rgb | action |" in (release / "comparison.md").read_text()
    parity = json.loads((release / "parity.json").read_text())
    assert parity["clips"] == PARAMS["register"]["parity"]["clips"]
    for name in ("pt2", "onnx"):
        assert float(version.tags[f"parity.{name}"]) == parity["forms"][name]["max_abs_diff"] <= 1e-5
        assert int(version.tags[f"size_bytes.{name}"]) == (release / f"student.{name}").stat().st_size
    for name in ("torch", "pt2", "onnx"):
        assert float(version.tags[f"latency_ms.{name}"]) > 0
    assert not list((tmp_path / "logged").rglob("*.pkl"))
    example = json.loads((tmp_path / "logged" / "serving_input_example.json").read_text())
    assert example["dataframe_split"]["data"][0][0].startswith("data:video/mp4;base64,")


def after_the_round_trip(workspace, tmp_path):
    """The pyfunc, in a process that has nothing of the clone but the registry, says what the other forms say."""
    program = textwrap.dedent("""
        import base64, sys
        import av, mlflow
        import numpy as np
        import pandas as pd
        from mlflow.exceptions import MlflowException

        assert not [place for place in sys.path if place == sys.argv[2]]
        mlflow.set_tracking_uri(sys.argv[1])
        model = mlflow.pyfunc.load_model("models:/understudy-student@champion")
        url = "data:video/mp4;base64," + base64.b64encode(open("clip.mp4", "rb").read()).decode()
        with av.open("clip.mp4") as container:
            clip = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        answer = model.predict(pd.DataFrame({"video": [url, url]}))
        of_frames = model.predict(pd.DataFrame({"clip": [clip], "rate_hz": [10.0]}))
        try:
            model.predict(pd.DataFrame({"video": ["clip.mp4"]}))
        except MlflowException as error:
            print(error.get_http_status_code(), error.message)
        import tasks
        print(list(tasks.__path__)[0])
        print(of_frames.to_json(orient="records"))
        print(answer.to_json(orient="records"))
    """)
    write_video(tmp_path / "clip.mp4")
    run = subprocess.run(
        [sys.executable, "-I", "-c", program, tracking.store_uri(workspace), str(ROOT)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    refused, place, of_frames, answer = run.stdout.strip().splitlines()[-4:]
    assert refused.startswith("400 row 0: this server reads no paths")
    assert not place.startswith(str(ROOT))
    first, second = json.loads(answer)
    assert first == second
    for head in HEADS:  # the two readers differ in the last bit of a colour
        assert json.loads(of_frames)[0][f"{head}_probs"] == pytest.approx(first[f"{head}_probs"], abs=0.02)
    assert sum(first["noun_probs"].values()) == pytest.approx(1, abs=1e-6)
    assert first["verb"] == max(first["verb_probs"], key=first["verb_probs"].get)

    committee = load(f"models:/{register.MODEL}@champion", workspace)
    rgb, views = committee.spec.modality_params, committee.spec.views
    with Looker(rgb, views, timeout_s=60, longest_s=None) as looker:
        shown = torch.from_numpy(looker.look(tmp_path / "clip.mp4", None).shown)[None]
    for name, form in forms(tmp_path / "logged" / "artifacts" / "release").items():
        for head, classes in HEADS.items():
            said = dict(zip(classes, form(shown)[head][0].tolist(), strict=True))
            assert first[f"{head}_probs"] == pytest.approx(said, abs=1e-5), name


def write_video(file):
    import av

    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(10):
            picture = np.full((48, 64, 3), 25 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
