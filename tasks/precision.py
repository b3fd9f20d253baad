"""Whether this processor's bfloat16 can be trusted with a network's convolutions, and whether it is worth it.

oneDNN 3.13, which torch 2.15 brings, convolves narrow pictures wrongly in bfloat16 on processors with AMX: a kernel of
3 × 3 and stride 2 over at most two columns and at least three rows gives what lay in memory before, in its output or in
the gradient of its weights, without a word (measured 2026-11-29; its repository knows several such defects, as in
https://github.com/uxlfoundation/oneDNN/pull/5494). A training may end in numbers that are none, or go on with garbage.

A processor without instructions for bfloat16 computes rightly and slowly: an AVX2 one took nine times as long as in
float32 (the sample's ResNet, torch 2.15, measured the same day). So does a GPU older than Ampere, of compute capability
8.0 (V100, T4, RTX 20): torch calls bfloat16 there emulated.
"""

import time

import torch
from torch import Tensor, nn

from tasks.errors import UserError
from tasks.inference import device
from tasks.learner import Learner
from tasks.params import Training

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRIES = 3
_SLOW = 2.0
"""Times as long as in float32; what the processor has instructions for is faster, depthwise convolutions aside."""
_AMPERE = (8, 0)
"""The compute capability of the first GPUs with instructions for bfloat16 (`torch.cuda.is_bf16_supported`)."""
_WRONG = 0.1
"""Of the largest number of the right answer. bfloat16 itself is off by 0.005."""
_PICTURES = 32
"""That noise is made for: enough that the processor works as it does in training, and few enough for large networks."""


def try_bfloat16(learner: Learner, training: Training | None = None) -> None:
    """Try every convolution of the learner's network on noise, in bfloat16 and float32: seconds at most.

    Warns where bfloat16 is much the slower. A GPU is asked for its age alone.

    Args:
        learner: whose network and place in params.yaml are meant.
        training: that the network is shown in; None: the learner's own.

    Raises:
        UserError: the training is in bfloat16 on a processor that computes one of them wrongly.
    """
    training = training or learner.training
    if training.precision != "bfloat16":
        return
    there = device()
    if there.type == "cuda" and torch.cuda.get_device_capability(there) < _AMPERE:
        print(
            f"warning: {learner.name}: bfloat16 is emulated on this GPU ({torch.cuda.get_device_name(there)}); "
            "precision: float32 in its training is faster here"
        )
    if there.type != "cpu":
        return
    network = learner.spec.empty_network().eval()
    seen: dict[str, tuple[nn.Module, Tensor]] = {}

    def watch(name: str, layer: nn.Module) -> None:
        layer.register_forward_hook(lambda _, inputs, __: seen.update({name: (layer, inputs[0])}))

    convolutions = [found for found in network.named_modules() if isinstance(found[1], _CONVOLUTIONS)]
    for name, layer in convolutions:
        watch(name, layer)
    with torch.inference_mode():
        network(learner.spec.example())
    fast, slow = 0.0, 0.0
    for name, (layer, x) in seen.items():
        noise = _noise(x)
        right = _computed(layer, noise, torch.float32)
        _, seconds = _tried(layer, noise, torch.float32, right)
        fast += seconds
        found, seconds = _tried(layer, noise, torch.bfloat16, right)
        slow += seconds
        if any(_is_wrong(values, right) for values in found):
            size = " × ".join(str(length) for length in x.shape[1:])
            raise UserError(
                f"{learner.name}: this processor computes the convolution {name} of {size} numbers wrongly in bfloat16",
                file=learner.workspace.params,
                remedy="set precision: float32 in its training, or show it larger pictures",
            )
    if slow > _SLOW * fast:
        print(
            f"warning: {learner.name}: convolutions take {slow / fast:.0f} times as long in bfloat16 as in float32 on "
            "this processor; precision: float32 in its training is faster here"
        )


def _noise(example: Tensor) -> Tensor:
    """Noise of the shape and layout of `example`."""
    noise = torch.randn(_PICTURES, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    if example.dim() == 4 and example.is_contiguous(memory_format=torch.channels_last):
        noise = noise.to(memory_format=torch.channels_last)
    return noise


def _tried(
    layer: nn.Module, x: Tensor, precision: torch.dtype, like: list[Tensor]
) -> tuple[list[list[Tensor]], float]:
    """What `_computed` gives, several times, in memory that holds no numbers; and the seconds of the fastest."""
    found, seconds = [], []
    for _ in range(_TRIES):
        _spoil_free_memory(like)
        begin = time.perf_counter()
        found.append(_computed(layer, x, precision))
        seconds.append(time.perf_counter() - begin)
    return found, min(seconds)


def _is_wrong(found: list[Tensor], right: list[Tensor]) -> bool:
    """Whether outputs or gradients are off by more than rounding, or no numbers."""
    return any(
        not (value - wanted).abs().max() <= _WRONG * wanted.abs().max()
        for value, wanted in zip(found, right, strict=True)
    )


def _computed(layer: nn.Module, x: Tensor, precision: torch.dtype) -> list[Tensor]:
    """Output, and the gradients of input and weights where every output counts alike but for its sign."""
    x = x.clone().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
        y = layer(x)
    signs = torch.ones(y.numel(), device=y.device)
    signs[1::2] = -1
    weight: Tensor = layer.weight  # type: ignore[assignment]
    grads = torch.autograd.grad(y.float(), (x, weight), signs.view(y.shape))
    return [value.detach().float() for value in (y, *grads)]


def _spoil_free_memory(like: list[Tensor]) -> None:
    """Leave what is no number where memory of these sizes is freed, so that what is read before it is written shows."""
    for value in like:
        for precision in (torch.float32, torch.bfloat16):
            torch.full_like(value, torch.nan, dtype=precision)
