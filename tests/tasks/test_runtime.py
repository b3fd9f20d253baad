"""A stage's process: what it settles, and that its numbers do not depend on the memory it keeps."""

import platform
import subprocess
import sys

import pytest

PREPARED = "import torch; from tasks import runtime; runtime.prepare(threads=1)\n"
AS_IT_COMES = "import torch; torch.set_num_threads(1); torch.use_deterministic_algorithms(True)\n"

STEPS = """
torch.manual_seed(0)
layers = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8))
optimiser = torch.optim.SGD(layers.parameters(), lr=0.1)
rows = torch.randn(1024, 64)
for _ in range(5):
    layers(rows).square().mean().backward()
    optimiser.step()
    optimiser.zero_grad()
print(float(sum(weight.double().sum() for weight in layers.parameters())).hex())
"""

ROUNDS = 5
PAGES_A_ROUND = 4 * (30 << 20) // 4096
BLOCKS = f"""
import resource
def once():
    blocks = [torch.ones(30 << 18) for _ in range(4)]  # 30 MiB each, all freed at the end
for _ in range(3):
    once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _printed(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_what_a_training_computes_does_not_depend_on_it():
    assert _printed(PREPARED + STEPS) == _printed(AS_IT_COMES + STEPS)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its options")
def test_memory_that_was_freed_is_taken_again():
    # Without it each round gets new pages, all of them, five rounds over; at worst one is left to grow into here.
    assert int(_printed(PREPARED + BLOCKS)) < PAGES_A_ROUND


def test_sums_are_of_one_order_and_new_tensors_are_left_unwritten():
    told = (
        "print(torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(),"
        " torch.utils.deterministic.fill_uninitialized_memory)"
    )
    assert _printed(PREPARED + told) == "True 1 False"
