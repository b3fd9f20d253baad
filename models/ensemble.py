"""Mixing what several teachers say of a clip into one target, for one label head.

Call it once a head: heads have weights of their own. Teachers are told apart by their place on the axis
`teachers`; a clip may lack the modality of any of them. Calibrate teachers before (`models.calibration`), or
the one with the largest logits dominates the mix.

Source: Radevski et al., Multimodal Distillation for Egocentric Action Recognition, ICCV 2023,
arXiv 2307.07483. Beyond it: probability space, and weights renormalised over the modalities that a clip has.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

from models.calibration import COLDEST, HOTTEST, fit_temperature, nll

Weighting = Literal["uniform", "per_sample", "data_set"]
Space = Literal["logits", "probs"]

SHRINKAGES = (100.0, 10.0, 1.0, 0.1, 0.01, 0.0)
"""How strongly learned weights may be pulled towards even ones, strongest first."""
PARTS = 5
"""Most parts that held-out clips are cut into, each predicted once by weights learned from the others."""


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


def learn_weights(logits: Tensor, labels: Tensor, present: Tensor, space: Space, groups: Tensor) -> Tensor:
    """Learn the weights, and a temperature T of the mix, under which held-out clips are most likely.

    argmin over w on the simplex and T of mean_i NLL(mix_i(w) / T) + κ ‖w − even‖²

    T is learned beside them because a mean of calibrated predictions is too cautious: at T = 1 a teacher would be left
    out for blurring the mix, however much it knows. A weight can be exactly 0, so a harmful teacher has no say. In
    the space of logits a clip's loss is convex in w / T if it has every teacher; in that of probabilities it has a
    single valley in w for T ≤ 1. Their mean is searched by L-BFGS-B from even weights, the same way every time. A
    clip that only teachers of weight 0 saw is shared by them alike (`normalise`): somebody has to speak of it.

    Few clips overfit even a few weights. So κ is chosen among SHRINKAGES by cross-validation: the clips are dealt into
    at most PARTS, groups whole, or every class evenly if there is but one group, and each part is predicted by weights
    learned from the others; the lowest NLL wins. The pull is a square, so that it lets weights be 0.

    Args:
        logits: (clips, teachers, classes), calibrated, on clips the teachers were not trained on; entries of absent
            teachers may hold anything.
        labels: (clips,), int64.
        present: (clips, teachers), bool; clips without any teacher do not count.
        space: where the mix is made.
        groups: (clips,), int64, what must not be torn (participant, object).

    Returns:
        (teachers,), float32 or wider, adding up to 1; 0 for a teacher that saw no clip. `normalise` fits them to
        other clips.

    Raises:
        ValueError: no clip has any teacher.
    """
    seen, known = present.any(dim=1), present.any(dim=0)
    if not known.any():
        raise ValueError("no clip was seen by any teacher, so teachers cannot be weighed")
    clips = _Judged.of(logits[seen][:, known], labels[seen], present[seen][:, known], space)
    learned, _ = clips.fit(_shrinkage(clips, _parts(clips.labels, groups[seen])))
    found = torch.zeros(
        len(known), dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device
    )
    found[known] = learned.to(found)
    return found


@dataclass(frozen=True)
class _Judged:
    """What teachers say of clips whose labels are known, for `learn_weights`.

    Attributes:
        said: float64 (clips, teachers, classes), logits or probabilities as the space is; 0 or even if absent.
        labels: int64 (clips,).
        present: bool (clips, teachers).
        space: where the mix is made.
    """

    said: Tensor
    labels: Tensor
    present: Tensor
    space: Space

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, present: Tensor, space: Space) -> "_Judged":
        logits = torch.where(present[..., None], logits, 0).double()
        return cls(logits if space == "logits" else logits.softmax(dim=-1), labels, present, space)

    def take(self, rows: Tensor) -> "_Judged":
        return _Judged(self.said[rows], self.labels[rows], self.present[rows], self.space)

    def losses(self, weights: Tensor, log_temperature: Tensor) -> Tensor:
        """Return the NLL of each clip's mix at a temperature, (clips,)."""
        logits = self._mix(weights) / log_temperature.exp()
        return functional.cross_entropy(logits, self.labels, reduction="none")

    def fit(self, shrinkage: float) -> tuple[Tensor, Tensor]:
        """Return the best weights (teachers,) and log T of all clips at one κ."""
        teachers = self.present.shape[1]
        even = self.said.new_full((teachers,), 1 / teachers)

        def objective(numbers: np.ndarray) -> tuple[float, np.ndarray]:
            leaf = torch.tensor(numbers, device=self.said.device, requires_grad=True)
            weights = leaf[:-1] / leaf[:-1].sum()
            loss = self.losses(weights, leaf[-1]).mean() + shrinkage * (weights - even).square().sum()
            (gradient,) = torch.autograd.grad(loss, leaf)
            return loss.item(), gradient.cpu().numpy()

        begin = math.log(fit_temperature(self._mix(even), self.labels))
        found = minimize(
            objective,
            [*even.tolist(), begin],
            jac=True,
            method="L-BFGS-B",
            bounds=[(0.0, None)] * teachers + [(math.log(COLDEST), math.log(HOTTEST))],
            options={"ftol": 1e-10},
        )
        numbers = torch.from_numpy(found.x).to(self.said.device)
        return numbers[:-1] / numbers[:-1].sum(), numbers[-1]

    def _mix(self, weights: Tensor) -> Tensor:
        # Unlike that of `mix`, its gradient is a number where a weight is 0: what a silenced teacher would change.
        shares = normalise(weights, self.present)[..., None]
        mixed = (shares * self.said).sum(dim=1)
        return mixed if self.space == "logits" else mixed.clamp(min=torch.finfo(mixed.dtype).tiny).log()


def _parts(labels: Tensor, groups: Tensor) -> list[Tensor]:
    """Return the rows of at most PARTS parts: groups whole, largest first to the emptiest; of one group its classes.

    However few the groups: of four speakers, weights that fit clips of three are 0.1 nats worse on the fourth than even
    ones, which parts that share speakers do not show (av_digits, docs/results.md).
    """
    names, which, sizes = groups.unique(return_inverse=True, return_counts=True)
    if len(names) > 1:
        part_of, filled = torch.zeros_like(names), [0] * min(PARTS, len(names))
        for group in sizes.argsort(descending=True, stable=True).tolist():
            part_of[group] = filled.index(min(filled))
            filled[part_of[group]] += int(sizes[group])
        part = part_of[which]
    else:
        part = torch.empty_like(labels)
        part[labels.argsort(stable=True)] = torch.arange(len(labels), device=labels.device) % PARTS
    return [
        rows for number in range(PARTS) if 0 < len(rows := (part == number).nonzero()[:, 0]) < len(labels)
    ]


def _shrinkage(clips: _Judged, parts: Sequence[Tensor]) -> float:
    """Return the κ that predicts held-out parts of the clips best, of equal ones the strongest."""
    rows = torch.arange(len(clips.labels), device=clips.labels.device)

    def loss(shrinkage: float) -> float:
        total = 0.0
        for part in parts:
            weights, log_temperature = clips.take(rows[~torch.isin(rows, part)]).fit(shrinkage)
            total += clips.take(part).losses(weights, log_temperature).sum().item()
        return total

    return min(SHRINKAGES, key=loss)


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
    kept = torch.where(kept.sum(dim=1, keepdim=True) > 0, kept, present.to(kept.dtype))
    # Not clamped: of a teacher that is all but out of the mix, it lies below the smallest normal number.
    total = kept.sum(dim=1, keepdim=True)
    return kept / torch.where(total > 0, total, 1.0)


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
    logits: Tensor,
    labels: Tensor,
    present: Tensor,
    grid: Sequence[float],
    space: Space,
    weighing: Tensor,
    weighing_present: Tensor,
) -> float:
    """Choose the temperature of the data-set weights under which the mix, once calibrated, is most likely.

    Before it is calibrated, a teacher would be left out for blurring the mix, as in `learn_weights`. Per-sample weights
    have no such choice: they see the label, so the smallest temperature always wins.

    Args:
        logits: (clips, teachers, classes), calibrated, on clips the teachers were not trained on.
        labels: (clips,), int64.
        present: (clips, teachers), bool; clips without any teacher do not count.
        grid: candidate temperatures; of equally likely ones the largest is taken.
        space: where the mix is made.
        weighing, weighing_present: cross-entropies and presence (other clips, teachers) that the mix will have its
            data-set weights of; those clips need not be the ones that judge it.

    Returns:
        The member of `grid` with the lowest negative log-likelihood of the mix over its fitted temperature.

    Raises:
        ValueError: the grid is empty, or no clip has any teacher.
    """
    if not grid:
        raise ValueError("no candidate temperatures were given")
    seen = present.any(dim=1)

    def likelihood_loss(temperature: float) -> float:
        shares = normalise(data_set_weights(weighing, temperature, weighing_present), present)
        mixed = mix(logits, shares, space)[seen]
        return nll(mixed / fit_temperature(mixed, labels[seen]), labels[seen])

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
