"""A workspace in small: real shards of two modalities, drawn, three groups to train on, a clip without boxes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from models.backbones import Backbone
from models.backbones.frames import Frames
from tasks.atomic import write_json
from tasks.clips import Clip, Video, write_clips, write_videos
from tasks.layout import Workspace
from tasks.modalities.rgb import Rgb
from tasks.networks import Committee, Spec
from tasks.shards import Row, write_shard
from tasks.views import Jitter, Views

HEADS = {"verb": ["left", "right"], "noun": ["red", "blue", "green"]}
SHADES = [(200, 40, 40), (40, 40, 200), (40, 200, 40)]
BOXLESS = ("train-1", "val-0", "test-0")
"""The clips without detections."""


def _clips() -> list[Clip]:
    found = []
    for split, count in (("train", 9), ("val", 6), ("test", 6)):
        for number in range(count):
            labels = {"verb": HEADS["verb"][number % 2], "noun": HEADS["noun"][number % 3]}
            name = f"{split}-{number}"
            found.append(Clip(name, f"{name}.mp4", 0.0, 2.0, f"{split}-{number // 3}", split, labels, {}))
    return found


def _pictures(clip: Clip) -> Iterator[tuple[str, Row]]:
    """A square in the noun's colour that slides as the verb says."""
    shade = SHADES[HEADS["noun"].index(clip.labels["noun"])]
    for moment in range(9):
        picture = np.full((32, 48, 3), 90 + sum(clip.clip_id.encode()) % 20, np.uint8)
        left = 20 + (2 * moment - 8) * (1 if clip.labels["verb"] == "right" else -1)
        picture[8:24, left : left + 12] = shade
        _, jpeg = cv2.imencode(".jpg", picture)
        yield clip.video, Row(moment / 4, 1.5, jpeg.tobytes())


def _boxes(clip: Clip) -> Iterator[tuple[str, Row]]:
    for moment in range(9):
        x = 0.4 + (0.04 * moment - 0.16) * (1 if clip.labels["verb"] == "right" else -1)
        boxes = np.array([[x, 0.25, x + 0.25, 0.75, 0.9, 2, 0, 0]], np.float32)
        yield clip.video, Row(moment / 4, 1.5, boxes.tobytes())


BACKBONE = Frames(
    kind="frames",
    name="test_convnext",
    pretrained=False,
    temporal="mean",
    normalise="none",
    dropout=0.0,
    drop_path=0.0,
)


@pytest.fixture(scope="session")
def rgb_student() -> Callable[..., Committee]:
    """Makes a tiny untrained student: its backbone, how many networks, and what differs in its RGB and its views."""

    def made(
        backbone: Backbone = BACKBONE, members: int = 1, change_s: float | None = None, **views: Any
    ) -> Committee:
        torch.manual_seed(0)
        spec = Spec(
            modality="rgb",
            modality_params=Rgb(
                kind="rgb", shards=1, short_side=32, rate_hz=5.0, quality=90, change_s=change_s
            ),
            views=Views(
                **{"frames": 2, "size": 32, "per_clip": 1, "zoom": (1.0, 1.0), "test_zoom": 1.0} | views,
                flip=False,
                jitter=Jitter(brightness=0, contrast=0, saturation=0, hue=0),
            ),
            heads={"verb": ["open", "cut", "stir"], "noun": ["pan", "tap"]},
            backbone=backbone,
        )
        return Committee(spec, [spec.new_network() for _ in range(members)], {"verb": 2.0, "noun": 0.5})

    return made


TRAINING: dict[str, Any] = {
    "epochs": 2,
    "batch": 3,
    "learning_rate": 0.003,
    "weight_decay": 0.01,
    "warmup_epochs": 0,
    "decay": "cosine",
    "clip_norm": 5.0,
    "ema": 0.0,
    "precision": "float32",
    "devices": 1,
}
FRAMES: dict[str, Any] = {
    "kind": "frames",
    "name": "test_resnet",
    "pretrained": False,
    "temporal": "mean",
    "normalise": "none",
    "dropout": 0.1,
    "drop_path": 0.0,
}
STLT: dict[str, Any] = {
    "kind": "stlt",
    "width": 16,
    "spatial_layers": 1,
    "temporal_layers": 1,
    "attention_heads": 2,
    "max_frames": 8,
    "dropout": 0.0,
}
SMALL: dict[str, Any] = {
    "data": {
        "name": "small",
        "format": "folder",
        "heads": HEADS,
        "validation_share": 0.2,
        "test_share": 0.2,
        "split_seed": 0,
        "slices": [],
    },
    "seeds": [0],
    "threads": 1,
    "views": {
        "frames": 4,
        "size": 32,
        "per_clip": 2,
        "zoom": [1.0, 1.1],
        "test_zoom": 1.0,
        "flip": False,
        "jitter": {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0},
    },
    "modalities": {
        "rgb": {
            "kind": "rgb",
            "shards": 1,
            "short_side": 32,
            "rate_hz": 4.0,
            "quality": 90,
            "change_s": None,
        },
        "detections": {
            "kind": "detections",
            "shards": 1,
            "max_boxes": 2,
            "visible": 0.2,
            "nearest_s": 0.5,
            "moments": 2,
        },
    },
    "teachers": {
        "eyes": {"modality": "rgb", "folds": 3, "hints": False, "backbone": FRAMES, "training": TRAINING},
        "boxes": {
            "modality": "detections",
            "folds": 3,
            "hints": False,
            "backbone": STLT,
            "training": TRAINING,
        },
    },
    "fused": {
        "both": {
            "teachers": ["eyes", "boxes"],
            "kind": "auto",
            "feature_weight": 10.0,
            "dropout": 0.1,
            "training": TRAINING,
        }
    },
    "specialists": {},
    "students": {
        "baseline": {
            "learns_from": "data/index",
            "backbone": FRAMES,
            "training": TRAINING,
            "method": {"kind": "supervised", "head_weights": None, "label_smoothing": 0.0},
            "ensemble": None,
        }
    },
    "search": {
        "epochs": 1,
        "temperature": [1.0],
        "divergence": ["forward_kl"],
        "distillation_weight": [0.5],
        "weights_temperature": [1.0],
    },
    "gate": {
        "min_top1_gain": 0.0,
        "max_ece_increase": 0.02,
        "max_nll_increase": 0.05,
        "max_worst_slice_drop": 0.1,
        "min_slice_clips": 2,
        "max_latency_ratio": 1.5,
        "max_size_mb": 200.0,
        "promote": "manual",
    },
    "evaluate": {"clips": [1], "crops": [1], "bins": 15, "bootstrap": 20},
    "register": {"student": "auto", "head": "action", "parity": {"clips": 4, "tolerance": 1e-4}},
}


@pytest.fixture(scope="session")
def small_params() -> dict[str, Any]:
    """Params of the workspace; copy before a change."""
    return SMALL


@pytest.fixture(scope="session")
def drawn_workspace() -> Any:
    """Makes the workspace below a folder, everything before `train_teacher` done."""

    def make(root: Path) -> Workspace:
        workspace = Workspace(root)
        clips = _clips()
        write_clips(workspace.index / "clips.csv", clips, HEADS, [])
        videos = [
            Video(clip.video, f"sha of {clip.video}", 1, "h264", 64, 64, 0, 10.0, 2.0, "decord", 0, False, "")
            for clip in clips
        ]
        write_videos(workspace.index / "videos.csv", videos)
        (workspace.index / "quarantine.csv").write_text("clip_id,reason\n")
        seen = [clip for clip in clips if clip.clip_id not in BOXLESS]
        for modality, rows in {
            "rgb": (row for clip in clips for row in _pictures(clip)),
            "detections": (row for clip in seen for row in _boxes(clip)),
        }.items():
            write_shard(workspace.modality(modality) / "shard-0.arrow", rows)
            manifest = {"shards": [{"file": "shard-0.arrow"}], "problems": {}}
            write_json(workspace.modality(modality) / "manifest.json", manifest)
        return workspace

    return make
