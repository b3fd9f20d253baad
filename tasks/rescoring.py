"""What a registered network says of test clips of today."""

from tasks.clips import Clip, read_clips, read_videos
from tasks.evaluate import test_split
from tasks.inference import device, view_logits
from tasks.layout import Workspace
from tasks.networks import Committee
from tasks.params import Params
from tasks.report.predictions import Model
from tasks.report.tables import prediction_table
from tasks.scorecard import Scorecard
from tasks.shards import Shards
from tasks.trained import Trained, predict


def rescored(committee: Committee, params: Params, workspace: Workspace, clips: list[Clip]) -> Scorecard:
    """What a network says of test clips, with as many views as the report's rows have.

    Args:
        clips: of the test split, at least one.
    """
    modality = committee.spec.modality
    shards = Shards(workspace.modality(modality))
    every = [*read_clips(workspace.index, "train"), *clips]
    trained = Trained(params, every, {modality: shards}, {}, {}, workspace.root)
    views = trained.views
    logits, present = view_logits(committee.to(device()), shards, clips, *views)
    said = predict(committee, logits, present, trained.class_shares())
    row = Model("champion", "student", "", [modality], 0, 0.0, views[0] * views[1], {0: said})
    table = prediction_table([row], test_split(trained, workspace))
    scorecard = Scorecard.of(table, row.name, 0, clips, read_videos(workspace.index))
    assert scorecard is not None
    return scorecard
