"""Which of the processes that do one stage together this is, and how they wait for each other.

A training with `devices` above 1 has a process a device, started by torchrun (`tasks.launch`), which says in the
environment who is who. All run the same stage; the first one alone writes, locks, prints and tells MLflow. A stage of
one process knows nothing of others: there is no process group, and nothing here does anything.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

Item = TypeVar("Item")

_PATIENCE = timedelta(days=365)
"""Torchrun ends all when one dies; until then a rank may wait for hours, say for a training of another stage."""
_STUCK = timedelta(minutes=30)
"""So long one GPU waits for another, then its process dies. GPUs talk within an epoch alone, which all ranks begin
together (`wait_for_all`) and in which none does anything by itself but read its share of the views."""
_on_cpu: "ProcessGroup | None" = None


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def count() -> int:
    """How many processes do this stage together."""
    return int(os.environ["WORLD_SIZE"]) if under_torchrun() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ["RANK"]) if under_torchrun() else 0


def is_first() -> bool:
    """Whether this is the one that writes."""
    return rank() == 0


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This rank's part of what all do together: contiguous, in the ranks' order, sizes as even as they can be."""
    if count() == 1:
        return items
    begin, end = (len(items) * part // count() for part in (rank(), rank() + 1))
    return items[begin:end]


def shares(items: int) -> list[int]:
    """How many of so many items `share` gives to each rank."""
    return [items * (part + 1) // count() - items * part // count() for part in range(count())]


def wait_for_all() -> None:
    """Return when every rank is here, however long that takes."""
    if count() > 1:
        import torch.distributed

        torch.distributed.barrier(on_cpu())


def on_cpu() -> "ProcessGroup | None":
    """By whom the ranks send each other what lies on the CPU; they wait for it as long as it takes."""
    return _on_cpu


@contextmanager
def joined(device: "torch.device") -> Iterator[None]:
    """Be one of the ranks: connected to the others, and silent unless the first.

    Args:
        device: of this rank.
    """
    import torch
    import torch.distributed

    global _on_cpu
    if device.type == "cuda":
        torch.cuda.set_device(device)  # messages between GPUs go from the current one
        torch.distributed.init_process_group("nccl", timeout=_STUCK)
    else:
        torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    # What lies on the CPU (predictions to be put together) goes by gloo, whatever the device.
    _on_cpu = torch.distributed.new_group(  # type: ignore[assignment]  # nobody is left out
        backend="gloo", timeout=_PATIENCE
    )
    if is_first():
        yield
    else:
        warnings.simplefilter("ignore")
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            yield
    _on_cpu = None
    torch.distributed.destroy_process_group()  # after an error, torchrun ends the others
