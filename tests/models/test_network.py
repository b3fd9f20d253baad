"""Every backbone family in a network: shapes, gradients, state, cost. A family needs an example here."""

from typing import get_args

import pytest
import torch
from pydantic import BaseModel, TypeAdapter, ValidationError
from torch import Tensor

from models.backbones import Backbone
from models.backbones.frames import Frames
from models.backbones.r3d import R3D
from models.backbones.stlt import STLT
from models.backbones.swin3d import Swin3D
from models.network import Network, build, count_parameters, gmacs

HEADS = {"verb": 4, "type": 3}  # "type" is an attribute of every torch module, and a fair name for a head


def frames(**changes: object) -> Frames:
    fields = {
        "kind": "frames",
        "name": "test_resnet",
        "pretrained": False,
        "temporal": "mean",
        "normalise": "none",
    }
    return Frames.model_validate({**fields, "dropout": 0.0, "drop_path": 0.0, **changes})


def stlt(**changes: object) -> STLT:
    sizes = {"width": 16, "spatial_layers": 1, "temporal_layers": 2, "attention_heads": 2, "max_frames": 8}
    return STLT.model_validate({"kind": "stlt", **sizes, "dropout": 0.0, **changes})


def swin3d() -> Swin3D:
    fields = {"name": "swin3d_t", "pretrained": False, "normalise": "none", "dropout": 0.0, "drop_path": 0.0}
    return Swin3D.model_validate({"kind": "swin3d", **fields})


def r3d(name: str) -> R3D:
    fields = {"name": name, "pretrained": False, "normalise": "none", "dropout": 0.0}
    return R3D.model_validate({"kind": "r3d", **fields})


def pictures(channels: int = 3, clips: int = 2) -> Tensor:
    return torch.randn(clips, 4, channels, 32, 32, generator=torch.Generator().manual_seed(0))


def boxes(clips: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    known = torch.randint(1, 3, (clips, 4, 5, 3), generator=generator).float()
    return torch.cat([torch.rand(clips, 4, 5, 5, generator=generator), known], dim=-1)


EXAMPLES: list[tuple[BaseModel, Tensor]] = [
    (frames(), pictures()),
    (frames(), pictures(channels=2)),
    (frames(), pictures(channels=1)),
    *((frames(temporal=kind), pictures()) for kind in get_args(Frames.model_fields["temporal"].annotation)),
    (stlt(), boxes()),
    (swin3d(), pictures()),
    (r3d("r3d_18"), pictures(channels=2)),
    (r3d("r3d_50"), pictures(channels=1)),
]
examples = pytest.mark.parametrize(("backbone", "x"), EXAMPLES)


def network_for(backbone: BaseModel, x: Tensor, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    channels = x.shape[2] if x.ndim == 5 else x.shape[3]
    return build(backbone, channels, HEADS)


def test_every_family_has_an_example():
    families = set(get_args(get_args(Backbone)[0]))
    assert families == {type(backbone) for backbone, _ in EXAMPLES}


@examples
def test_features_and_logits_have_their_shapes(backbone, x):
    network = network_for(backbone, x)
    output = network(x)
    assert output.features.shape == (2, network.backbone.width)
    assert {head: logits.shape for head, logits in output.logits.items()} == {"verb": (2, 4), "type": (2, 3)}


@examples
def test_every_weight_learns(backbone, x):
    network = network_for(backbone, x)
    with torch.no_grad():  # residual branches may start at zero, which hides what lies behind them
        for weight in network.parameters():
            weight += 0.01 * torch.randn_like(weight)
    sum(logits.square().sum() for logits in network(x).logits.values()).backward()
    still = [
        name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()
    ]
    assert still == []


@examples
def test_state_goes_into_a_fresh_network(backbone, x):
    first, second = network_for(backbone, x, seed=0).eval(), network_for(backbone, x, seed=1).eval()
    assert not torch.equal(first(x).logits["verb"], second(x).logits["verb"])
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x).logits["verb"], second(x).logits["verb"])


@examples
def test_the_seed_decides_the_weights(backbone, x):
    first, second = network_for(backbone, x), network_for(backbone, x)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@examples
def test_a_clip_is_judged_alone(backbone, x):
    network = network_for(backbone, x).eval()
    alone = torch.cat([network(clip[None]).features for clip in x])
    torch.testing.assert_close(network(x).features, alone, rtol=1e-4, atol=1e-5)


@examples
def test_unknown_keys_are_refused_and_none_has_a_default(backbone, x):
    fields = backbone.model_dump()
    adapter = TypeAdapter(Backbone)
    assert adapter.validate_python(fields) == backbone
    with pytest.raises(ValidationError, match="extra"):
        adapter.validate_python({**fields, "widht": 3})
    for name in fields:
        with pytest.raises(ValidationError):
            adapter.validate_python({key: value for key, value in fields.items() if key != name})


def test_cost_of_a_linear_layer_by_hand():
    layer = torch.nn.Linear(200, 50)
    assert count_parameters(layer) == 200 * 50 + 50
    assert gmacs(layer, torch.zeros(1, 200)) == pytest.approx(200 * 50 / 1e9)


def test_cost_of_the_box_transformer_by_hand():
    x, width = boxes(clips=1), 16
    tokens = {"spatial": 4 * (5 + 1), "temporal": 4 + 1}
    per_token = 12 * width**2  # query, key, value and output, and twice four times the width
    attention = {"spatial": 2 * 4 * 6**2 * width, "temporal": 2 * 5**2 * width}
    layers = {"spatial": 1, "temporal": 2}
    by_hand = sum(layers[part] * (tokens[part] * per_token + attention[part]) for part in layers)
    by_hand += 4 * 5 * 5 * width + (4 + 3) * width  # boxes and scores in, heads out
    assert gmacs(network_for(stlt(), x), x) == pytest.approx(by_hand / 1e9)


def test_cost_leaves_the_mode_and_takes_one_clip():
    network = network_for(frames(), pictures())
    gmacs(network, pictures(clips=1))
    assert network.training
    with pytest.raises(ValueError, match="batch of 1"):
        gmacs(network, pictures(clips=2))


def test_a_network_needs_heads():
    with pytest.raises(ValueError, match="at least one class"):
        build(frames(), 3, {})
    with pytest.raises(ValueError, match="at least one class"):
        build(frames(), 3, {"verb": 0})
