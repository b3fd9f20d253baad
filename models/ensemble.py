"""Mixing what several teachers say of a clip into one target, for one label head.

Call it once a head: heads have weights of their own. Teachers are told apart by their place on the axis
`teachers`; a clip may lack the modality of any of them. Calibrate teachers before (`models.calibration`), or
the one with the largest logits dominates the mix.

Source: Radevski et al., Multimodal Distillation for Egocentric Action Recognition, ICCV 2023,
arXiv 2307.07483. Beyond it: probability space, and weights renormalised over the modalities that a clip has.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Weighting = Literal["uniform", "per_sample", "data_set"]
Space = Literal["logits", "probs"]


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of every teacher on every clip, in nats.

    Args:
        logits: (clips, teachers, classes).
        labels: (clips,), int64.

    Returns:
        (clips, teachers); meaningless where the clip lacks the teacher's modality.
    """
    teachers = logits.shape[1]
    spread = labels[:, None].expand(-1, teachers)
    return functional.cross_entropy(logits.flatten(0, 1), spread.flatten(), reduction="none").view_as(spread)


def weights(kind: Weighting, cross_entropies: Tensor, temperature: float, present: Tensor) -> Tensor:
    """Weigh the teachers of every clip: softmax(-cross-entropy / temperature) over those that saw it.

    Args:
        kind: "uniform" ignores the cross-entropies, "per_sample" uses those of the clip itself, "data_set"
            their mean over all clips that the teacher saw.
        cross_entropies: (clips, teachers), from predictions on clips the teachers were not trained on.
        temperature: γ > 0; large makes weights uniform, small gives all to the best teacher.
        present: (clips, teachers), bool: the clip has the teacher's modality.

    Returns:
        (clips, teachers). Rows add up to 1; absent teachers have 0, a clip without any teacher only zeros.

    Raises:
        ValueError: shapes differ, or the temperature is not positive.
    """
    _refuse_mismatch(cross_entropies, present)
    if kind == "uniform":
        return normalise(torch.ones_like(cross_entropies), present)
    if kind == "data_set":
        return normalise(data_set_weights(cross_entropies, temperature, present), present)
    return _softmax(-cross_entropies / _positive(temperature), present)


def data_set_weights(cross_entropies: Tensor, temperature: float, present: Tensor) -> Tensor:
    """Weigh the teachers once for a whole data set, by their mean cross-entropy over the clips they saw.

    Args:
        cross_entropies: (clips, teachers), from predictions on clips the teachers were not trained on.
        temperature: γ > 0.
        present: (clips, teachers), bool.

    Returns:
        (teachers,), adding up to 1; 0 for a teacher that saw no clip. `normalise` fits them to other clips.

    Raises:
        ValueError: shapes differ, the temperature is not positive, or no clip has any teacher.
    """
    _refuse_mismatch(cross_entropies, present)
    seen = present.any(dim=0)
    if not seen.any():
        raise ValueError("no clip was seen by any teacher, so teachers cannot be weighed")
    total = torch.where(present, cross_entropies, 0).sum(dim=0)
    return _softmax(-total / present.sum(dim=0).clamp(min=1) / _positive(temperature), seen)


def normalise(weights: Tensor, present: Tensor) -> Tensor:
    """Share every clip's weight among the teachers that saw it, in the given proportions.

    Args:
        weights: (teachers,) or (clips, teachers), at least 0.
        present: (clips, teachers), bool.

    Returns:
        (clips, teachers). Rows add up to 1, or are zero for a clip without any teacher. Where all the weight
        lies on teachers that did not see the clip, the others share it equally.
    """
    kept = weights.expand(present.shape) * present
    total = kept.sum(dim=1, keepdim=True)
    kept = torch.where(total > 0, kept, present.to(kept.dtype))
    return kept / kept.sum(dim=1, keepdim=True).clamp(min=torch.finfo(kept.dtype).tiny)


def mix(logits: Tensor, weights: Tensor, space: Space) -> Tensor:
    """Mix the teachers' predictions into one distribution a clip.

    Args:
        logits: (clips, teachers, classes), calibrated; entries of absent teachers may hold anything.
        weights: (clips, teachers), 0 for absent teachers.
        space: "logits" averages logits (a geometric mean of distributions), "probs" averages probabilities.

    Returns:
        Log-probabilities (clips, classes), float32 or wider; uniform for a clip without any teacher.

    Raises:
        ValueError: shapes differ.
    """
    if logits.shape[:2] != weights.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and weights {tuple(weights.shape)} disagree")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    heard = (weights > 0)[..., None]
    logits = torch.where(heard, logits, 0)
    shares = weights.to(logits.dtype)[..., None]
    if space == "logits":
        return (shares * logits).sum(dim=1).log_softmax(dim=-1)
    terms = (logits.log_softmax(dim=-1) + shares.log()).logsumexp(dim=1)
    return torch.where(heard.any(dim=1), terms, -math.log(logits.shape[-1]))


def choose_temperature(
    logits: Tensor, labels: Tensor, present: Tensor, grid: Sequence[float], space: Space
) -> float:
    """Choose the temperature of the data-set weights under which the mix is most likely on held-out clips.

    Per-sample weights have no such choice: they see the label, so the smallest temperature always wins.

    Args:
        logits: (clips, teachers, classes), calibrated, on clips the teachers were not trained on.
        labels: (clips,), int64.
        present: (clips, teachers), bool; clips without any teacher do not count.
        grid: candidate temperatures; of equally likely ones the largest is taken.
        space: where the mix is made.

    Returns:
        The member of `grid` with the lowest negative log-likelihood.

    Raises:
        ValueError: the grid is empty, or no clip has any teacher.
    """
    if not grid:
        raise ValueError("no candidate temperatures were given")
    losses = cross_entropies(logits, labels)
    seen = present.any(dim=1)

    def likelihood_loss(temperature: float) -> float:
        mixed = mix(logits, weights("data_set", losses, temperature, present), space)
        return functional.nll_loss(mixed[seen], labels[seen]).item()

    return min(sorted(grid, reverse=True), key=likelihood_loss)


def _softmax(scores: Tensor, present: Tensor) -> Tensor:
    """Softmax over the last axis among what is present; zeros where nothing is."""
    masked = torch.where(present, scores, -math.inf)
    return torch.where(present, masked.softmax(dim=-1), 0)


def _positive(temperature: float) -> float:
    if not temperature > 0:
        raise ValueError(f"the weights' temperature must be above 0, not {temperature}")
    return temperature


def _refuse_mismatch(cross_entropies: Tensor, present: Tensor) -> None:
    if cross_entropies.shape != present.shape:
        raise ValueError(
            f"cross-entropies {tuple(cross_entropies.shape)} and present {tuple(present.shape)} disagree"
        )
