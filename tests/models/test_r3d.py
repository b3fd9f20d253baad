"""R3D: sizes counted by hand, kinds of input, moments and weights."""

import pytest
import torch

from models.backbones.r3d import R3D
from models.network import count_parameters, gmacs

PLAIN = R3D(kind="r3d", name="r3d_18", pretrained=False, normalise="none", dropout=0.0)
LAYERS = {"r3d_18": (2, 2, 2, 2), "r3d_50": (3, 4, 6, 3)}


def convolution(incoming: int, outgoing: int, points: int) -> int:
    """Weights of a convolution without bias, and of the normalisation behind it."""
    return points * incoming * outgoing + 2 * outgoing


def by_hand(name: str) -> int:
    """Weights of the network without a classifier: stem, blocks, and a shortcut where the channels change."""
    count, incoming = convolution(3, 64, 3 * 7 * 7), 64
    for stage, blocks in enumerate(LAYERS[name]):
        inner = 64 * 2**stage
        outgoing = inner if name == "r3d_18" else 4 * inner
        for _ in range(blocks):
            if name == "r3d_18":
                count += convolution(incoming, inner, 27) + convolution(inner, inner, 27)
            else:
                count += convolution(incoming, inner, 1) + convolution(inner, inner, 27)
                count += convolution(inner, outgoing, 1)
            if incoming != outgoing:
                count += convolution(incoming, outgoing, 1)
            incoming = outgoing
    return count


@pytest.mark.parametrize(("name", "millions"), [("r3d_18", 33.17), ("r3d_50", 46.16)])
def test_the_weights_counted_by_hand(name, millions):
    with torch.device("meta"):
        network = PLAIN.model_copy(update={"name": name}).build(3)
    assert count_parameters(network) == by_hand(name) == pytest.approx(millions * 1e6, abs=5e3)
    assert network.width == {"r3d_18": 512, "r3d_50": 2048}[name]


def test_the_cost_that_torchvision_publishes():
    with torch.device("meta"):
        assert gmacs(PLAIN.build(3), torch.zeros(1, 16, 3, 112, 112)) == pytest.approx(40.697, abs=0.01)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("frames", [1, 5, 16])
def test_features_are_of_the_clip_and_moments_of_every_frame(name, channels, frames):
    with torch.device("meta"):
        network = PLAIN.model_copy(update={"name": name}).build(channels)
        features, moments = network(torch.zeros(2, frames, channels, 112, 112))
    assert (features.shape, moments.shape) == ((2, network.width), (2, frames, network.width))


def test_eight_frames_share_a_moment_and_their_mean_is_the_clips():
    torch.manual_seed(0)
    network = PLAIN.build(3).eval()
    with torch.inference_mode():
        features, moments = network(torch.rand(1, 16, 3, 32, 32))
    assert all(torch.equal(moments[:, frame], moments[:, frame // 8 * 8]) for frame in range(16))
    assert not torch.equal(moments[:, 7], moments[:, 8])
    torch.testing.assert_close(features, moments.mean(1))


def test_it_is_torchvisions_network_but_for_the_classifier():
    from torchvision.models.video import r3d_18

    torch.manual_seed(0)
    theirs = r3d_18(num_classes=5).eval()
    network = PLAIN.model_copy(update={"normalise": "weights"}).build(3).eval()
    network.load_pretrained(theirs.state_dict())
    x = torch.rand(1, 8, 3, 32, 32)
    mean, deviation = torch.tensor([0.43216, 0.394666, 0.37645]), torch.tensor([0.22803, 0.22145, 0.216989])
    seen = (x - mean[:, None, None]) / deviation[:, None, None]
    with torch.inference_mode():
        torch.testing.assert_close(theirs.fc(network(x)[0]), theirs(seen.transpose(1, 2)))


def test_weights_of_another_depth_are_refused():
    with torch.device("meta"):
        other = PLAIN.model_copy(update={"name": "r3d_50"}).build(3).video.state_dict()
        with pytest.raises(ValueError, match="not for this depth of R3D"):
            PLAIN.build(3).load_pretrained(other)


@pytest.mark.parametrize(
    ("normalise", "channels", "message"),
    [("weights", 1, "weights is for rgb"), ("none", 8, "3 channels, not for 8")],
)
def test_other_inputs_are_refused(normalise, channels, message):
    with pytest.raises(ValueError, match=message):
        PLAIN.model_copy(update={"normalise": normalise}).build(channels)


def test_only_the_smaller_one_has_published_weights():
    named = PLAIN.model_copy(update={"pretrained": "KINETICS400_V1"})
    assert named.published.address.endswith("/r3d_18-b3b3357e.pth")
    assert named.model_copy(update={"name": "r3d_50"}).published is None
    assert PLAIN.published is None
