"""A stage's process: what it settles, and that its numbers do not depend on the memory it keeps."""

import subprocess
import sys

import pytest

STEPS = """
import resource, sys
import torch
from tasks import runtime

if sys.argv[1] == "kept":
    runtime.prepare(threads=1)
else:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
torch.manual_seed(0)
layers = torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 8))
optimiser = torch.optim.SGD(layers.parameters(), lr=0.1)
rows = torch.randn(4096, 256)
def step():
    layers(rows).square().mean().backward()
    optimiser.step()
    optimiser.zero_grad()
for _ in range(8):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults, float(sum(weight.double().sum() for weight in layers.parameters())).hex())
"""


def _run(way: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", STEPS, way], check=True, capture_output=True, text=True)
    faults, weights = done.stdout.split()
    return int(faults), weights


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's options")
def test_a_step_takes_the_memory_of_the_one_before_and_its_numbers_stay():
    usual, weights = _run("usual")
    kept, weights_kept = _run("kept")
    assert weights_kept == weights
    # Activations of a step are 16 MiB, 4,096 pages, twice over with their gradients.
    assert kept < usual / 3, (usual, kept)


def test_sums_are_of_one_order_and_new_tensors_are_left_unwritten():
    settled = (
        "import torch; from tasks import runtime; runtime.prepare(threads=1);"
        "print(torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(),"
        " torch.utils.deterministic.fill_uninitialized_memory)"
    )
    done = subprocess.run([sys.executable, "-c", settled], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "1", "False"]
