"""Running one stage as several ranks: torchrun, in this process, with the stage's own exit codes and messages.

Torchrun's agent starts the ranks, watches them and ends all when one dies. By itself it would answer every failure
with exit code 1 and a banner, and listen on every network interface of the machine.
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from uuid import uuid4

from tasks.errors import InfrastructureError, UserError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

_BACKEND = "loopback"
_LOOPBACK = "127.0.0.1"
_GRACE_S = 10
"""What a rank has between SIGTERM and SIGKILL."""
_KNOWN = (UserError.exit_code, InfrastructureError.exit_code)


def launch(ranks: int, arguments: Sequence[str]) -> int:
    """Run `python` with `arguments` as so many ranks and wait for them.

    Returns:
        0, or the exit code of the rank that failed first, whose error was printed: 2 for a `UserError`, 75 for an
        `InfrastructureError`, 128 + the signal that killed it, 1 for a defect.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # what failed is told below
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if sys.platform == "linux":
            os.environ.setdefault(variable, "lo")  # all ranks are on this machine
    rendezvous_handler_registry.register(_BACKEND, _on_loopback)
    with TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=ranks,
            run_id=uuid4().hex,
            rdzv_backend=_BACKEND,
            rdzv_endpoint=f"{_LOOPBACK}:0",
            local_addr=_LOOPBACK,
            max_restarts=0,  # whoever runs the stage may start it again, from its checkpoint
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            shutdown_timeout=_GRACE_S,
        )
        try:
            elastic_launch(config, sys.executable)(*arguments)
        except ChildFailedError as failed:
            return _tell(failed.failures)
        except SignalException as ended:
            signal.signal(ended.sigval, signal.SIG_DFL)
            os.kill(os.getpid(), ended.sigval)  # as if there had been no ranks
    return 0


def record(error: BaseException) -> None:
    """Leave the error of this rank, which is being handled, for `launch` to tell."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)


def _tell(failures: Mapping[int, "ProcessFailure"]) -> int:
    """Print the error that came first, and its exit code.

    A rank whose partner died fails too, soon after, of a broken connection: that is not the reason.
    """
    rank, first = min(failures.items(), key=lambda item: (_distance(item[1].exitcode), item[1].timestamp))
    if first.exitcode < 0:
        print(f"error: rank {rank} was killed ({first.signal_name()})", file=sys.stderr)
        return 128 - first.exitcode
    message = first.message
    if isinstance(message, Mapping):
        known = message["message"].partition(": ")[2]
        told = f"error: {known}" if first.exitcode in _KNOWN else message["extraInfo"]["py_callstack"]
        print(told, file=sys.stderr)
    return first.exitcode


def _distance(exit_code: int) -> int:
    """How far an exit code is from the reason: known errors, kills, defects, then ranks that torchrun ended."""
    if exit_code == -signal.SIGTERM:
        return 3
    return 0 if exit_code in _KNOWN else 1 if exit_code < 0 else 2


def _on_loopback(parameters: "RendezvousParameters") -> "RendezvousHandler":
    """The meeting point of the ranks: a store that listens on loopback alone."""
    from torch.distributed import PrefixStore, TCPStore
    from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousStoreInfo
    from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

    class OnLoopback(StaticTCPRendezvous):
        def get_backend(self) -> str:
            return _BACKEND

        def next_rendezvous(self) -> RendezvousInfo:
            listening = socket.create_server((_LOOPBACK, 0))
            self.master_port = listening.getsockname()[1]
            self._store = TCPStore(
                _LOOPBACK,
                self.master_port,
                is_master=True,
                wait_for_workers=False,
                master_listen_fd=listening.detach(),
            )
            return RendezvousInfo(
                PrefixStore(self.run_id, self._store),
                self.rank,
                self.world_size,
                RendezvousStoreInfo(_LOOPBACK, self.master_port),
            )

    return OnLoopback(_LOOPBACK, 0, rank=0, world_size=1, run_id=parameters.run_id, timeout=60)
