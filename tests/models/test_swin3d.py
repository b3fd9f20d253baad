"""Video Swin: the paper's size and cost, its kinds of input, moments, stochastic depth and weights."""

import pytest
import torch

from models.backbones.swin3d import Swin3D
from models.network import count_parameters, gmacs

PAPER = Swin3D(kind="swin3d", name="swin3d_t", pretrained=False, normalise="none", dropout=0.0, drop_path=0.2)


def by_hand(width: int, depths: tuple[int, ...]) -> int:
    """Weights and biases of Video Swin without a classifier: patches, blocks, merges and the last norm."""
    count = (3 * 2 * 4 * 4 + 1) * width + 2 * width
    for stage, depth in enumerate(depths):
        channels = width * 2**stage
        attention = (3 * channels**2 + 3 * channels) + (channels**2 + channels)
        biases = (2 * 8 - 1) * (2 * 7 - 1) ** 2 * channels // 32  # a head has 32 channels
        feedforward = 2 * 4 * channels**2 + 4 * channels + channels
        count += depth * (attention + biases + feedforward + 2 * 2 * channels)
        if stage < len(depths) - 1:
            count += 2 * 4 * channels + 4 * channels * 2 * channels
    return count + 2 * width * 2 ** (len(depths) - 1)


@pytest.mark.parametrize(
    ("name", "width", "depths"),
    [("swin3d_t", 96, (2, 2, 6, 2)), ("swin3d_s", 96, (2, 2, 18, 2)), ("swin3d_b", 128, (2, 2, 18, 2))],
)
def test_the_weights_counted_by_hand(name, width, depths):
    with torch.device("meta"):
        network = PAPER.model_copy(update={"name": name}).build(3)
    assert count_parameters(network) == by_hand(width, depths)
    assert network.width == 8 * width


def test_the_papers_network_has_its_weights_and_cost():
    with torch.device("meta"):
        network, clip = PAPER.build(3), torch.zeros(1, 16, 3, 224, 224)
        assert count_parameters(network) == pytest.approx(27.85e6, abs=0.005e6)
        assert gmacs(network, clip) == pytest.approx(43.9, abs=0.05)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("frames", [1, 5, 16])
def test_features_are_of_the_clip_and_moments_of_every_frame(channels, frames):
    with torch.device("meta"):
        features, moments = PAPER.build(channels)(torch.zeros(2, frames, channels, 224, 224))
    assert (features.shape, moments.shape) == ((2, 768), (2, frames, 768))


def test_pairs_of_frames_share_a_moment_and_their_mean_is_the_clips():
    torch.manual_seed(0)
    network = PAPER.build(3).eval()
    with torch.inference_mode():
        features, moments = network(torch.rand(1, 4, 3, 32, 32))
    assert torch.equal(moments[:, 0], moments[:, 1])
    assert torch.equal(moments[:, 2], moments[:, 3])
    assert not torch.allclose(moments[:, 1], moments[:, 2], atol=1e-3)
    torch.testing.assert_close(features, moments.mean(1))


def test_it_is_torchvisions_network_but_for_the_classifier():
    from torchvision.models.video import swin3d_t

    torch.manual_seed(0)
    theirs = swin3d_t(num_classes=5).eval()
    network = PAPER.model_copy(update={"normalise": "weights"}).build(3).eval()
    network.load_pretrained(theirs.state_dict())
    x = torch.rand(1, 4, 3, 32, 32)
    seen = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    with torch.inference_mode():
        torch.testing.assert_close(theirs.head(network(x)[0]), theirs(seen.transpose(1, 2)))


def test_stochastic_depth_rises_to_what_is_asked():
    with torch.device("meta"):
        network = PAPER.build(3)
    depths = [block.stochastic_depth.p for block in network.modules() if hasattr(block, "stochastic_depth")]
    assert depths == pytest.approx([0.2 * number / 11 for number in range(12)])


def test_another_networks_weights_are_refused():
    with torch.device("meta"):
        network = PAPER.build(3)
        other = PAPER.model_copy(update={"name": "swin3d_s"}).build(3).video.state_dict()
    with pytest.raises(
        ValueError, match=r"not for this size of Video Swin: \d+ tensors differ \(.* is unknown"
    ):
        network.load_pretrained(other)


@pytest.mark.parametrize(
    ("normalise", "channels", "message"),
    [("weights", 2, "weights is for rgb"), ("none", 6, r"3 channels, not for 6.*change_s: null")],
)
def test_other_inputs_are_refused(normalise, channels, message):
    with pytest.raises(ValueError, match=message):
        PAPER.model_copy(update={"normalise": normalise}).build(channels)


def test_published_weights_say_where_they_lie():
    assert PAPER.published is None
    assert PAPER.model_copy(update={"pretrained": "some/file.pth"}).published is None
    found = PAPER.model_copy(update={"pretrained": "KINETICS400_V1"}).published
    assert found.name == "torchvision's KINETICS400_V1 of swin3d_t"
    assert found.address.endswith("/swin3d_t-7615ae03.pth")
