"""From the bank of teachings to one lesson a view: weigh the teachers, mix them, choose γ on validation."""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models.calibration import fit_temperature
from models.ensemble import (
    choose_temperature,
    cross_entropies,
    data_set_weights,
    learn_weights,
    mix,
    normalise,
    weights,
)
from tasks.clips import NO_LABEL
from tasks.learner import Lessons, Words
from tasks.params import Ensemble
from tasks.teach import Teachings


@dataclass(frozen=True)
class Mixed:
    """A lesson and how it came about; of teachers left apart, nothing to tell.

    Attributes:
        lessons: for the student.
        weights: head → teacher → its mean weight over the training clips.
        weights_temperature: head → γ.
        temperature: head → what the mix was divided by.
        unlabelled_temperature: the same for clips that nobody labelled, of groups without any label if there are such;
            empty where there are none.
    """

    lessons: Lessons
    weights: dict[str, dict[str, float]]
    weights_temperature: dict[str, float]
    temperature: dict[str, float]
    unlabelled_temperature: dict[str, float]


def mixed(
    ensemble: Ensemble,
    bank: dict[str, Teachings],
    train_labels: dict[str, np.ndarray],
    val_labels: dict[str, np.ndarray],
    candidates: list[float],
    held_out: bool,
    strangers: np.ndarray,
    train_groups: np.ndarray,
    val_groups: np.ndarray,
) -> Mixed:
    """Mix the teachings of several teachers into one lesson for every training view.

    Weights come from each teacher's mean over a clip's views, for each head of its own, and from clips that it did not
    learn from: the training clips, if what it says of them is out-of-fold, else the validation clips. The former are
    more, of more groups, and what the student hears: teachers that know the few groups of validation well are given
    weights under which the lesson itself is worse (docs/results.md, av_digits). To learn weights there is stacking
    (Breiman, Machine Learning 24, 1996; van der Laan et al., Super Learner, 2007).

    The mean of calibrated predictions is not calibrated, it is too cautious (Rahaman & Thiery, NeurIPS 2021, arXiv
    2007.08792): so the mix gets a temperature of its own, fitted on the same clips. Per-sample weights have seen the
    label; what they mix is left as it is.

    Of clips that nobody labelled, of groups without any label, all networks of a teacher speak, as of validation clips:
    their mix is calibrated on those. In a group that has labels a single network speaks, as of labelled clips. Where
    weights are per sample, theirs are those of the data set.

    Args:
        bank: teacher → teachings.
        train_labels: head → int64 (clips,), NO_LABEL for clips that nobody labelled.
        val_labels: head → int64 (clips,).
        candidates: for γ = auto; of them the one whose mix is most likely on the validation clips (data-set
            weights; the caller settles it for per-sample weights).
        held_out: the teachings on training clips are out-of-fold, so the mix can be weighed and calibrated on them;
            else it is on validation.
        strangers: bool (clips,), of groups without any label.
        train_groups: int64 (clips,), the groups of the training clips.
        val_groups: int64 (clips,), the groups of the validation clips.
    """
    names = list(bank)
    present = torch.from_numpy(np.stack([bank[name].train_present for name in names], 1))
    log_probs, mean_weights, chosen, temperatures, unlabelled = {}, {}, {}, {}, {}
    for head, labels in train_labels.items():
        told = torch.from_numpy(labels != NO_LABEL)
        truth, seen = torch.from_numpy(labels), present.any(1) & told
        said = torch.from_numpy(np.stack([bank[name].train[head] for name in names], 2))
        val = HeldOut.of(bank, "val", head, val_labels[head], val_groups)
        held = HeldOut.of(bank, "train", head, labels, train_groups) if held_out else val
        gamma = ensemble.weights_temperature
        if ensemble.weights in ("uniform", "learned"):
            gamma = 1.0  # they have none
        if gamma == "auto":
            gamma = choose_temperature(
                val.logits, val.labels, val.present, candidates, ensemble.space, held.losses, held.present
            )
        if ensemble.weights == "learned":
            of_all = learn_weights(held.logits, held.labels, held.present, ensemble.space, held.groups)
        elif ensemble.weights == "uniform":
            of_all = torch.ones(len(names))
        else:
            of_all = data_set_weights(held.losses, gamma, held.present)
        share = normalise(of_all, present)
        if ensemble.weights == "per_sample":
            loss = cross_entropies(_view_mean(said[told].log_softmax(-1)), truth[told])
            share[told] = weights("per_sample", loss, gamma, present[told])
        of_strangers = _temperature(
            _mix_of_views(val.said, normalise(of_all, val.present), ensemble), val.labels
        )
        lesson = _mix_of_views(said, share, ensemble)
        of_taught = of_strangers
        if held_out:
            out_of_fold = _mix_of_views(said[seen], normalise(of_all, present[seen]), ensemble)
            of_taught = _temperature(out_of_fold, truth[seen])
        temperatures[head] = 1.0 if ensemble.weights == "per_sample" else of_taught
        divisor = torch.full((len(labels), 1, 1), temperatures[head])
        if not told.all():
            strange = torch.from_numpy(strangers)
            divisor[~told & strange], divisor[~told & ~strange] = of_strangers, of_taught
            unlabelled[head] = of_strangers if strange.any() else of_taught
        log_probs[head] = (lesson / divisor).log_softmax(-1).float().numpy()
        mean_weights[head] = dict(zip(names, share[seen].mean(0).tolist(), strict=True))
        chosen[head] = gamma
    heard = present.any(1).numpy()
    hints = {name: bank[name].hints for name in names}
    given = {name: hint for name, hint in hints.items() if hint is not None}
    content = hashlib.sha256(heard.tobytes())
    for name, hint in given.items():
        content.update(name.encode())
        for array in (hint.moments, hint.member, hint.present):
            content.update(np.ascontiguousarray(array).data)
    for head, values in log_probs.items():
        content.update(head.encode())
        content.update(np.ascontiguousarray(values).data)
    lessons = Lessons(log_probs, heard, given, content.hexdigest())
    return Mixed(lessons, mean_weights, chosen, temperatures, unlabelled)


def _mix_of_views(said: Tensor, share: Tensor, ensemble: Ensemble) -> Tensor:
    """The teachers' mix of every view, (clips, views, classes), with `views: mean` the same for all of a clip.

    Args:
        said: (clips, views, teachers, classes).
        share: (clips, teachers), their weights.
    """
    clips, views, teachers, classes = said.shape
    spread = share[:, None].expand(clips, views, teachers).reshape(-1, teachers)
    found = mix(said.flatten(0, 1), spread, ensemble.space).view(clips, views, classes)
    if ensemble.views == "mean":
        found = _view_mean(found)[:, None].expand(clips, views, classes)
    return found


def _view_mean(log_probs: Tensor) -> Tensor:
    """The log of the mean probabilities over a clip's views, axis 1."""
    return log_probs.logsumexp(1) - math.log(log_probs.shape[1])


def _temperature(mixture: Tensor, labels: Tensor) -> float:
    """The temperature that calibrates a mix (clips, views, classes)."""
    views = mixture.shape[1]
    return fit_temperature(mixture.flatten(0, 1), labels.repeat_interleave(views), views)


def apart(bank: dict[str, Teachings]) -> Mixed:
    """What every teacher says of every training view, each by itself, for a method that does the mixing."""
    words, content = {}, hashlib.sha256()
    for name, teachings in bank.items():
        log_probs = {
            head: torch.from_numpy(values).log_softmax(-1).numpy() for head, values in teachings.train.items()
        }
        words[name] = Words(log_probs, teachings.train_present)
        content.update(name.encode())
        for array in (*log_probs.values(), teachings.train_present):
            content.update(np.ascontiguousarray(array).data)
    present = np.stack([word.present for word in words.values()])
    lessons = Lessons({}, np.any(present, axis=0), {}, content.hexdigest(), teachers=words)
    return Mixed(lessons, {}, {}, {}, {})


@dataclass(frozen=True)
class HeldOut:
    """What the teachers say, for one head, of labelled clips that they did not learn from.

    Attributes:
        said: (clips, views, teachers, classes), logits.
        present: bool (clips, teachers).
        labels, groups: int64 (clips,).
    """

    said: Tensor
    present: Tensor
    labels: Tensor
    groups: Tensor

    @classmethod
    def of(
        cls,
        bank: dict[str, Teachings],
        split: Literal["train", "val"],
        head: str,
        labels: np.ndarray,
        groups: np.ndarray,
    ) -> "HeldOut":
        """Of the clips of `split`, those that have a label and that any teacher saw."""
        present = np.stack([getattr(teachings, f"{split}_present") for teachings in bank.values()], 1)
        rows = present.any(1) & (labels != NO_LABEL)
        said = np.stack([getattr(teachings, split)[head][rows] for teachings in bank.values()], 2)
        return cls(*(torch.from_numpy(each) for each in (said, present[rows], labels[rows], groups[rows])))

    @cached_property
    def logits(self) -> Tensor:
        """Each teacher's mean over the views, (clips, teachers, classes)."""
        return _view_mean(self.said.log_softmax(-1))

    @property
    def losses(self) -> Tensor:
        """The cross-entropies of these, (clips, teachers)."""
        return cross_entropies(self.logits, self.labels)
