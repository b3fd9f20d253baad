"""One training or evaluation by several ranks, exact: what each made of its share becomes what one process would have.

Every rank runs the network on its share of a batch. Their outputs are put together, and every rank computes the loss
of the whole batch, which may be any function of it (pairs of clips, a balance over the batch). Backwards, each goes on
with the gradient of its own share alone; added up over the ranks, the gradients of the weights are those of the whole
batch. That is why nothing here averages: a mean of the ranks' losses would be another loss. Batch normalisation takes
its statistics over the whole batch, too.

Ranks then make the same step with the same numbers, so their weights stay equal to the bit without being sent.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.fusion import Partial
from models.network import Output, Word
from tasks import ranks
from tasks.batches import Batch


def whole(
    output: Output, batch: Batch, places: Sequence[tuple[int, int]], moments: bool
) -> tuple[Output, Batch]:
    """What all ranks' shares of a batch come to; a gradient of it reaches this rank's share.

    Args:
        output: of the network on this rank's share.
        batch: the share.
        places: (row, number) of all clips of the batch.
        moments: whether features of moments are wanted.

    Returns:
        the outputs of the whole batch, with no moments if they are not wanted; and the batch, its rows and numbers
        being those of all, its inputs still those of the share.
    """
    if ranks.count() == 1:
        return output, batch
    sizes = ranks.shares(len(places))

    def logits(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {head: _gathered(each, sizes) for head, each in values.items()}

    beside = output.beside
    if beside is not None:
        beside = {
            name: Word(logits(word.logits), _gathered(word.present, sizes)) for name, word in beside.items()
        }
    # Networks of several modalities make as many moments as those modalities have that a rank sees.
    own_moments = output.moments if moments else output.moments[:, :0]
    rows, numbers = torch.tensor(places).unbind(dim=1)
    together = Output(
        _gathered(output.features, sizes), _gathered(own_moments, sizes), logits(output.logits), beside
    )
    return together, replace(batch, rows=rows, numbers=numbers)


def _gathered(own: Tensor, sizes: Sequence[int]) -> Tensor:
    if own.dtype == torch.bool:  # not every backend carries it
        return _gathered(own.to(torch.uint8), sizes).bool()
    if own.is_floating_point():
        # Ranks may differ in precision: under autocast, what a layer made is bfloat16, and zeros in place of what no
        # clip of this rank has are float32. All must send the same.
        own = own.to(torch.promote_types(own.dtype, torch.float32))
    found: Tensor = _Gather.apply(own, sizes)
    return found


class _Gather(torch.autograd.Function):
    """Shares (rows, …) of all ranks one after the other; the gradient goes back to the own share."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.sizes = sizes
        # Backends want shares of one size.
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        begin = sum(ctx.sizes[: ranks.rank()])
        return gradients[0][begin : begin + ctx.sizes[ranks.rank()]], None


def add_up_gradients(network: nn.Module, companion: nn.Module) -> None:
    """Make the gradients of all ranks' shares those of the whole batch, equal to the bit on every rank.

    Args:
        network: has the gradients of the own share, summed over ranks. A weight that no share needed has none.
        companion: read whole outputs on every rank; has the gradients of the whole batch already, whose mean is taken.
    """
    if ranks.count() == 1:
        return
    learning = [
        (parameter, scale)
        for module, scale in ((network, 1.0), (companion, 1 / ranks.count()))
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    if not learning:
        return
    like = learning[0][0]
    has = torch.tensor([parameter.grad is not None for parameter, _ in learning], dtype=like.dtype)
    parts = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad * scale
        for parameter, scale in learning
    ]
    flat = torch.cat([has.to(like.device, non_blocking=True), *(part.flatten() for part in parts)])
    torch.distributed.all_reduce(flat)
    needed = (flat[: len(has)] > 0).tolist()
    sums = flat[len(has) :].split([parameter.numel() for parameter, _ in learning])
    for (parameter, _), summed, is_needed in zip(learning, sums, needed, strict=True):
        parameter.grad = summed.view_as(parameter) if is_needed else None


def summed(values: np.ndarray) -> None:
    """Add up an array of all ranks, in place; each gives zeros where another has the number."""
    if ranks.count() > 1 and values.size:
        torch.distributed.all_reduce(torch.from_numpy(values), group=ranks.on_cpu())


@contextmanager
def _partly(network: nn.Module) -> Iterator[None]:
    """Have the network know that other ranks see the rest of a batch."""
    partial = [module for module in network.modules() if isinstance(module, Partial)]

    def runs(part: nn.Module, rows: Tensor) -> bool:
        if not any(
            isinstance(module, nn.modules.batchnorm._BatchNorm)
            for module in part.modules()
            if module.training
        ):
            return len(rows) > 0
        total = rows.new_full((1,), len(rows))
        torch.distributed.all_reduce(total)
        return bool(total)

    for module in partial:
        module.runs = runs
    try:
        with _WholeBatchNorm():
            yield
    finally:
        for module in partial:
            del module.runs


def partly(network: nn.Module) -> AbstractContextManager[None]:
    """While it is entered, `network` learns from a share of a batch as if it saw all of it."""
    return nullcontext() if ranks.count() == 1 else _partly(network)


class _WholeBatchNorm(TorchFunctionMode):
    """Has every batch normalisation in training go by the statistics of the whole batch, on CPU and GPU alike.

    Networks keep the layers they have, whichever library they come from: all of them call this one function.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not nn.functional.batch_norm or not kwargs["training"]:
            return func(*args, **kwargs)
        x, running_mean, running_var = args
        weight, bias = kwargs["weight"], kwargs["bias"]
        y, mean, variance, clips = _Normalise.apply(x, weight, bias, kwargs["eps"])
        if running_mean is not None:
            momentum = kwargs["momentum"]
            unbiased = variance * clips / (clips - 1).clamp(min=1)
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        return y


class _Normalise(torch.autograd.Function):
    """(x − mean) / sqrt(var + ε) · weight + bias over the batches of all ranks and over space.

    Source: Ioffe and Szegedy, Batch Normalization, ICML 2015, arXiv 1502.03167, section 3, whose sums are over ranks.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        over = [dim for dim in range(x.dim()) if dim != 1]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        values = wide.new_full((1,), x.numel() // x.shape[1])
        sums = torch.cat([wide.sum(dim=over), values])
        torch.distributed.all_reduce(sums)
        total = sums[-1].clamp(min=1)
        mean = sums[:-1] / total
        shape = [1, -1] + [1] * (x.dim() - 2)
        centred = wide - mean.view(shape)
        # A second sum: mean of squares − square of mean would cancel. It also has what the first one lost by rounding.
        parts = torch.stack([centred.sum(dim=over), centred.square().sum(dim=over)])
        torch.distributed.all_reduce(parts)
        lost, squares = parts / total
        variance = squares - lost.square()
        scale = (variance + eps).rsqrt()
        y = (centred - lost.view(shape)) * scale.view(shape)
        if weight is not None:
            y = y * weight.view(shape)
        if bias is not None:
            y = y + bias.view(shape)
        ctx.save_for_backward(x, weight, mean, lost, scale, total)
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(mean, variance, total)
        return y.to(x.dtype), mean, variance, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, mean, lost, scale, total = ctx.saved_tensors
        over = [dim for dim in range(x.dim()) if dim != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        above = gradients[0].to(mean.dtype)
        normalised = (x.to(mean.dtype) - mean.view(shape) - lost.view(shape)) * scale.view(shape)
        of_bias, of_weight = above.sum(dim=over), (above * normalised).sum(dim=over)
        means = torch.stack([of_bias, of_weight])
        torch.distributed.all_reduce(means)
        of_all, of_spread = (means / total).view(2, *shape)
        below = (above - of_all - normalised * of_spread) * scale.view(shape)
        if weight is not None:
            below = below * weight.view(shape)
        # The weights' own gradients are of this rank's share: they are added up with all others.
        return (
            below.to(x.dtype),
            of_weight.to(weight.dtype) if weight is not None else None,
            of_bias.to(mean.dtype) if ctx.has_bias else None,
            None,
        )
