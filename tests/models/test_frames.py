"""The frame family: order of frames, timm's names, and weights from a checkpoint."""

import pytest
import timm
import torch

from models.backbones.frames import Frames
from models.temporal import neighbourhoods

PLAIN = Frames(
    kind="frames", name="test_resnet", pretrained=False, temporal="mean", dropout=0.0, drop_path=0.0
)


@pytest.fixture
def checkpoint() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return timm.create_model("test_resnet", num_classes=1000).state_dict()


@pytest.mark.parametrize(("kind", "ordered"), [("mean", False), ("stack", True), ("conv", True)])
def test_the_mean_alone_is_blind_to_the_order_of_frames(kind, ordered):
    torch.manual_seed(0)
    network = PLAIN.model_copy(update={"temporal": kind}).build(3).eval()
    x = torch.randn(1, 5, 3, 32, 32)
    shuffled = x[:, [2, 0, 4, 1, 3]]
    assert torch.allclose(network(x), network(shuffled), atol=1e-5) != ordered


def test_neighbours_are_stacked_in_time_and_repeated_at_the_ends():
    x = torch.tensor([1.0, 2.0, 3.0])[None, :, None, None, None]
    stacked = neighbourhoods(x, 3)
    assert stacked.shape == (1, 3, 3, 1, 1)
    assert stacked.flatten(2)[0].tolist() == [[1, 1, 2], [1, 2, 3], [2, 3, 3]]
    assert torch.equal(neighbourhoods(x, 1), x)


def test_an_unknown_model_is_named_with_those_near_it():
    with pytest.raises(ValueError, match=r"'resnet10x'; near it: .*resnet"):
        PLAIN.model_copy(update={"name": "resnet10x"}).build(3)


def test_stochastic_depth_reaches_the_image_network():
    network = PLAIN.model_copy(update={"drop_path": 0.5}).build(3)
    assert any(type(module).__name__ == "DropPath" for module in network.modules())


def test_stochastic_depth_of_a_network_without_it_is_refused():
    with pytest.raises(ValueError, match=r"vgg11.*drop_path_rate"):
        PLAIN.model_copy(update={"name": "vgg11", "drop_path": 0.5}).build(3)


def test_a_checkpoint_is_taken_over(checkpoint):
    network = PLAIN.build(3)
    network.load_pretrained(checkpoint)
    own = network.image.state_dict()
    assert all(torch.equal(value, checkpoint[name]) for name, value in own.items())


def test_a_stack_of_frames_alike_excites_a_checkpoints_filters_as_one_did(checkpoint):
    network = PLAIN.model_copy(update={"temporal": "stack"}).build(3)
    network.load_pretrained(checkpoint)
    first = network.image.conv1[0].weight
    torch.testing.assert_close(first.unflatten(1, (3, 3)).sum(dim=1), checkpoint["conv1.0.weight"])


@pytest.mark.parametrize("channels", [1, 2])
def test_the_first_convolution_is_fitted_to_the_channels(checkpoint, channels):
    network = PLAIN.build(channels)
    network.load_pretrained(checkpoint)
    first = network.image.conv1[0].weight
    colours = checkpoint["conv1.0.weight"]
    # One channel of grey, or two alike, must excite the filters as a grey picture of three channels did.
    torch.testing.assert_close(
        first.sum(dim=1), colours.sum(dim=1) if channels == 1 else 3 / 2 * colours[:, :2].sum(dim=1)
    )


def test_another_models_checkpoint_is_refused(checkpoint):
    network = PLAIN.build(3)
    before = network.image.conv1[0].weight.clone()
    with pytest.raises(ValueError, match=r"not for test_resnet.*1 tensors differ.*is missing"):
        network.load_pretrained({k: v for k, v in checkpoint.items() if k != "layer1.0.conv1.weight"})
    with pytest.raises(ValueError, match="unknown"):
        network.load_pretrained({**checkpoint, "stranger": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"is \(3,\), not"):
        network.load_pretrained({**checkpoint, "layer1.0.conv1.weight": torch.zeros(3)})
    assert torch.equal(network.image.conv1[0].weight, before)
