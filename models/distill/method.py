"""What a training method is: how a network's output, the teachers' lesson and the labels become a loss.

It knows nothing of networks, optimisers or where teachings come from.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional

from models.network import Logits, Output

Labels = dict[str, Tensor]
"""Class of each label head, (batch,), int64."""


class Lesson(NamedTuple):
    """What the teachers say of a batch's clips in this view.

    Attributes:
        log_probs: (batch, classes) for each head, mixed and calibrated, at temperature 1.
        present: (batch,), bool: at least one teacher saw this clip. Other rows of `log_probs` mean nothing.
    """

    log_probs: Logits
    present: Tensor


class Losses(NamedTuple):
    """A loss and what it is made of.

    Attributes:
        total: scalar to minimise.
        parts: scalars without gradient, for curves.
    """

    total: Tensor
    parts: dict[str, Tensor]


class Method(BaseModel):
    """A way of training, with its numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @abstractmethod
    def loss(self, student: Output, lesson: Lesson | None, labels: Labels) -> Losses:
        """Return the loss of a batch, in float32 or wider whatever precision the network runs in.

        Args:
            student: output of the network in training.
            lesson: the teachers' word on the same views, for methods that listen to teachers.
            labels: the truth.

        Raises:
            ValueError: heads or shapes disagree, or the lesson is missing.
        """


def ground_truth(logits: Logits, labels: Labels, head_weights: Mapping[str, float] | None) -> Tensor:
    """Return the mean over heads of weighted cross-entropy, mean_a ω_a CE(z^a, y^a).

    Args:
        logits: (batch, classes) of each head.
        labels: (batch,) of the same heads.
        head_weights: ω of each head; None weighs all 1.

    Raises:
        ValueError: the heads differ.
    """
    refuse_other_heads(logits, labels, "labels")
    if head_weights is not None:
        refuse_other_heads(logits, head_weights, "head_weights")
    losses = [
        (head_weights[head] if head_weights else 1.0) * functional.cross_entropy(widen(values), labels[head])
        for head, values in logits.items()
    ]
    return torch.stack(losses).mean()


def refuse_other_heads(logits: Logits, other: Mapping[str, object], what: str) -> None:
    """Raise ValueError unless `other` (named `what` in the message) has exactly the network's heads."""
    if logits.keys() != other.keys():
        raise ValueError(f"the network has heads {sorted(logits)}, but {what} {sorted(other)}")


def widen(values: Tensor) -> Tensor:
    """Return the values in float32 or wider: half precision cannot hold a small KL."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
