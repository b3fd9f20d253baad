"""Pretrained weights: from a file, or from those who publish them. Nothing is unpickled but tensors."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.weights import Published
from tasks.errors import UserError


def fetch(published: Published) -> Mapping[str, Tensor]:
    """The tensors of published weights, from the network or from their library's cache.

    Raises:
        UserError: they cannot be had; says where they lie and how to do without a network.
    """
    try:
        return published.fetch()
    except Exception as error:  # every client has its own for a network that is not there, or no longer
        raise UserError(
            f"{published.name} cannot be fetched from {published.address}: {_first_line(error)}",
            remedy="where there is a network, download that file; then give its path in params.yaml, as "
            "`pretrained: path/to/file`. Or set `pretrained: false`, to train from scratch",
        ) from None


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
