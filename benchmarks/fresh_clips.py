"""Do student and baseline really differ? Scored on clips of people whom the sample does not hold.

Run after a run on the sample, in the clone's root: `python -m benchmarks.fresh_clips`. Draws two more casts of the
sample's generator (32 participants, 1,088 clips; 8 minutes on two cores, kept in the work folder) and scores every
student of every seed on them. After a study, its students: `--of .understudy/studies/NAME/sample --baseline labels`.

The sample's 136 test clips of four people leave differences of 4 points to chance;
these leave about 1.5. No number of params.yaml was chosen by them, but they were looked at between versions of the
methods; the probes of docs/tried.md were judged on the casts 101 and 102. Intervals and p-values resample participants,
since clips of one are alike, and seeds; p is adjusted by Holm over the students compared in a figure.
"""

import argparse
import functools
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from infra.sample.cast import LABELLED
from infra.sample.generate import generate
from models.metrics import score, score_action
from tasks import extract, ingest
from tasks.atomic import new_folder
from tasks.clips import Clip, label_indices, read_clips
from tasks.errors import UserError
from tasks.inference import view_logits
from tasks.layout import Workspace
from tasks.networks import Committee
from tasks.params import Params, load
from tasks.report.ece_interval import ece_per_seed, signed_gaps
from tasks.settings import settings
from tasks.shards import Shards
from tasks.study.statistics import Figure, figure_of_gaps, holm, mean_figure, paired
from tasks.study.table import p_value

SAMPLES = 10_000
BINS = 15
PERCENT = ("action", "verb", "noun")
OTHERS = ("ECE", "ECE scaled", "NLL", "NLL scaled")
COMPARED = ("action", "ECE", "ECE scaled", "NLL scaled")


def main() -> None:
    """Print a Markdown table, a row for each student."""
    parser = argparse.ArgumentParser(description="Students of the sample, scored on clips it does not hold.")
    parser.add_argument("--of", type=Path, default=Path.cwd(), help="where they were trained")
    parser.add_argument(
        "--baseline",
        nargs="+",
        default=["baseline"],
        help="names in params.yaml: a table of differences to each",
    )
    parser.add_argument(
        "--casts",
        type=int,
        nargs="+",
        default=[201, 202],
        help="seeds of the generator, not those of the sample",
    )
    given = parser.parse_args()
    workspace = Workspace(given.of.resolve())
    params = load(workspace.params)
    for name in given.baseline:
        if name not in params.students:
            parser.error(f"--baseline {name}: the students there are {', '.join(params.students)}")
    torch.set_num_threads(params.threads)
    casts = [Workspace(Path.cwd() / settings().work / "fresh" / str(cast)) for cast in given.casts]
    with ProcessPoolExecutor(len(casts)) as pool:
        list(pool.map(_draw, given.casts, casts))
    for cast in casts:
        ingest.build_index(params.data, cast)
        extract.run(params, cast, "rgb")
    clips = {cast: read_clips(cast.index) for cast in casts}
    people = np.array([f"{cast.root.name} {clip.group}" for cast in casts for clip in clips[cast]])
    spawn = multiprocessing.get_context("spawn")  # decoders have threads, which a fork would lose
    with ProcessPoolExecutor(settings().slots, spawn, torch.set_num_threads, (params.threads,)) as pool:
        asked = functools.partial(_scored, params, workspace, clips=clips)
        scored = dict(zip(params.students, pool.map(asked, params.students), strict=True))

    print(f"{len(people)} clips of {len(set(people))} participants\n")
    figures = {name: _figures(seeds, people) for name, seeds in scored.items()}
    for baseline in given.baseline:
        print("\n".join(_table(figures, baseline)), end="\n\n")


def _table(figures: dict[str, dict[str, Figure]], baseline: str) -> list[str]:
    """Markdown rows: figures, and differences to the baseline with 95 % intervals over people and seeds, and p."""
    told = {figure: _differences(figures, baseline, figure) for figure in COMPARED}
    shown = []
    for figure in PERCENT + OTHERS:
        shown += [figure, f"{figure} to `{baseline}`"] if figure in COMPARED else [figure]
    rows = [f"| method | {' | '.join(shown)} |", "|---" * (len(shown) + 1) + "|"]
    for name, own in figures.items():
        cells = []
        for figure in PERCENT + OTHERS:
            scale, digits = (100, 1) if figure in PERCENT else (1, 3)
            spread = "" if own[figure].sd is None else f" ± {scale * own[figure].sd:.{digits}f}"
            cells.append(f"{scale * own[figure].mean:.{digits}f}{spread}")
            if figure in COMPARED:
                cells.append(told[figure].get(name, ""))
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return rows


def _differences(figures: dict[str, dict[str, Figure]], baseline: str, figure: str) -> dict[str, str]:
    """Student → how it differs from the baseline in one figure, as "+3.5 [+1.0, +6.1] p 0.034"."""
    scale, digits = (100, 1) if figure in PERCENT else (1, 3)
    found = {
        name: paired(own[figure], figures[baseline][figure])
        for name, own in figures.items()
        if name != baseline
    }
    told = {}
    for (name, each), p in zip(found.items(), holm([each.p for each in found.values()]), strict=True):
        low, high = (scale * bound for bound in each.figure.interval)
        told[name] = (
            f"{scale * each.figure.mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}] p {p_value(p)}"
        )
    return told


def _figures(seeds: list[dict[str, np.ndarray]], people: np.ndarray) -> dict[str, Figure]:
    """Each figure of one student; people are resampled, since clips of one are alike, and seeds."""
    stacked = {name: np.stack([seed[name] for seed in seeds]).astype(float) for name in seeds[0]}

    def by_person(values: np.ndarray) -> np.ndarray:
        return np.stack([values[:, people == person].mean(axis=1) for person in np.unique(people)], axis=1)

    found = {name: mean_figure(by_person(stacked[name]), SAMPLES) for name in (*PERCENT, "NLL scaled", "NLL")}
    for name, sure in (("ECE", "confidence"), ("ECE scaled", "confidence scaled")):
        gaps = by_person(signed_gaps(stacked[sure], stacked["action"], BINS))
        found[name] = figure_of_gaps(gaps, ece_per_seed(stacked[sure], stacked["action"], BINS), SAMPLES)
    return found


def _draw(cast: int, workspace: Workspace) -> None:
    if not workspace.raw.exists():
        with new_folder(workspace.raw) as folder:
            generate(folder, cast, LABELLED)


def _scored(
    params: Params, workspace: Workspace, student: str, clips: dict[Workspace, list[Clip]]
) -> list[dict[str, np.ndarray]]:
    """For every seed the scores of all clips, one view each."""
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
            "NLL": score_action(logits, labels).nll.numpy(),
            "NLL scaled": score_action(scaled, labels).nll.numpy(),
            "confidence": score_action(logits, labels).confidence.numpy(),
            "confidence scaled": score_action(scaled, labels).confidence.numpy(),
        }


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
