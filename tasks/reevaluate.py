"""Whether the champion is still worth what it was: scored on today's test split, held to the figures of its release.

Test clips that came after its registration are what may show another picture.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.clips import read_clips
from tasks.errors import UserError
from tasks.evaluate import test_split
from tasks.inference import view_logits
from tasks.layout import Workspace
from tasks.networks import Committee
from tasks.params import Params
from tasks.predict import download
from tasks.report import ACTION
from tasks.report.comparison import head_figures
from tasks.report.predictions import score_head
from tasks.shards import Shards
from tasks.stores import tracking
from tasks.trained import Trained, predict

CHAMPION = "models:/understudy-student@champion"
WATCHED = ("top1", "ece_scaled")
"""Accuracy, and calibration with the temperature that ships."""


@dataclass(frozen=True)
class Figure:
    """One figure of the champion in the action, then and now.

    Attributes:
        name: as in comparison.json.
        then: at its registration; over several seeds, their mean.
        interval: the 95 % interval of `then`.
        now: of the registered network on today's test split.
    """

    name: str
    then: float
    interval: tuple[float, float]
    now: float

    @property
    def drifted(self) -> bool:
        """Whether `now` lies outside the interval."""
        return not self.interval[0] <= self.now <= self.interval[1]


@dataclass(frozen=True)
class Reevaluation:
    """The champion's version, the number of today's test clips, and its figures."""

    version: str
    clips: int
    figures: list[Figure]

    @property
    def drifted(self) -> list[Figure]:
        """The figures that left their interval."""
        return [figure for figure in self.figures if figure.drifted]


def reevaluate(params: Params, workspace: Workspace) -> Reevaluation:
    """Score the champion on the test split that lies in the workspace.

    Raises:
        UserError: there is no champion, it was registered without test figures or for other classes, or the
            workspace has no test clips.
        InfrastructureError: the registry cannot be reached.
    """
    version = tracking.model_version(CHAMPION, workspace)
    with tempfile.TemporaryDirectory(prefix="understudy-") as folder:
        release = download(f"models:/{version.name}/{version.version}", workspace, Path(folder))
        then = json.loads((release / "release.json").read_text(encoding="utf-8"))["test"]
        committee = Committee.load(release)
    if then is None:
        raise UserError(
            f"version {version.version} was registered without test figures",
            remedy="register one that `evaluate` has scored, and promote it",
        )
    if committee.spec.heads != params.data.heads:
        raise UserError(
            f"version {version.version} knows other classes than this data has",
            file=workspace.params,
            remedy="train and promote a student of these classes",
        )
    now, clips = _figures(params, workspace, committee)
    figures = [
        Figure(name, then[ACTION][name], tuple(then[ACTION][f"{name}_ci95"]), now[name]) for name in WATCHED
    ]
    return Reevaluation(str(version.version), clips, figures)


def _figures(params: Params, workspace: Workspace, committee: Committee) -> tuple[dict[str, Any], int]:
    """As `evaluate` scores a student, and on how many clips."""
    for needed in (
        workspace.index / "clips.csv",
        workspace.modality(committee.spec.modality) / "manifest.json",
    ):
        if not needed.is_file():
            raise UserError(
                "is not here: this clone has no test clips of a run",
                file=needed,
                remedy="run pipeline/nightly on this coordinator first, or in its clone: "
                f"dvc repro --pull --allow-missing extract@{committee.spec.modality}",
            )
    shards = {committee.spec.modality: Shards(workspace.modality(committee.spec.modality))}
    trained = Trained(params, read_clips(workspace.index), shards, folders={}, about={})
    test = test_split(trained, workspace)
    clips, crops = trained.views
    logits, present = view_logits(
        committee, shards[committee.spec.modality], trained.clips("test"), clips, crops
    )
    said = predict(committee, logits, present, trained.class_shares())
    return head_figures(score_head({0: said}, test, ACTION), params.evaluate), len(test)
