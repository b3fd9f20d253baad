"""What a lesson is worth before anybody learns it: `python -m benchmarks.lesson WORKSPACE --of rgb audio umt`.

WORKSPACE is a clone, or the folder of a study's data set (.understudy/studies/STUDY/DATA_SET), whose teachers are
cross-fitted. Told are, for every seed, the NLL (nats) and accuracy (%) of mixes of those teachers: on the labelled
training clips, each judged by a network that did not learn from it, and on the validation clips, judged by all
networks; each after a temperature fitted there.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from models.calibration import apply, fit_temperature, nll
from models.ensemble import data_set_weights, learn_weights, mix, normalise
from tasks.clips import group_numbers, label_indices, read_clips, taught_clips
from tasks.errors import UserError
from tasks.layout import Workspace
from tasks.lessons import HeldOut
from tasks.params import load
from tasks.teach import load_bank
from tasks.yaml_file import suggestion


def told(weights: Tensor, held: HeldOut) -> list[str]:
    """NLL after a temperature, and accuracy in %, of the teachers' mix with `weights` (teachers,)."""
    mixture = mix(held.logits, normalise(weights, held.present), "probs")
    calibrated = apply(mixture, fit_temperature(mixture, held.labels))
    right = (mixture.argmax(-1) == held.labels).float().mean()
    return [f"{nll(calibrated, held.labels):.3f}", f"{100 * right:.1f}"]


def ways(names: list[str], training: HeldOut, validation: HeldOut) -> Iterator[tuple[str, Tensor]]:
    """Weights of the teachers (teachers,), by what they come from."""
    yield from zip(names, torch.eye(len(names)), strict=True)
    yield "even", torch.full((len(names),), 1 / len(names))
    for gamma in (0.2, 1.0, 5.0):
        yield f"by loss, γ {gamma:g}", data_set_weights(training.losses, gamma, training.present)
    for where, held in (("training", training), ("validation", validation)):
        learned = learn_weights(held.logits, held.labels, held.present, "probs", held.groups)
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
    try:
        for table in tables(Workspace(asked.workspace), asked.of):
            Console(width=140).print(table)
    except UserError as error:
        parser.exit(error.exit_code, f"{error}\n")


def tables(workspace: Workspace, names: list[str]) -> Iterator[Table]:
    """One for every head.

    Raises:
        UserError: no params or teachings there, or a teacher that they do not name, or that is not cross-fitted.
    """
    params = load(workspace.params)
    known = [*params.teachers, *params.fused]
    for name in names:
        if name not in known:
            raise UserError(f"there is no teacher {name!r}{suggestion(name, known)}", file=workspace.params)
        if params.folds(name) == 1:
            raise UserError(
                f"{name} is not cross-fitted: what it says of training clips is what it memorised",
                file=workspace.params,
                remedy="folds: 3",
            )
    clips = taught_clips(workspace.index), read_clips(workspace.index, "val")
    labels = [label_indices(each, params.data.heads) for each in clips]
    groups = [group_numbers(each) for each in clips]
    for head in params.data.heads:
        table = Table("seed", "mix", *names, "training: NLL", "right", "validation: NLL", "right", title=head)
        for seed in params.seeds:
            bank = load_bank(workspace.teachings, names, seed, *clips)
            training = HeldOut.of(bank, "train", head, labels[0][head], groups[0])
            validation = HeldOut.of(bank, "val", head, labels[1][head], groups[1])
            for way, weights in ways(names, training, validation):
                shares = [f"{weight:.2f}" for weight in weights.tolist()]
                table.add_row(str(seed), way, *shares, *told(weights, training), *told(weights, validation))
        yield table


if __name__ == "__main__":
    main()
