"""What a lesson is worth before anybody learns it: `python -m benchmarks.lesson WORKSPACE --of rgb audio umt`.

WORKSPACE is a clone, or the folder of a study's data set (.understudy/studies/STUDY/DATA_SET), whose teachers are
cross-fitted. Told are, for every seed, the NLL (nats) and accuracy (%) of mixes of those teachers: on the labelled
training clips, each judged by a network that did not learn from it, and on the validation clips, judged by all
networks; each after a temperature fitted there.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from models.calibration import apply, fit_temperature, nll
from models.ensemble import cross_entropies, data_set_weights, learn_weights, mix, normalise
from tasks.clips import NO_LABEL, Clip, label_indices, read_clips, taught_clips
from tasks.layout import Workspace
from tasks.params import load
from tasks.teach import Teachings, load_bank


@dataclass(frozen=True)
class Said:
    """What the teachers say of labelled clips.

    Attributes:
        words: (clips, teachers, classes), log-probabilities, mean over a clip's views.
        present: bool (clips, teachers).
        truth, groups: int64 (clips,).
    """

    words: Tensor
    present: Tensor
    truth: Tensor
    groups: Tensor

    @classmethod
    def of(
        cls,
        bank: dict[str, Teachings],
        split: Literal["train", "val"],
        clips: list[Clip],
        head: str,
        labels: np.ndarray,
    ) -> "Said":
        """Of the clips of a split, those that have a label."""
        rows = labels != NO_LABEL
        views = torch.from_numpy(
            np.stack([getattr(teachings, split)[head][rows] for teachings in bank.values()], 2)
        ).log_softmax(-1)
        present = np.stack([getattr(teachings, f"{split}_present")[rows] for teachings in bank.values()], 1)
        groups = np.unique([clip.group for clip in clips], return_inverse=True)[1][rows]
        words = views.logsumexp(1) - np.log(views.shape[1])
        return cls(words, *(torch.from_numpy(each) for each in (present, labels[rows], groups)))

    def told(self, weights: Tensor) -> list[str]:
        """NLL after a temperature, and accuracy in %, of the mix."""
        mixture = mix(self.words, normalise(weights, self.present), "probs")
        calibrated = apply(mixture, fit_temperature(mixture, self.truth))
        right = (mixture.argmax(-1) == self.truth).float().mean()
        return [f"{nll(calibrated, self.truth):.3f}", f"{100 * right:.1f}"]


def ways(names: list[str], training: Said, validation: Said) -> Iterator[tuple[str, Tensor]]:
    """Weights of the teachers, by what they come from."""
    yield from zip(names, torch.eye(len(names)), strict=True)
    yield "even", torch.full((len(names),), 1 / len(names))
    losses = cross_entropies(training.words, training.truth)
    for gamma in (0.2, 1.0, 5.0):
        yield f"by loss, γ {gamma:g}", data_set_weights(losses, gamma, training.present)
    for where, said in (("training", training), ("validation", validation)):
        learned = learn_weights(said.words, said.truth, said.present, "probs", said.groups)
        yield f"learned on {where}", learned


def main() -> None:
    """Print one row a seed and way of mixing, for every head."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--of", nargs="+", required=True, metavar="TEACHER", help="whose words are mixed")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    workspace, names = Workspace(asked.workspace), asked.of
    params = load(workspace.params)
    clips = taught_clips(workspace.index), read_clips(workspace.index, "val")
    labels = [label_indices(each, params.data.heads) for each in clips]
    for head in params.data.heads:
        table = Table("seed", "mix", *names, "training: NLL", "right", "validation: NLL", "right", title=head)
        for seed in params.seeds:
            bank = load_bank(workspace.teachings, names, seed, *clips)
            training = Said.of(bank, "train", clips[0], head, labels[0][head])
            validation = Said.of(bank, "val", clips[1], head, labels[1][head])
            for way, weights in ways(names, training, validation):
                shares = [f"{weight:.2f}" for weight in weights.tolist()]
                table.add_row(str(seed), way, *shares, *training.told(weights), *validation.told(weights))
        Console(width=140).print(table)


if __name__ == "__main__":
    main()
