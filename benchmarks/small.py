"""A clone in small: all real stages on clips of a moving square with a tone, two epochs, one seed.

For end-to-end tests, and for measurements in which the learning does not matter.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import yaml

ROOT = Path(__file__).parents[1]
RATE_HZ, SECONDS, SIZE = 10, 2, 64
SIDES = {"left": -1, "right": 1}
SHADES = {"red": (220, 60, 40), "blue": (40, 60, 220)}
SPLITS = ("train",) * 8 + ("val",) * 2 + ("test",) * 2
"""Of each group of the small clone; a group is one clip to the left and one to the right."""


SECRET = "never-to-be-written-57f1"
"""In every variable that holds one, of each command."""


def survivors(family: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those of a killed process's children that still run, 15 s later at most; a zombie has ended."""

    def runs(process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    deadline = time.monotonic() + 15
    while (left := [process for process in family if runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@dataclass(frozen=True)
class Workspace:
    """A clone and the environment its commands run in."""

    root: Path
    environment: dict[str, str]

    def understudy(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run the command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    def start(self, *command: str) -> "subprocess.Popen[bytes]":
        """Start a Python module as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", *command], cwd=self.root, env=self.environment, stdout=subprocess.DEVNULL
        )

    def set_epochs(self, teacher: str, epochs: int) -> None:
        """Change one number of params.yaml."""
        params = yaml.safe_load((self.root / "params.yaml").read_text())
        params["teachers"][teacher]["training"]["epochs"] = epochs
        (self.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    @property
    def report(self) -> dict[str, Any]:
        """reports/comparison.json"""
        return dict(json.loads((self.root / "reports" / "comparison.json").read_text()))

    def copy(self, root: Path) -> "Workspace":
        """The same clone elsewhere, DVC's cache included."""
        shutil.copytree(self.root, root, symlinks=True)
        return Workspace(root, self.environment)


def _write_video(path: Path, side: int, shade: tuple[int, int, int], offset: int) -> list[dict[str, Any]]:
    """A square that slides to one side under a tone of its own; returns its boxes."""
    frames = []
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("h264", rate=RATE_HZ)
        pictures.width, pictures.height, pictures.pix_fmt = SIZE, SIZE, "yuv420p"
        sound = container.add_stream("aac", rate=16000)
        sound.layout = "mono"
        for number in range(RATE_HZ * SECONDS):
            picture = np.full((SIZE, SIZE, 3), 90 + offset, np.uint8)
            left = SIZE // 2 - 8 + side * (number - RATE_HZ)
            picture[24:40, left : left + 16] = shade
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            box = [left / SIZE, 24 / SIZE, (left + 16) / SIZE, 40 / SIZE]
            frames.append(
                {"time_s": number / RATE_HZ, "boxes": [{"box": box, "category": "object", "score": 0.9}]}
            )
        container.mux(pictures.encode())
        tone = 0.3 * np.sin(np.arange(16000 * SECONDS) * (0.2 + 0.1 * side + offset / 500))
        heard = av.AudioFrame.from_ndarray(tone.astype(np.float32)[None], format="fltp", layout="mono")
        heard.sample_rate = 16000
        container.mux([*sound.encode(heard), *sound.encode()])
    return frames


def _write_raw(raw: Path, splits: Sequence[str]) -> None:
    for folder in ("videos", "detections"):
        (raw / folder).mkdir(parents=True)
    rows = []
    for group, split in enumerate(splits):
        for verb, side in SIDES.items():
            noun = list(SHADES)[(group + side) // 2 % 2]
            name = f"{group}-{verb}"
            boxes = _write_video(raw / "videos" / f"{name}.mp4", side, SHADES[noun], 3 * (group % 12))
            (raw / "detections" / f"{name}.mp4.jsonl").write_text(
                "".join(json.dumps(frame) + "\n" for frame in boxes)
            )
            rows.append([name, name + ".mp4", 0.0, SECONDS - 0.1, f"p{group}", split, verb, noun])
    with (raw / "annotations.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["clip_id", "video", "start_s", "stop_s", "group", "split", "verb", "noun"])
        writer.writerows(rows)


def tiny(params: dict[str, Any]) -> dict[str, Any]:
    """The shipped params with the numbers that cost time made small; two teachers of four."""
    training = {"epochs": 2, "warmup_epochs": 0, "batch": 8}
    params["data"] |= {"name": "squares", "heads": {"verb": list(SIDES), "noun": list(SHADES)}, "slices": []}
    params["seeds"] = [0]
    params["views"] |= {"frames": 4, "size": 32, "per_clip": 1}
    params["modalities"]["rgb"] |= {"shards": 2, "short_side": 40}
    params["teachers"] = {name: params["teachers"][name] for name in ("detections", "audio")}
    for learner in (*params["teachers"].values(), *params["students"].values()):
        learner["training"] = learner["training"] | training
    for teacher in params["teachers"].values():
        teacher["folds"] = 2
    # The shipped student has hints of a teacher that is left out here.
    params["teachers"]["audio"]["hints"] = True
    params["search"] |= {
        "epochs": 1,
        "temperature": [1.0],
        "distillation_weight": [0.0, 0.5],
        "divergence": ["forward_kl", "reverse_then_forward"],
        "weights_temperature": [0.2, 1.0],
    }
    params["students"]["student"]["ensemble"]["teachers"] = ["detections", "audio"]
    params["students"]["student"]["method"] |= dict.fromkeys(
        ("temperature", "divergence", "distillation_weight"), "auto"
    )
    params["modalities"] = {name: params["modalities"][name] for name in ("rgb", "detections", "audio")}
    params |= {"fused": {}, "specialists": {}}
    params["evaluate"] |= {"clips": [1], "crops": [1], "bootstrap": 20}
    return params


def with_fusion(params: dict[str, Any]) -> dict[str, Any]:
    """What `tiny` gave, with a fused teacher, its specialists, students routed among them and shown other senses."""
    budget = params["students"]["student"]["training"]
    rgb = params["students"]["baseline"]["backbone"]
    params["teachers"]["rgb"] = params["teachers"]["audio"] | {"modality": "rgb", "backbone": rgb}
    params["fused"] = {
        "both": {
            "teachers": ["detections", "audio"],
            "kind": "auto",
            "feature_weight": 10.0,
            "dropout": 0.1,
            "training": budget,
        }
    }
    masks = {"width": 6, "attention_heads": 3, "training": budget}
    params["specialists"] = {
        "masked": {
            "fused": "both",
            "auxiliaries": ["audio"],
            "student": "rgb",
            "temperature": 4.0,
            "training": budget,
            "masks": masks,
        }
    }
    params["students"]["routed"] = params["students"]["baseline"] | {
        "learns_from": "artifacts/specialists/masked",
        "method": {
            "kind": "mst",
            "temperature": 4.0,
            "top_k": 1,
            "distillation_weight": 1.0,
            "balance_weight": 1.0,
            "gate_weight": 1.0,
            "gate_temperature": 1.0,
            "gate_width": 8,
            "head_weights": None,
        },
    }
    params["students"]["shown"] = params["students"]["baseline"] | {
        "learns_from": "artifacts/teachers",
        "method": {
            "kind": "omnivorous",
            "teachers": ["audio"],
            "modality_dropout": 0.5,
            "head_weights": None,
        },
    }
    return params


def make_clone(root: Path, params: dict[str, Any], splits: Sequence[str]) -> Workspace:
    """A clone of this working tree with data of one group a split, committed."""
    root.mkdir()
    for name in ("flows", "tasks", "models", "mlflow"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".gitignore", ".dvcignore", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    (root / "infra").mkdir()
    shutil.copy(ROOT / "infra" / "prefect.yaml", root / "infra")
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    _write_raw(root / "data" / "raw", splits)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "UNDERSTUDY_"))}
    environment = kept | {
        "PYTHONPATH": str(root),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",
        "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org",
        "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.org",
        "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SECRET,
        "MLFLOW_TRACKING_USERNAME": "team", "MLFLOW_TRACKING_PASSWORD": SECRET,
        "UNDERSTUDY_WEBHOOK_URL": f"http://127.0.0.1:9/{SECRET}",
    }  # fmt: skip
    (root / "data.dvc").write_text("outs:\n- path: data/raw\n")
    commands = (
        "git init -q",
        "dvc init -q",
        "dvc commit -q -f data.dvc",
        "git add .",
        "git commit -q -m data",
    )
    for command in commands:
        subprocess.run(command.split(), cwd=root, env=environment, check=True)
    return Workspace(root, environment)


def shipped() -> dict[str, Any]:
    """params.yaml of this working tree."""
    return dict(yaml.safe_load((ROOT / "params.yaml").read_text()))
