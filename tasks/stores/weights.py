"""Pretrained weights: from a file, or from those who publish them. Nothing is unpickled but tensors."""

import errno
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.weights import Published
from tasks.errors import InfrastructureError, UserError

_OF_CLIENTS = {
    "ConnectionError",
    "ConnectError",
    "ConnectTimeout",
    "ReadError",
    "ReadTimeout",
    "RemoteProtocolError",
}
"""Errors of requests and httpx, by name: which of them a publisher's library uses is its own affair."""


def fetch(published: Published) -> Mapping[str, Tensor]:
    """The tensors of published weights, from the network or from their library's cache.

    Raises:
        UserError: they cannot be had; says where they lie and how to do without a network.
        InfrastructureError: the same, where the network or their server failed, which may pass.
    """
    try:
        return published.fetch()
    except Exception as error:  # every client has its own for a network that is not there, or no longer
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # told as such
            raise
        message = f"{published.name} cannot be fetched from {published.address}: {_first_line(error)}"
        remedy = (
            "where there is a network, download that file; then give its path in params.yaml, as "
            "`pretrained: path/to/file`. Or set `pretrained: false`, to train from scratch"
        )
        if _may_pass(error):
            raise InfrastructureError(f"{message}\n  → {remedy}") from None
        raise UserError(message, remedy=remedy) from None


def _may_pass(error: BaseException) -> bool:
    """Whether a server or the way to it failed: by the error or one that led to it."""
    response = getattr(error, "response", None)
    status = getattr(error, "code", None) or getattr(response, "status_code", None)
    if isinstance(status, int):
        return status >= 500 or status in (408, 429)
    name = type(error).__name__
    if name == "OfflineModeIsEnabled":  # somebody set that, though it is a ConnectionError
        return False
    if isinstance(error, ConnectionError | TimeoutError | URLError | HTTPException) or name in _OF_CLIENTS:
        return True
    before = error.__cause__ or error.__context__
    return before is not None and _may_pass(before)


def read(file: Path) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file or of a PyTorch state dict.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    if not file.is_file():
        raise UserError(
            "there is no such file of pretrained weights",
            file=file,
            remedy="`pretrained` is the path of a .safetensors file or of a PyTorch state dict, or a name that "
            "the backbone's file in models/backbones knows",
        )
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # whatever a reader says of a file that is not what it should be
        raise UserError(f"pretrained weights: {_first_line(error)}", file=file) from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
