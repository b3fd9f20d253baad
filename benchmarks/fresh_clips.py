"""Do student and baseline really differ? Scored on clips of people whom the sample does not hold.

Run after a run on the sample, in the clone's root: `python -m benchmarks.fresh_clips`. Draws two more casts of the
sample's generator (32 participants, 1,088 clips; 8 minutes on two cores, kept in the work folder) and scores every
student of every seed on them. After a study, its students: `--of .understudy/studies/NAME/sample --baseline labels`.

The sample's 136 test clips of four people leave differences of 4 points to chance;
these leave about 1.5. No number of params.yaml was chosen by them; the probes of docs/methods.md were judged on the
casts 101 and 102. Intervals resample participants, since clips of one are alike.
"""

import argparse
import functools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from infra.sample.cast import LABELLED
from infra.sample.generate import generate
from models.calibration import action_confidence, reliability_of
from models.metrics import bootstrap_difference, score, score_action
from tasks import extract, ingest
from tasks.atomic import new_folder
from tasks.clips import Clip, label_indices, read_clips
from tasks.inference import view_logits
from tasks.layout import Workspace
from tasks.networks import Committee
from tasks.params import Params, load
from tasks.settings import settings
from tasks.shards import Shards

CASTS = (201, 202)
SAMPLES = 10_000
FIGURES = ("action", "verb", "noun", "nll", "nll as trained", "ece", "ece as trained")


def main() -> None:
    """Print one row a student and the differences of each to the baseline."""
    parser = argparse.ArgumentParser(description="Students of the sample, scored on clips it does not hold.")
    parser.add_argument("--of", type=Path, default=Path.cwd(), help="where they were trained")
    parser.add_argument("--baseline", default="baseline", help="its name in params.yaml")
    given = parser.parse_args()
    workspace = Workspace(given.of.resolve())
    params = load(workspace.params)
    torch.set_num_threads(params.threads)
    casts = [Workspace(Path.cwd() / settings().work / "fresh" / str(cast)) for cast in CASTS]
    with ProcessPoolExecutor(len(CASTS)) as pool:
        list(pool.map(_draw, CASTS, casts))
    for cast in casts:
        ingest.build_index(params.data, cast)
        extract.run(params, cast, "rgb")
    clips = {cast: read_clips(cast.index) for cast in casts}
    people = np.array([f"{cast.root.name} {clip.group}" for cast in casts for clip in clips[cast]])
    spawn = multiprocessing.get_context("spawn")  # decoders have threads, which a fork would lose
    with ProcessPoolExecutor(settings().slots, spawn, torch.set_num_threads, (params.threads,)) as pool:
        asked = functools.partial(_scored, params, workspace, clips=clips)
        scored = dict(zip(params.students, pool.map(asked, params.students), strict=True))

    shown = Table("student", *FIGURES, title=f"{len(people)} clips of {len(set(people))} participants")
    for name, seeds in scored.items():
        shown.add_row(
            name, *(_mean_and_spread([np.mean(seed[figure]) for seed in seeds]) for figure in FIGURES)
        )
    Console(width=140).print(shown)
    for name in (name for name in params.students if name != given.baseline):
        for figure in FIGURES[:5]:
            means = [
                np.mean([seed[figure] for seed in scored[which]], axis=0) for which in (name, given.baseline)
            ]
            of_person = [
                [values[people == person].mean() for person in np.unique(people)] for values in means
            ]
            found = bootstrap_difference(of_person[0], of_person[1], SAMPLES, seed=0)
            low, high = found.interval
            print(f"{name} against {given.baseline}, {figure}: {found.mean:+.3f} [{low:+.3f}, {high:+.3f}]")


def _draw(cast: int, workspace: Workspace) -> None:
    if not workspace.raw.exists():
        with new_folder(workspace.raw) as folder:
            generate(folder, cast, LABELLED)


def _scored(
    params: Params, workspace: Workspace, student: str, clips: dict[Workspace, list[Clip]]
) -> list[dict[str, np.ndarray]]:
    """For every seed the scores of all clips, one view each; ECE is one number."""
    return list(_of_seeds(params, workspace, student, clips))


@functools.cache  # views are kept as long as their shards are open
def _opened(folder: Path) -> Shards:
    return Shards(folder)


def _of_seeds(
    params: Params, workspace: Workspace, student: str, clips: dict[Workspace, list[Clip]]
) -> Iterator[dict[str, np.ndarray]]:
    every = [clip for cast in clips.values() for clip in cast]
    labels = {
        head: torch.from_numpy(values) for head, values in label_indices(every, params.data.heads).items()
    }
    for seed in params.seeds:
        committee = Committee.load(workspace.student(student) / f"seed-{seed}")
        parts = [
            view_logits(committee, _opened(cast.modality("rgb")), inside, 1, 1)[0]
            for cast, inside in clips.items()
        ]
        logits = {
            head: torch.from_numpy(np.concatenate([part[head][:, 0] for part in parts])) for head in labels
        }
        scaled = committee.calibrated(logits)
        yield {
            "action": score_action(logits, labels).top1.numpy(),
            **{head: score(logits[head], labels[head]).top1.numpy() for head in labels},
            "nll": score_action(scaled, labels).nll.numpy(),
            "nll as trained": score_action(logits, labels).nll.numpy(),
            "ece": np.array(reliability_of(*action_confidence(scaled, labels)).ece()),
            "ece as trained": np.array(reliability_of(*action_confidence(logits, labels)).ece()),
        }


def _mean_and_spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
