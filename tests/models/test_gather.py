"""Every backbone family can put (changed) moments together to clips, which masks on moments need."""

from typing import get_args

import pytest
import torch

from models import backbones
from models.backbones.frames import Frames
from models.backbones.r3d import R3D
from models.backbones.stlt import STLT
from models.backbones.swin3d import Swin3D

IMAGE = {
    "kind": "frames",
    "name": "test_resnet",
    "pretrained": False,
    "normalise": "none",
    "dropout": 0.0,
    "drop_path": 0.0,
}
VIDEO = {"pretrained": False, "normalise": "none", "dropout": 0.0}
EXAMPLES = {
    "mean": (Frames(temporal="mean", **IMAGE), (8, 3, 32, 32)),
    "conv": (Frames(temporal="conv", **IMAGE), (8, 3, 32, 32)),
    "r3d": (R3D(kind="r3d", name="r3d_18", **VIDEO), (8, 3, 32, 32)),
    "swin3d": (Swin3D(kind="swin3d", name="swin3d_t", drop_path=0.0, **VIDEO), (8, 3, 32, 32)),
    "stlt": (
        STLT(
            kind="stlt",
            width=8,
            spatial_layers=1,
            temporal_layers=1,
            attention_heads=2,
            max_frames=8,
            dropout=0.0,
        ),
        (8, 2, 8),
    ),
}


def test_every_family_has_an_example():
    assert set(get_args(get_args(backbones.Backbone)[0])) == {
        type(section) for section, _ in EXAMPLES.values()
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_moments_put_together_are_the_clip(name: str):
    section, shape = EXAMPLES[name]
    torch.manual_seed(0)
    module = section.build(8 if name == "stlt" else 3).eval()
    clips = torch.rand(2, *shape)
    if name == "stlt":
        clips[..., 5:] = clips[..., 5:].mul(2).round()
    with torch.inference_mode():
        features, moments = module(clips)
        torch.testing.assert_close(module.gather(moments), features)
