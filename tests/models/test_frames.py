"""The frame family: order of frames, timm's names, and weights from a checkpoint."""

import pytest
import timm
import torch

from models.backbones.frames import Frames
from models.pictures import standardise
from models.temporal import with_change, with_neighbours

PLAIN = Frames(
    kind="frames",
    name="test_resnet",
    pretrained=False,
    temporal="mean",
    normalise="none",
    dropout=0.0,
    drop_path=0.0,
)


@pytest.fixture
def checkpoint() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return timm.create_model("test_resnet", num_classes=1000).state_dict()


@pytest.mark.parametrize(
    ("kind", "ordered"), [("mean", False), ("stack", True), ("difference", True), ("conv", True)]
)
def test_the_mean_alone_is_blind_to_the_order_of_frames(kind, ordered):
    torch.manual_seed(0)
    network = PLAIN.model_copy(update={"temporal": kind}).build(3).eval()
    x = torch.randn(1, 5, 3, 32, 32)
    shuffled = x[:, [2, 0, 4, 1, 3]]
    assert torch.allclose(network(x)[0], network(shuffled)[0], atol=1e-5) != ordered


def test_neighbours_are_stacked_in_time_and_repeated_at_the_ends():
    x = torch.tensor([1.0, 2.0, 3.0])[None, :, None, None, None]
    stacked = with_neighbours(x)
    assert stacked.shape == (1, 3, 3, 1, 1)
    assert stacked.flatten(2)[0].tolist() == [[1, 1, 2], [1, 2, 3], [2, 3, 3]]
    assert with_neighbours(x[:, :1]).flatten().tolist() == [1, 1, 1]


def test_a_frame_is_seen_beside_its_change():
    x = torch.tensor([1.0, 2.0, 5.0])[None, :, None, None, None]
    seen = with_change(x)
    assert seen.shape == (1, 3, 2, 1, 1)
    assert seen.flatten(2)[0].tolist() == [[1, 1], [2, 3], [5, 3]]
    assert with_change(x[:, :1]).flatten().tolist() == [1, 0]


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


@pytest.mark.parametrize(("kind", "times"), [("stack", 3), ("difference", 2)])
def test_frames_seen_together_share_a_checkpoints_filters(checkpoint, kind, times):
    network = PLAIN.model_copy(update={"temporal": kind}).build(3)
    network.load_pretrained(checkpoint)
    first = network.image.conv1[0].weight
    torch.testing.assert_close(first.unflatten(1, (times, 3)).sum(dim=1), checkpoint["conv1.0.weight"])


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


@pytest.mark.parametrize("by_frame", [False, True])
def test_standardising_takes_out_light_and_contrast(by_frame):
    x = torch.rand(2, 4, 3, 8, 8)
    darker = x * 0.3 + torch.tensor([0.1, 0.2, 0.05])[:, None, None]
    assert torch.allclose(standardise(x, by_frame), standardise(darker, by_frame), atol=0.2)
    assert standardise(x, by_frame).mean(dim=(1, 3, 4)).abs().max() < 1e-5


def test_standardising_each_frame_takes_out_what_moves_all_of_it():
    x = torch.rand(1, 4, 2, 8, 8)
    shaken = x + torch.randn(1, 4, 2, 1, 1)
    assert torch.allclose(standardise(x, True), standardise(shaken, True), atol=1e-4)
    assert standardise(torch.full((1, 2, 2, 4, 4), 0.5), True).abs().max() == 0


def test_the_weights_own_mean_and_deviation_are_for_rgb():
    network = PLAIN.model_copy(update={"normalise": "weights"}).build(3).eval()
    plain = PLAIN.build(3).eval()
    plain.load_state_dict(network.state_dict())
    config = network.image.pretrained_cfg
    x = torch.rand(1, 2, 3, 32, 32)
    mean, deviation = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    assert torch.allclose(network(x)[0], plain((x - mean) / deviation)[0], atol=1e-5)
    with pytest.raises(ValueError, match="weights is for rgb"):
        PLAIN.model_copy(update={"normalise": "weights"}).build(2)


def test_padding_small_pictures_first_changes_no_value():
    config = PLAIN.model_copy(update={"name": "tf_efficientnet_lite0"})
    torch.manual_seed(0)
    ours = config.build(3).image.double()
    plain = timm.create_model("tf_efficientnet_lite0", num_classes=0).double()
    plain.load_state_dict(ours.state_dict())
    images = torch.rand(4, 3, 48, 48, dtype=torch.float64)  # its last layers see 2 x 2
    outputs = [network(images) for network in (ours, plain)]
    assert torch.allclose(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for (name, own), theirs in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(own.grad, theirs.grad), name
