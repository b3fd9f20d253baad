"""The ensemble of teachers as a row of the comparison: what students are distilled from, used itself."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models import ensemble
from models.calibration import fit_temperature
from tasks.report.predictions import Prediction


def weigh(
    teachers: Sequence[Prediction], labels: Mapping[str, Tensor], grid: Sequence[float]
) -> dict[str, Tensor]:
    """Weigh teachers by their loss on clips they were not trained on.

    Args:
        teachers: what each said of the validation clips.
        labels: head → (clips,), int64.
        grid: candidates for the weights' temperature γ; the mix with the lowest NLL decides.

    Returns:
        head → weights (teachers,), adding up to 1.

    Raises:
        ValueError: no clip was seen by any teacher.
    """
    seen = torch.stack([teacher.seen for teacher in teachers], dim=1)
    found = {}
    for head, truth in labels.items():
        logits = torch.stack([teacher.calibrated[head] for teacher in teachers], dim=1)
        losses = ensemble.cross_entropies(logits, truth)
        gamma = ensemble.choose_temperature(logits, truth, seen, grid, "probs", losses, seen)
        found[head] = ensemble.data_set_weights(losses, gamma, seen)
    return found


def mix(
    teachers: Sequence[Prediction], weights: Mapping[str, Tensor], unseen: Mapping[str, Tensor]
) -> Prediction:
    """Average the calibrated probabilities of the teachers that see a clip.

    The mix is not calibrated yet, its `raw` is its `calibrated`; see `calibrate`.

    Args:
        teachers: what each said of the same clips.
        weights: head → (teachers,).
        unseen: head → (classes,), log-probabilities for a clip that no teacher sees.
    """
    present = torch.stack([teacher.seen for teacher in teachers], dim=1)
    seen = present.any(dim=1)
    mixed = {}
    for head, shares in weights.items():
        logits = torch.stack([teacher.calibrated[head] for teacher in teachers], dim=1)
        found = ensemble.mix(logits, ensemble.normalise(shares, present), "probs")
        mixed[head] = torch.where(seen[:, None], found, unseen[head].to(found.dtype))
    return Prediction(mixed, mixed, seen)


def calibrate(mixed: Prediction, held_out: Prediction, labels: Mapping[str, Tensor]) -> Prediction:
    """Give a mix the temperature under which the same mix is calibrated on held-out clips.

    The mean of calibrated predictions is too cautious (Rahaman & Thiery, NeurIPS 2021, arXiv 2007.08792).

    Args:
        mixed: of the clips to be scored.
        held_out: of the validation clips, at least one of them seen.
        labels: head → (validation clips,), int64.
    """
    calibrated = {}
    for head, values in mixed.raw.items():
        seen = held_out.seen
        temperature = fit_temperature(held_out.raw[head][seen], labels[head][seen])
        calibrated[head] = (values / temperature).log_softmax(dim=-1)
    return Prediction(mixed.raw, calibrated, mixed.seen)
