"""The one shape of every network, teacher and student alike: a backbone, then one head a label.

It knows neither what the input shows nor how the network is trained.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.backbones import Backbone
from models.fusion import LateFusion, Sights
from models.heads import Heads

Logits = dict[str, Tensor]
"""Unnormalised log-probabilities of each label head, (batch, classes)."""


class Word(NamedTuple):
    """What one of several networks says of a batch.

    Attributes:
        logits: (batch, classes) for each head; rows of clips that it does not see mean nothing.
        present: (batch,), bool: it sees the clip.
    """

    logits: Logits
    present: Tensor


class Output(NamedTuple):
    """What a network says of a batch.

    Attributes:
        features: (batch, width), the clip embedding that the heads read.
        moments: (batch, frames, width), the embedding of every moment, from which the clip's is made.
        logits: (batch, classes) for each head.
        beside: what networks say that are trained beside it, by name; for method mst.
    """

    features: Tensor
    moments: Tensor
    logits: Logits
    beside: dict[str, Word] | None = None


class Network(nn.Module):
    """A backbone that embeds clips of one modality or of several, and the heads that classify them."""

    def __init__(self, backbone: nn.Module, heads: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = heads

    def forward(self, x: Tensor | Sights) -> Output:
        """Embed and classify clips, (batch, frames, …) as the modality renders them, or several modalities."""
        features, moments = self.backbone(x)
        return Output(features, moments, self.heads(features))


def build(
    backbone: Backbone | LateFusion, channels: int | Mapping[str, int], heads: Mapping[str, int]
) -> Network:
    """Build the network of a params entry, with weights drawn from torch's global generator.

    Args:
        backbone: family and sizes.
        channels: values the modality gives for each pixel (rgb 3, flow 2, audio 1) or box (detections 8); of
            several modalities those of each.
        heads: number of classes of each label head.

    Returns:
        The network on the CPU, in training mode. The caller seeds torch before the call.

    Raises:
        ValueError: the family cannot take these channels, or timm does not know the model.
    """
    if isinstance(backbone, LateFusion):
        assert isinstance(channels, Mapping)
        fused = backbone.build(channels)
        return Network(fused, backbone.build_heads(fused, heads))
    assert isinstance(channels, int)
    module = backbone.build(channels)
    return Network(module, Heads(module.width, heads, backbone.dropout))


def count_parameters(network: nn.Module) -> int:
    """Return the number of weights and biases, trained or frozen, without buffers."""
    return sum(parameter.numel() for parameter in network.parameters())


def gmacs(network: nn.Module, example: Tensor | Sights) -> float:
    """Return 10⁹ multiply-adds of one forward pass, counting convolutions, products and attention.

    Args:
        network: left in the mode it was in.
        example: one clip, (1, frames, …), on the network's device; its values do not matter.

    Raises:
        ValueError: the example is not a batch of one clip.
    """
    clips = len(example) if isinstance(example, Tensor) else len(next(iter(example.present.values())))
    if clips != 1:
        raise ValueError(f"cost is per clip: pass a batch of 1, not {clips}")
    training = network.training
    network.eval()
    try:
        # Gradients stay on: without them torch fuses whole transformer layers into one uncounted operation.
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            network(example)
    finally:
        network.train(training)
    return float(counter.get_total_flops()) / 2 / 1e9
