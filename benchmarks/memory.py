"""What a training step loses on memory: torch's NaN in new tensors, and pages that go to the kernel and come back.

`python -m benchmarks.memory [MODEL SIZE]...`, timm's names and pixels. One process a row, the rows in turn, three
times; CPU seconds of a step of 32 images (the middle of the three), over those of a process as torch and glibc make it.
"""

import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

MODELS = ("test_resnet", "48", "efficientnet_lite0", "96")
WAYS = {  # whether torch writes NaN, whether glibc keeps memory
    "deterministic": (True, False),
    "without NaN": (False, False),
    "keeping memory": (True, True),
    "both, as the stages": (False, True),
}
ROUNDS, STEPS, IMAGES = 3, 12, 32


def step_s(way: str, name: str, size: int) -> float:
    """CPU seconds of one step in this process."""
    import timm
    import torch

    from tasks import runtime

    writes_nan, keeps = WAYS[way]
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = writes_nan  # type: ignore[attr-defined]
    if keeps:
        runtime.keep_memory()
    network = timm.create_model(name, num_classes=10).to(memory_format=torch.channels_last)
    images = torch.randn(IMAGES, 3, size, size).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters())
    times = []
    for _ in range(STEPS):
        begin = time.process_time()
        network(images).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def main(arguments: list[str]) -> None:
    """Print one row a network and way."""
    if len(arguments) == 3 and arguments[0] in WAYS:
        print(step_s(arguments[0], arguments[1], int(arguments[2])))
        return
    models = arguments or list(MODELS)
    table = Table("network", "process", "ms a step", "to the first")
    for name, size in zip(models[::2], models[1::2], strict=True):
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(ROUNDS):
            for way in WAYS:
                command = [sys.executable, "-m", "benchmarks.memory", way, name, size]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                times[way].append(float(done.stdout.split()[-1]))
        middles = {way: statistics.median(seconds) for way, seconds in times.items()}
        for way, middle in middles.items():
            table.add_row(
                f"{name} {size}", way, f"{1000 * middle:.0f}", f"{middle / middles['deterministic']:.2f}"
            )
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
