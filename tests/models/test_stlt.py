"""The box transformer: the paper's size, padding, empty frames, the order of boxes and of frames."""

import pytest
import torch
from pydantic import ValidationError

from models.backbones.stlt import STLT, LayoutNetwork
from models.network import count_parameters

SMALL = STLT(
    kind="stlt", width=16, spatial_layers=2, temporal_layers=2, attention_heads=2, max_frames=6, dropout=0.0
)


@pytest.fixture
def network() -> LayoutNetwork:
    torch.manual_seed(0)
    return SMALL.build(channels=8).eval()


@pytest.fixture
def clip() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    known = torch.randint(1, 3, (1, 4, 3, 3), generator=generator).float()
    return torch.cat([torch.rand(1, 4, 3, 5, generator=generator), known], dim=-1)


def test_the_papers_network_has_its_weights():
    paper = SMALL.model_copy(
        update={
            "width": 768,
            "spatial_layers": 6,
            "temporal_layers": 6,
            "attention_heads": 8,
            "max_frames": 256,
        }
    )
    with torch.device("meta"):
        assert count_parameters(LayoutNetwork(paper)) == pytest.approx(85.2e6, abs=0.1e6)


def test_padding_changes_nothing(network, clip):
    padding = torch.cat(
        [torch.full((1, 4, 2, 5), 0.7), torch.tensor([0.0, 2.0, 1.0]).expand(1, 4, 2, 3)], dim=-1
    )
    padded = torch.cat([clip[:, :, :1], padding, clip[:, :, 1:]], dim=2)
    torch.testing.assert_close(network(padded)[0], network(clip)[0])


def test_boxes_have_no_order(network, clip):
    torch.testing.assert_close(network(clip.flip(2))[0], network(clip)[0])


def test_frames_have_an_order(network, clip):
    assert not torch.allclose(network(clip.flip(1))[0], network(clip)[0], atol=1e-4)


@pytest.mark.parametrize("train", [False, True])
def test_frames_without_boxes_are_fine(network, clip, train):
    empty = clip * torch.tensor([1.0, 0.0, 1.0, 1.0])[None, :, None, None]
    features = network.train(train)(empty)[0]
    assert features.isfinite().all()
    assert not torch.allclose(features, network(clip)[0], atol=1e-4)
    assert network(torch.zeros_like(clip))[0].isfinite().all()
    assert network(clip[:, :, :0])[0].isfinite().all()


def test_a_slow_hand_moves_in_bfloat16_too(network, clip):
    """By less than a step of bfloat16 there, 1/256 of the frame."""
    moved = clip.clone()
    moved[..., :4] = 0.75
    before = moved.clone()
    moved[..., :4] += 0.001
    with torch.autocast("cpu", torch.bfloat16):
        one, other = network.boxes(before), network.boxes(moved)
    exact = network.boxes(moved) - network.boxes(before)
    assert torch.allclose(other - one, exact, atol=1e-6)
    assert exact.abs().max() > 1e-5


def test_too_many_frames_are_refused(network):
    with pytest.raises(ValueError, match=r"7 frames.*max_frames 6"):
        network(torch.zeros(1, 7, 3, 8))


def test_other_inputs_are_refused():
    with pytest.raises(ValueError, match="boxes of 8 values"):
        SMALL.build(channels=3)
    with pytest.raises(ValidationError, match="must divide width"):
        STLT.model_validate({**SMALL.model_dump(), "attention_heads": 3})
