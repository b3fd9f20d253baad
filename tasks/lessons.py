"""From the bank of teachings to one lesson a view: weigh the teachers, mix them, choose γ on validation."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.ensemble import choose_temperature, cross_entropies, mix, weights
from tasks.learner import Lessons
from tasks.params import Ensemble
from tasks.teach import Teachings


@dataclass(frozen=True)
class Mixed:
    """A lesson and how it came about.

    Attributes:
        lessons: for the student.
        weights: head → teacher → its mean weight over the training clips.
        weights_temperature: head → γ.
    """

    lessons: Lessons
    weights: dict[str, dict[str, float]]
    weights_temperature: dict[str, float]


def mixed(
    ensemble: Ensemble,
    bank: dict[str, Teachings],
    train_labels: dict[str, np.ndarray],
    val_labels: dict[str, np.ndarray],
    candidates: list[float],
) -> Mixed:
    """Mix the teachings of several teachers into one lesson for every training view.

    Weights come from the cross-entropies of out-of-fold teachings, for each head of its own; γ = auto takes of
    `candidates` the one whose mix is most likely on the validation clips (for data-set weights; the caller
    settles it for per-sample weights, which see the label).

    Args:
        bank: teacher → teachings.
        train_labels: head → int64 (clips,).
        val_labels: head → int64 (clips,).
    """
    names = list(bank)
    train_present = torch.from_numpy(np.stack([bank[name].train_present for name in names], 1))
    log_probs, mean_weights, chosen = {}, {}, {}
    for head, labels in train_labels.items():
        said = torch.from_numpy(
            np.stack([bank[name].train[head] for name in names], 2)
        )  # clips, views, teachers, classes
        clips, views, teachers, classes = said.shape
        truth = torch.from_numpy(labels)
        loss = (
            cross_entropies(said.flatten(0, 1), truth.repeat_interleave(views))
            .view(clips, views, teachers)
            .mean(1)
        )
        gamma = ensemble.weights_temperature
        if gamma == "auto":
            gamma = _on_validation(ensemble, bank, head, val_labels[head], candidates)
        share = weights(ensemble.weights, loss, gamma, train_present)
        spread = share[:, None].expand(clips, views, teachers).reshape(-1, teachers)
        log_probs[head] = (
            mix(said.flatten(0, 1), spread, ensemble.space).view(clips, views, classes).float().numpy()
        )
        mean_weights[head] = dict(zip(names, share[train_present.any(1)].mean(0).tolist(), strict=True))
        chosen[head] = gamma
    present = train_present.any(1).numpy()
    content = hashlib.sha256(present.tobytes())
    for head, values in log_probs.items():
        content.update(head.encode())
        content.update(np.ascontiguousarray(values).data)
    return Mixed(Lessons(log_probs, present, content.hexdigest()), mean_weights, chosen)


def _on_validation(
    ensemble: Ensemble, bank: dict[str, Teachings], head: str, labels: np.ndarray, candidates: list[float]
) -> float:
    if ensemble.weights == "uniform":
        return 1.0  # it has no part in uniform weights
    logits, present = val_logits(bank, head)
    return choose_temperature(logits, torch.from_numpy(labels), present, candidates, ensemble.space)


def val_logits(bank: dict[str, Teachings], head: str) -> tuple[Tensor, Tensor]:
    """The teachers' logits on the validation clips (clips, teachers, classes) and who saw them (clips, teachers)."""
    logits = np.stack([teachings.val[head] for teachings in bank.values()], 1)
    present = np.stack([teachings.val_present for teachings in bank.values()], 1)
    return torch.from_numpy(logits), torch.from_numpy(present)
