"""The champion on today's test split: a real training, a real release, a real registry."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from tasks import distill, evaluate, register
from tasks.atomic import write_text
from tasks.clips import read_clips, write_clips
from tasks.errors import UserError
from tasks.layout import Workspace
from tasks.networks import Committee
from tasks.params import Evaluate, Params, parse
from tasks.reevaluate import _figure, reevaluate
from tasks.rescoring import rescored
from tasks.scorecard import Said, Scorecard
from tasks.seen import Seen, group_hash


@pytest.fixture(scope="module")
def registered(
    tmp_path_factory: pytest.TempPathFactory, small_params: dict[str, Any], drawn_workspace: Any
) -> tuple[Params, Workspace]:
    """A workspace whose baseline is trained, evaluated and, as the first version, champion."""
    root = tmp_path_factory.mktemp("reevaluate")
    workspace = drawn_workspace(root)
    write_text(workspace.params, yaml.safe_dump(small_params | {"teachers": {}, "fused": {}}))
    params = parse(workspace.params.read_text(), workspace.params)
    distill.run(params, workspace, "baseline")
    evaluate.run(params, workspace)
    register.run(params, workspace)
    return params, workspace


def test_on_the_clips_of_its_registration_the_champion_is_what_it_was(registered: tuple[Params, Workspace]):
    found = reevaluate(*registered)
    assert (found.version, found.clips, found.since) == ("1", 6, 0)
    assert [figure.name for figure in found.figures] == ["top1", "ece_scaled", "same_answers"]
    for figure in found.figures:
        assert figure.now == pytest.approx(figure.then, abs=1e-6)
    assert found.drifted == []


def test_clips_that_show_what_it_says_are_another_picture(registered: tuple[Params, Workspace]):
    params, workspace = registered
    said = pd.read_parquet(workspace.reports / "predictions.parquet")
    predicted = {(row.clip_id, row.head): row.predicted for row in said.itertuples()}
    clips = read_clips(workspace.index)
    right = [
        clip.__class__(
            **{**vars(clip), "labels": {head: predicted[clip.clip_id, head] for head in clip.labels}}
        )
        if clip.split == "test"
        else clip
        for clip in clips
    ]
    try:
        write_clips(workspace.index / "clips.csv", right, params.data.heads, [])
        found = reevaluate(params, workspace)
    finally:
        write_clips(workspace.index / "clips.csv", clips, params.data.heads, [])
    top1 = found.figures[0]
    assert top1.now == 1.0
    assert top1.drifted == (top1.interval[1] < 1.0)
    assert top1.drifted, f"chance made it right everywhere: {top1}"


def test_a_champion_of_other_classes_and_none_at_all_are_refused(
    registered: tuple[Params, Workspace], small_params: dict[str, Any], tmp_path: Path
):
    _, workspace = registered
    other = small_params | {"data": small_params["data"] | {"heads": {"verb": ["up", "down"]}}}
    with pytest.raises(UserError, match="knows other classes"):
        reevaluate(parse(yaml.safe_dump(other), Path("params.yaml")), workspace)
    with pytest.raises(UserError, match="registry has no"):
        reevaluate(parse(yaml.safe_dump(small_params), Path("params.yaml")), Workspace(tmp_path))


def test_frames_that_were_extracted_otherwise_are_refused(registered: tuple[Params, Workspace]):
    params, workspace = registered
    rgb = params.modalities["rgb"].model_copy(update={"quality": 50})
    with pytest.raises(UserError, match="extracted with other params"):
        reevaluate(params.model_copy(update={"modalities": params.modalities | {"rgb": rgb}}), workspace)


def test_clips_of_groups_that_it_learned_from_are_left_out(
    registered: tuple[Params, Workspace], monkeypatch: pytest.MonkeyPatch
):
    params, workspace = registered
    groups = [clip.group for clip in read_clips(workspace.index, "test")]
    for known, left in ((groups[:1], len(groups) - groups.count(groups[0])), (groups, 0)):
        monkeypatch.setattr(Seen, "read", lambda _, known=known: Seen(frozenset(map(group_hash, known)), {}))
        if left:
            assert reevaluate(params, workspace).clips == left
        else:
            with pytest.raises(UserError, match="learned from the groups of all test clips"):
                reevaluate(params, workspace)
    monkeypatch.setattr(Seen, "read", lambda _release: None)
    with pytest.raises(UserError, match="does not say what it learned from"):
        reevaluate(params, workspace)


def test_new_clips_on_which_it_is_wrong_do_not_drown(registered: tuple[Params, Workspace]):
    """One clip of six has another label: it alone is asked about, and one clip shows nothing."""
    params, workspace = registered
    clips = read_clips(workspace.index)
    place = next(place for place, clip in enumerate(clips) if clip.split == "test")
    head, classes = next(iter(params.data.heads.items()))
    other = next(name for name in classes if name != clips[place].labels[head])
    relabelled = replace(clips[place], labels={**clips[place].labels, head: other})
    try:
        write_clips(
            workspace.index / "clips.csv",
            [*clips[:place], relabelled, *clips[place + 1 :]],
            params.data.heads,
            [],
        )
        found = reevaluate(params, workspace)
    finally:
        write_clips(workspace.index / "clips.csv", clips, params.data.heads, [])
    assert (found.clips, found.since) == (6, 1)
    assert found.figures[0].now in (0.0, 1.0)
    assert found.drifted == []


def test_other_answers_on_the_same_clips_are_told_however_few_are_new(
    registered: tuple[Params, Workspace], monkeypatch: pytest.MonkeyPatch
):
    """What feeds the network has changed, as a decoder may: one new clip must not hide it."""
    params, workspace = registered
    champion = Committee.load(workspace.release)
    answer = rescored(champion, params, workspace, read_clips(workspace.index, "test"))
    assert answer.same_answers(answer, "action") == 1.0
    other = answer.table.copy()
    wrong = other["clip_id"].isin(sorted(answer.clip_ids)[:2])
    other.loc[wrong, "predicted"] = "something else"
    other.loc[other["clip_id"] == sorted(answer.clip_ids)[5], "video_sha256"] = "new"
    monkeypatch.setattr("tasks.reevaluate.rescored", lambda *_: Scorecard(other))
    found = reevaluate(params, workspace)
    assert found.since == 1
    same = found.figures[-1]
    assert (same.name, same.now, same.drifted) == ("same_answers", 3 / 5, True)


def test_thirty_new_clips_beside_a_thousand_are_enough():
    evaluate = Evaluate(clips=[1], crops=[1], bins=15, bootstrap=1000)

    def said(right: int, wrong: int) -> Said:
        top1 = np.array([1.0] * right + [0.0] * wrong)
        return Said(np.array(["a"] * len(top1)), top1, np.full(len(top1), 0.7), 1 - top1, {})

    then = said(700, 300)
    assert _figure("top1", then, said(12, 18), evaluate).drifted
    assert not _figure("top1", then, said(18, 12), evaluate).drifted
    assert not _figure("top1", then, said(0, 2), evaluate).drifted  # two say nothing
    drowned = said(712, 318)
    assert not _figure("top1", then, drowned, evaluate).drifted


def test_a_clone_in_which_nothing_ran_is_told_what_to_do(registered: tuple[Params, Workspace]):
    params, workspace = registered
    index = workspace.index / "clips.csv"
    aside = index.rename(index.with_suffix(".aside"))
    try:
        with pytest.raises(UserError, match=r"clips\.csv.*\n.*nightly"):
            reevaluate(params, workspace)
    finally:
        aside.rename(index)


@pytest.mark.parametrize(("before", "after"), [(300, 300), (300, 60), (60, 300)])
def test_fewer_clips_are_no_drift_of_the_ece(before: int, after: int):
    """A measured ECE is larger of fewer clips. The network here is calibrated both times."""
    draw = np.random.default_rng(0)
    evaluate = Evaluate(clips=[1], crops=[1], bins=15, bootstrap=200)

    def said(count: int) -> Said:
        sure = draw.uniform(0.3, 1.0, count)
        right = (draw.random(count) < sure).astype(float)
        return Said(np.array(["a"] * count), right, sure, -np.log(sure), {})

    drifted = [_figure("ece_scaled", said(before), said(after), evaluate).drifted for _ in range(100)]
    assert np.mean(drifted) < 0.12


def test_a_network_that_grew_too_sure_is_drift_of_the_ece():
    draw, evaluate = np.random.default_rng(0), Evaluate(clips=[1], crops=[1], bins=15, bootstrap=200)
    sure = draw.uniform(0.3, 1.0, 300)
    right = (draw.random(300) < sure).astype(float)
    then = Said(np.array(["a"] * 300), right, sure, -np.log(sure), {})
    assert _figure("ece_scaled", then, then._replace(confidence=sure**0.3), evaluate).drifted
