"""Whether the champion is still worth what it was, on the test clips that came after its registration.

Among the many of before, new ones on which it is wrong would not be noticed. Of those it has to say what it said: where
it does not, what feeds it has changed.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.clips import read_clips, read_videos
from tasks.errors import UserError
from tasks.layout import Workspace
from tasks.networks import Committee
from tasks.params import Evaluate, Params
from tasks.predict import download
from tasks.report import ACTION
from tasks.report.ece_interval import ece_per_seed, signed_gaps
from tasks.rescoring import rescored
from tasks.scorecard import Said, Scorecard
from tasks.seen import Seen
from tasks.stores import tracking

CHAMPION = "models:/understudy-student@champion"
WATCHED = ("top1", "ece_scaled")
"""Accuracy, and calibration with the temperature that ships."""
SAME_ANSWERS = "same_answers"
"""Share of the clips of its registration that get the same class now."""
_SAME = 0.98
"""The least: on another processor a class that is ahead by a rounding changes, and no more."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Figure:
    """One figure of the champion in the action, then and now.

    Attributes:
        name: as in comparison.json.
        then: of the registered network on the test split of its registration.
        interval: around `then`, where `now` would lie in 95 of 100 cases if the network were what it was and clips
            were drawn one by one. They come by groups, so it is too narrow, most where few groups are new.
        now: of the registered network on the test clips that came since; where none did, on all of today.
    """

    name: str
    then: float
    interval: tuple[float, float]
    now: float

    @property
    def drifted(self) -> bool:
        """Whether `now` lies outside the interval."""
        return not self.interval[0] - _ROUNDING <= self.now <= self.interval[1] + _ROUNDING


@dataclass(frozen=True)
class Reevaluation:
    """What was found.

    Attributes:
        version: the champion's.
        clips: test clips of today of groups that it did not learn from.
        since: those of them that came, or were given another label, after its registration.
        figures: of the champion, those of `WATCHED` and, where clips of its registration are left, `SAME_ANSWERS`.
    """

    version: str
    clips: int
    since: int
    figures: list[Figure]

    @property
    def drifted(self) -> list[Figure]:
        """The figures that left their interval."""
        return [figure for figure in self.figures if figure.drifted]


def reevaluate(params: Params, workspace: Workspace) -> Reevaluation:
    """Score the champion on the test split that lies in the workspace, less clips of groups that it learned from.

    Raises:
        UserError: there is no champion, it was registered without test figures, for other classes or frames, or before
            releases said what they learned from, or the workspace has no test clips for it.
        InfrastructureError: the registry cannot be reached.
    """
    version = tracking.model_version(CHAMPION, workspace)
    with tempfile.TemporaryDirectory(prefix="understudy-") as folder:
        release = download(f"models:/{version.name}/{version.version}", workspace, Path(folder))
        then, seen = Scorecard.read(release), Seen.read(release)
        committee = Committee.load(release)
    if then is None:
        raise UserError(
            f"version {version.version} was registered without test figures",
            remedy="register one that `evaluate` has scored, and promote it",
        )
    if seen is None:
        raise UserError(
            f"version {version.version} does not say what it learned from, so it may know today's test clips",
            remedy="promote one that was registered since",
        )
    if committee.spec.heads != params.data.heads:
        raise UserError(
            f"version {version.version} knows other classes than this data has",
            file=workspace.params,
            remedy="train and promote a student of these classes",
        )
    modality = committee.spec.modality
    if committee.spec.modality_params != params.modalities.get(modality):
        raise UserError(
            f"version {version.version} looks at {modality} that was extracted with other params",
            file=workspace.params,
            remedy=f"give modalities.{modality} back what it was, or promote a student of the new frames",
        )
    for needed in (workspace.index / "clips.csv", workspace.modality(modality) / "manifest.json"):
        if not needed.is_file():
            raise UserError(
                "is not here: this clone has no test clips of a run",
                file=needed,
                remedy="run pipeline/nightly on this coordinator first, or in its clone: "
                f"dvc repro --pull --allow-missing extract@{modality}",
            )
    clips = seen.unseen(read_clips(workspace.index), read_videos(workspace.index))
    if not clips:
        raise UserError(
            f"version {version.version} learned from the groups of all test clips of today",
            file=workspace.index / "clips.csv",
            remedy="give clips of others the split test in annotations.csv",
        )
    now = rescored(committee, params, workspace, clips)
    new = now.since(then)
    before, after = then.said(ACTION), (new if new.clips else now).said(ACTION)
    figures = [_figure(name, before, after, params.evaluate) for name in WATCHED]
    if (same := now.same_answers(then, ACTION)) is not None:
        figures.append(Figure(SAME_ANSWERS, 1.0, (_SAME, 1.0), same))
    return Reevaluation(str(version.version), now.clips, new.clips, figures)


def _figure(name: str, then: Said, now: Said, evaluate: Evaluate) -> Figure:
    """One figure, and where it would lie by chance."""
    if name == "top1":
        was, is_ = float(then.top1.mean()), float(now.top1.mean())
        apart = _top1_by_chance(then, now, evaluate)
    else:
        was, is_ = (
            float(ece_per_seed(said.confidence[None], said.top1[None], evaluate.bins)[0])
            for said in (then, now)
        )
        apart = _ece_by_chance(then, now, evaluate)
    low, high = np.quantile(apart, [0.025, 0.975])
    return Figure(name, was, (was + float(low), was + float(high)), is_)


def _top1_by_chance(then: Said, now: Said, evaluate: Evaluate) -> np.ndarray:
    """(resamples,) of top-1 now minus then, if it did not matter which clips are of which time."""
    before, after = len(then.top1), len(now.top1)
    right = int(then.top1.sum() + now.top1.sum())
    dealt = np.random.default_rng(0).hypergeometric(
        right, before + after - right, after, size=evaluate.bootstrap
    )
    return dealt / after - (right - dealt) / before


def _ece_by_chance(then: Said, now: Said, evaluate: Evaluate) -> np.ndarray:
    """(resamples,) of the ECE now minus then, if it did not matter which clips are of which time.

    An ECE is larger of fewer clips, whatever the network: so all clips are dealt anew into two sets of these sizes.
    """
    gaps = np.concatenate(
        [signed_gaps(said.confidence[None], said.top1[None], evaluate.bins)[0] for said in (then, now)]
    )
    clips, before, total = len(gaps), len(then.top1), gaps.sum(axis=0)
    draw, apart = np.random.default_rng(0), np.empty(evaluate.bootstrap)
    for place in range(evaluate.bootstrap):
        dealt = gaps[draw.permutation(clips)[:before]].sum(axis=0)
        apart[place] = np.abs(total - dealt).sum() / (clips - before) - np.abs(dealt).sum() / before
    return apart
