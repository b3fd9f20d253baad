"""The one shape of every network, teacher and student alike: a backbone, then one linear head a label.

It knows neither what the input shows nor how the network is trained.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.backbones import Backbone
from models.heads import Heads

Logits = dict[str, Tensor]
"""Unnormalised log-probabilities of each label head, (batch, classes)."""


class Output(NamedTuple):
    """What a network says of a batch.

    Attributes:
        features: (batch, width), the clip embedding that the heads read.
        moments: (batch, frames, width), the embedding of every moment, from which the clip's is made.
        logits: (batch, classes) for each head.
    """

    features: Tensor
    moments: Tensor
    logits: Logits


class Network(nn.Module):
    """A backbone that embeds clips of one modality, and the heads that classify them."""

    def __init__(self, backbone: nn.Module, heads: Heads) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = heads

    def forward(self, x: Tensor) -> Output:
        """Embed and classify clips, (batch, frames, …) as the modality renders them."""
        features, moments = self.backbone(x)
        return Output(features, moments, self.heads(features))


def build(backbone: Backbone, channels: int, heads: Mapping[str, int]) -> Network:
    """Build the network of a params entry, with weights drawn from torch's global generator.

    Args:
        backbone: family and sizes.
        channels: values the modality gives for each pixel (rgb 3, flow 2, audio 1) or box (detections 8).
        heads: number of classes of each label head.

    Returns:
        The network on the CPU, in training mode. The caller seeds torch before the call.

    Raises:
        ValueError: the family cannot take these channels, or timm does not know the model.
    """
    module = backbone.build(channels)
    return Network(module, Heads(module.width, heads, backbone.dropout))


def count_parameters(network: nn.Module) -> int:
    """Return the number of weights and biases, trained or frozen, without buffers."""
    return sum(parameter.numel() for parameter in network.parameters())


def gmacs(network: nn.Module, example: Tensor) -> float:
    """Return 10⁹ multiply-adds of one forward pass, counting convolutions, products and attention.

    Args:
        network: left in the mode it was in.
        example: one clip, (1, frames, …), on the network's device; its values do not matter.

    Raises:
        ValueError: the example is not a batch of one clip.
    """
    if example.shape[0] != 1:
        raise ValueError(f"cost is per clip: pass a batch of 1, not {example.shape[0]}")
    training = network.training
    network.eval()
    try:
        # Gradients stay on: without them torch fuses whole transformer layers into one uncounted operation.
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            network(example)
    finally:
        network.train(training)
    return float(counter.get_total_flops()) / 2 / 1e9
