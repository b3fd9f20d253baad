"""What `models.backbones.frames` gains on a CPU by padding small pictures before a depthwise convolution.

`python -m benchmarks.depthwise [MODEL SIZE]...`, timm's names and pixels. Networks with and without take turns, step by
step, in one process of one thread; CPU milliseconds of a step of 64 images, the median.
"""

import statistics
import sys
import time

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from models.backbones.frames import Frames
from tasks import runtime

MODELS = ("tf_efficientnet_lite0", "64", "tf_efficientnet_lite0", "96", "mobilenetv4_conv_small_035", "64")
STEPS, IMAGES = 9, 64


def step_s(network: nn.Module, images: torch.Tensor) -> float:
    """CPU seconds of one step."""
    begin = time.process_time()
    network(images).square().mean().backward()
    return time.process_time() - begin


def main(arguments: list[str]) -> None:
    """Print one row a network."""
    runtime.prepare(1)
    models = arguments or list(MODELS)
    table = Table("network", "size", "ms a step, as timm has it", "as Understudy trains it", "ratio")
    for name, size in zip(models[::2], map(int, models[1::2]), strict=True):
        plain = timm.create_model(name, num_classes=0).to(memory_format=torch.channels_last)
        config = Frames(
            kind="frames",
            name=name,
            pretrained=False,
            temporal="mean",
            normalise="none",
            dropout=0.0,
            drop_path=0.0,
        )
        ours = config.build(3).image
        images = torch.randn(IMAGES, 3, size, size).to(memory_format=torch.channels_last)
        steps = [(step_s(plain, images), step_s(ours, images)) for _ in range(STEPS)]
        before, after = (1000 * statistics.median(times) for times in zip(*steps, strict=True))
        table.add_row(name, str(size), f"{before:.0f}", f"{after:.0f}", f"{after / before:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
