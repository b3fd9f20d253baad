"""Champion, challenger and previous in a real registry: judged, promoted, rolled back, killed in between."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import requests
import torch
import yaml
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from tasks import compare, params, promotion, register
from tasks.atomic import write_json
from tasks.clips import label_indices, read_clips, read_videos, write_videos
from tasks.errors import InfrastructureError, UserError
from tasks.layout import Workspace
from tasks.networks import Committee, Spec
from tasks.report.comparison import compare as compare_models
from tasks.report.comparison import score_models
from tasks.report.predictions import Model, Prediction, TestSplit
from tasks.report.tables import prediction_table
from tasks.rescoring import rescored
from tasks.scorecard import Scorecard
from tasks.seen import FILE, Seen, group_hash
from tasks.stores import tracking
from tasks.versus import table

ROOT = Path(register.__file__).parents[1]
GOOD, WORSE, BETTER = (0, 0.7), (0, 6.0), (6, 6.0)
"""How many of the six test clips a version gets right, and by what margin of logits."""


def parsed(values):
    return params.parse(yaml.safe_dump(values), Path("params.yaml"))


def release(workspace, values, kind, seed=0):
    """Put a student and its report where `register` finds them: real files, fabricated answers."""
    right, margin = kind
    found = parsed(values)
    (workspace.root / "params.yaml").write_text(yaml.safe_dump(values))
    folder = workspace.student("baseline")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "seed-0").mkdir(parents=True)
    torch.manual_seed(seed)
    spec = Spec(
        modality="rgb",
        modality_params=found.modalities["rgb"],
        views=found.views,
        heads=found.data.heads,
        backbone=found.students["baseline"].backbone,
    )
    Committee(spec, [spec.new_network()], dict.fromkeys(found.data.heads, 1.0)).save(folder / "seed-0")
    figures = {"top1": 0.5, "nll": 1.0, "ece": 0.1}
    about = {
        "name": "baseline", "role": "baseline", "method": "supervised", "inference_modalities": ["rgb"],
        "seeds": [0], "members": 1, "params_count": 1000, "gmacs": 0.1, "runs": {"0": None},
        "validation": {"0": dict.fromkeys(("action", *found.data.heads), figures)}, "chosen": {"0": {}},
    }  # fmt: skip
    write_json(folder / "student.json", about)

    clips = read_clips(workspace.index, "test")
    labels = {
        head: torch.from_numpy(places) for head, places in label_indices(clips, found.data.heads).items()
    }
    logits = {}
    for head, truth in labels.items():
        said = torch.where(torch.arange(len(clips)) < right, truth, (truth + 1) % len(found.data.heads[head]))
        logits[head] = margin * torch.nn.functional.one_hot(said, len(found.data.heads[head])).float()
    test = TestSplit([clip.clip_id for clip in clips], found.data.heads, labels, {})
    prediction = Prediction(logits, logits, torch.ones(len(clips), dtype=torch.bool))
    models = [Model("baseline", "baseline", "supervised", ["rgb"], 1000, 0.1, 1, {0: prediction})]
    workspace.reports.mkdir(exist_ok=True)
    prediction_table(models, test).to_parquet(workspace.reports / "predictions.parquet", index=False)
    scored = score_models(models, test)
    write_json(
        workspace.reports / "comparison.json", compare_models("small", models, scored, test, found.evaluate)
    )
    pictures = workspace.reports / "plots" / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    (pictures / "reliability.png").write_bytes(b"\x89PNG picture")
    videos = [video for video in read_videos(workspace.index).values() if video.video.endswith(".mp4")]
    # part of the data's digest
    write_videos(workspace.index / "videos.csv", [*videos, replace(videos[0], video=f"unused-{seed}.mkv")])


def registered(workspace, values, kind, seed=0):
    """`release`, then the stage."""
    release(workspace, values, kind, seed)
    register.run(parsed(values), workspace)


@pytest.fixture(scope="module")
def values(small_params):
    """Params of the drawn workspace, one head to be judged, a latency that no busy machine exceeds."""
    return small_params | {"gate": small_params["gate"] | {"max_latency_ratio": 1000.0}}


@pytest.fixture(scope="module")
def told(tmp_path_factory, drawn_workspace, values):
    """A clone whose registry holds a good champion, a worse version and a better challenger."""
    before = os.environ.copy()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ["UNDERSTUDY_WORK"] = "work"
    workspace = drawn_workspace(tmp_path_factory.mktemp("gate") / "clone")
    for seed, kind in enumerate((GOOD, WORSE, BETTER)):
        registered(workspace, values, kind, seed)
    os.environ.clear()
    os.environ.update(before)
    return workspace


@pytest.fixture
def copied(told, tmp_path, monkeypatch):
    """Makes copies of it by name, each with a registry of its own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("UNDERSTUDY_WORK", "work")

    def make(name):
        root = tmp_path / name
        shutil.copytree(told.root, root)
        move_artifacts(root / "work" / "mlflow.db", told.root, root)
        return Workspace(root)

    return make


@pytest.fixture
def workspace(copied):
    """One copy."""
    return copied("clone")


def move_artifacts(database, before, after):
    """The store names its artifacts by absolute path: have the copy name its own."""
    import sqlite3

    with sqlite3.connect(database) as store:
        tables = [row[0] for row in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in tables:
            for column in [row[1] for row in store.execute(f"PRAGMA table_info({name})")]:
                store.execute(
                    f"UPDATE {name} SET {column} = replace({column}, ?, ?) WHERE {column} LIKE ?",
                    (str(before), str(after), f"%{before}%"),
                )


def aliases(workspace):
    found = tracking.client(workspace).get_registered_model(register.MODEL).aliases
    return {alias: int(version) for alias, version in found.items()}


def version(workspace, number):
    return tracking.client(workspace).get_model_version(register.MODEL, str(number))


def test_each_version_carries_its_verdict(workspace):
    assert aliases(workspace) == {"champion": 1, "challenger": 3}
    outcomes = [version(workspace, number).tags["gate_verdict"] for number in (1, 2, 3)]
    assert outcomes == ["first", "failed", "passed"]
    better = version(workspace, 3)
    assert better.tags["gate_against"] == "1"
    assert better.tags["gate.top1"].startswith(
        "passed: top-1 of the action 100.0 % against 0.0 %, +100.0 points"
    )
    assert better.description.startswith("**Gate: passed.** Version 3 passed against version 1: top-1")
    assert "| nll | passed |" in better.description
    assert "# understudy-student" in better.description
    assert version(workspace, 2).tags["gate.top1"].startswith("FAILED: ")
    told = json.loads((workspace.gate / "verdict.json").read_text())
    assert (told["version"], told["outcome"]) == ("3", "passed")
    page = (workspace.gate / "index.html").read_text()
    assert "Version 3 is better" in page
    assert "<script" not in page
    run = tracking.client(workspace).list_artifacts(better.run_id)
    assert "gate.html" in [file.path for file in run]


def test_the_same_question_is_asked_once(workspace, values, capsys, monkeypatch):
    before = version(workspace, 3).last_updated_timestamp
    monkeypatch.setattr(promotion, "open_version", None)  # nothing is fetched
    register.run(parsed(values), workspace)
    said = capsys.readouterr().out
    assert "gate: version 3 passed against version 1" in said
    assert "gate: version 3 awaits a decision: understudy promote 3" in said
    assert version(workspace, 3).last_updated_timestamp == before
    promotion.decline("challenger", workspace, "one is enough")
    register.run(parsed(values), workspace)
    assert "awaits" not in capsys.readouterr().out


def test_a_verdict_of_another_machine_is_shown_and_not_made_anew(workspace, values, monkeypatch):
    """As a nightly run's coordinator, whose worker registered: a second latency might turn the verdict round."""
    before = [(workspace.gate / name).read_text() for name in ("index.html", "verdict.json", "verdict.md")]
    shutil.rmtree(workspace.gate)
    monkeypatch.setattr(promotion, "_judge", None)
    register.run(parsed(values), workspace)
    after = [(workspace.gate / name).read_text() for name in ("index.html", "verdict.json", "verdict.md")]
    assert after == before


def test_the_better_one_is_promoted_and_rolled_back_and_forth(workspace, values):
    said = promotion.promote("challenger", parsed(values), workspace, force=False, reason="summer release")
    assert said.startswith("version 3 promoted in place of version 1 by ")
    assert "summer release; gate: version 3 passed" in said
    assert aliases(workspace) == {"champion": 3, "previous": 1}
    assert promotion.promote("3", parsed(values), workspace, False, "") == "version 3 is the champion already"
    with pytest.raises(UserError, match="no version 'challenger'"):
        promotion.promote("challenger", parsed(values), workspace, False, "")

    said = promotion.rollback(workspace, "misses cups")
    assert "version 3 rolled back to version 1 by" in said
    assert aliases(workspace) == {"champion": 1, "previous": 3}
    history = tracking.client(workspace).get_registered_model(register.MODEL).description
    assert history.startswith(register.ABOUT)
    assert history.index("rolled back") < history.index("promoted") < history.index("is the first")
    assert "misses cups" in history

    register.run(parsed(values), workspace)  # a later run does not undo what a person decided
    assert aliases(workspace) == {"champion": 1, "previous": 3}
    promotion.rollback(workspace, "")
    assert aliases(workspace) == {"champion": 3, "previous": 1}


def test_what_the_gate_refuses_needs_force_and_a_reason(workspace, values):
    with pytest.raises(UserError, match=r"does not let version 2 replace the champion: .* failed against"):
        promotion.promote("v2", parsed(values), workspace, force=False, reason="")
    with pytest.raises(UserError, match="the reason has 501 characters, at most 500"):
        promotion.promote("v2", parsed(values), workspace, force=True, reason="x" * 501)
    with pytest.raises(UserError, match="--force needs a reason"):
        promotion.promote("v2", parsed(values), workspace, force=True, reason="")
    assert aliases(workspace) == {"champion": 1, "challenger": 3}
    promotion.promote("models:/understudy-student/2", parsed(values), workspace, True, "a | b")
    assert aliases(workspace) == {"champion": 2, "previous": 1, "challenger": 3}
    (told,) = [text for tag, text in version(workspace, 2).tags.items() if tag.startswith("history.")]
    assert "forced: a | b; gate: version 2 failed" in told
    with pytest.raises(UserError, match="has no version 'nobody'"):
        promotion.promote("nobody", parsed(values), workspace, False, "")


def test_a_champion_whose_store_is_gone_can_be_replaced_by_force(workspace, values, monkeypatch):
    source = version(workspace, 1).source.removeprefix("models:/")
    place = tracking.client(workspace).get_logged_model(source).artifact_location
    move_artifacts(workspace.root / "work" / "mlflow.db", place, "s3://gone/model")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")  # where nobody listens
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    stricter = parsed(values | {"gate": values["gate"] | {"min_top1_gain": 0.1}})  # so that it is judged anew
    with pytest.raises(InfrastructureError, match="promote challenger --force"):
        promotion.promote("challenger", stricter, workspace, force=False, reason="")
    assert aliases(workspace) == {"champion": 1, "challenger": 3}
    said = promotion.promote("challenger", stricter, workspace, force=True, reason="its files are gone")
    assert "forced: its files are gone; gate: not judged: the files of models:/" in said
    assert aliases(workspace) == {"champion": 3, "previous": 1}


def test_a_version_whose_run_was_deleted_is_judged_all_the_same(workspace, values, capsys):
    work = workspace.root / "work"
    run = version(workspace, 3).run_id
    tracking.client(workspace).delete_run(run)
    store = f"sqlite:///{work / 'mlflow.db'}"
    _artifact_repos_cache.clear()  # MLflow's, of this process, which knew the run
    collect = [sys.executable, "-m", "mlflow", "gc", "--run-ids", run]
    subprocess.run([*collect, "--backend-store-uri", store, "--tracking-uri", store], check=True)
    stricter = parsed(values | {"gate": values["gate"] | {"min_top1_gain": 0.1}})
    said = promotion.promote("challenger", stricter, workspace, force=False, reason="")
    assert "version 3 promoted in place of version 1" in said
    assert "the run of version 3 is gone" in capsys.readouterr().out


def test_what_was_champion_is_no_challenger_again(workspace, values):
    given = parsed(values)
    promotion.promote("challenger", given, workspace, force=False, reason="")
    promotion.rollback(workspace, "misses cups")
    promotion.promote("2", given, workspace, force=True, reason="the third is worse")
    assert aliases(workspace) == {"champion": 2, "previous": 1}
    register.run(given, workspace)  # the release is that of version 3
    assert aliases(workspace) == {"champion": 2, "previous": 1}


def test_another_answer_to_requests_is_another_version(workspace, values, monkeypatch):
    monkeypatch.setattr(register, "ANSWERS", register.ANSWERS[1:])  # as if one of the files were another
    register.run(parsed(values), workspace)
    assert aliases(workspace) == {"champion": 1, "challenger": 4}


def test_other_thresholds_are_another_question(workspace, values):
    strict = values | {"gate": values["gate"] | {"min_top1_gain": 1.0}}
    with pytest.raises(UserError, match=r"must lie above \+100\.0"):
        promotion.promote("challenger", parsed(strict), workspace, force=False, reason="")
    assert version(workspace, 3).tags["gate_verdict"] == "failed"
    promotion.promote("challenger", parsed(values), workspace, force=False, reason="")
    assert version(workspace, 3).tags["gate_verdict"] == "passed"


def test_params_may_say_that_passing_is_enough(workspace, values, capsys):
    register.run(parsed(values | {"gate": values["gate"] | {"promote": "auto"}}), workspace)
    assert (
        "version 3 promoted in place of version 1 by the gate (gate.promote: auto)" in capsys.readouterr().out
    )
    assert aliases(workspace) == {"champion": 3, "previous": 1}
    promotion.settle(parsed(values), workspace, version(workspace, 3))  # another night, whoever tells of it
    assert promotion.went_live("3") in capsys.readouterr().out.splitlines()
    # The clone of a coordinator whose worker judged and promoted shows it, too.
    shutil.rmtree(workspace.gate)
    register.run(parsed(values), workspace)
    told = json.loads((workspace.gate / "verdict.json").read_text())
    assert (told["version"], told["outcome"]) == ("3", "passed")


def test_test_clips_that_changed_are_shown_to_the_champion_anew(workspace, values):
    """A clip was relabelled: the stored scores no longer compare, the champion's network is asked."""
    clips = workspace.index / "clips.csv"
    row = "test-0,test-0.mp4,0.0,2.0,test-0,test,"
    clips.write_text(clips.read_text().replace(f"{row}left", f"{row}right"))
    registered(workspace, values, BETTER, seed=4)
    found = version(workspace, 4)
    assert found.tags["gate.same_test_clips"] == "passed: both were scored on the same 6 clips"
    own = promotion.open_version(version(workspace, 1), workspace).committee
    anew = rescored(own, parsed(values), workspace, read_clips(workspace.index, "test"))
    assert anew.digest == found.tags["test_digest"]
    top1 = 100 * anew.said("action").top1.mean()
    assert f"100.0 % against {top1:.1f} %" in found.tags["gate.top1"]


def learned_from(workspace, monkeypatch, *groups):
    """Have the champion's release say that it learned from these groups: the splits were drawn anew since."""
    known = Seen(frozenset(group_hash(group) for group in groups), {})
    monkeypatch.setattr(Seen, "read", lambda _release: known)


def test_clips_of_groups_that_the_champion_learned_from_judge_nobody(workspace, values, monkeypatch):
    clips = workspace.index / "clips.csv"
    row = "test-0,test-0.mp4,0.0,2.0,test-0,test,"
    clips.write_text(clips.read_text().replace(f"{row}left", f"{row}right"))
    learned_from(workspace, monkeypatch, "test-0")
    registered(workspace, values, BETTER, seed=4)
    assert version(workspace, 4).tags["gate.same_test_clips"] == (
        "passed: both were scored on the same 3 clips; 3 more are of groups that version 1 learned from"
    )


def test_a_champion_that_learned_from_all_test_groups_is_not_comparable(workspace, values, monkeypatch):
    clips = workspace.index / "clips.csv"
    clips.write_text(clips.read_text().replace("test-0,test-0.mp4", "test-x,test-0.mp4"))
    learned_from(workspace, monkeypatch, *(clip.group for clip in read_clips(workspace.index, "test")))
    registered(workspace, values, BETTER, seed=4)
    told = version(workspace, 4).tags
    assert told["gate_verdict"] == "not comparable"
    assert "all of them are of groups that it learned from" in told["gate.same_test_clips"]


def test_a_champion_that_does_not_say_what_it_learned_from_is_not_comparable(workspace, values, monkeypatch):
    clips = workspace.index / "clips.csv"
    row = "test-0,test-0.mp4,0.0,2.0,test-0,test,"
    clips.write_text(clips.read_text().replace(f"{row}left", f"{row}right"))
    monkeypatch.setattr(Seen, "read", lambda _release: None)
    registered(workspace, values, BETTER, seed=4)
    told = version(workspace, 4).tags
    assert told["gate_verdict"] == "not comparable"
    assert "does not say what it learned from" in told["gate.same_test_clips"]


def test_a_release_says_what_it_learned_from(workspace):
    clips, videos = read_clips(workspace.index), read_videos(workspace.index)
    seen = Seen.read(workspace.release)
    assert seen is not None
    for clip in clips:
        assert (group_hash(clip.group) in seen.groups) == (clip.split != "test")
        spans = seen.footage.get(videos[clip.video].sha256, ())
        assert ((clip.start_s, clip.stop_s) in spans) == (clip.split != "test")
    assert seen.unseen(clips, videos) == [clip for clip in clips if clip.split == "test"]
    text = (workspace.release / FILE).read_text()
    assert not any(f'"{clip.group}"' in text for clip in clips)


def test_what_was_learned_from_is_known_under_another_name(workspace):
    """A group was renamed, or became part of another, and is now tested: so is what is new of it."""
    clips, videos = read_clips(workspace.index), read_videos(workspace.index)
    seen = Seen.of(clips, videos)
    learned = next(clip for clip in clips if clip.split == "train")
    later = replace(learned, clip_id="later", start_s=learned.start_s + 0.5, split="test", group="renamed")
    new_of_it = replace(next(clip for clip in clips if clip.split == "test"), clip_id="new", group="renamed")
    untouched = replace(later, clip_id="after", start_s=100.0, stop_s=101.0, group="other")
    now = [*clips, later, new_of_it, untouched]
    assert seen.unseen(now, videos) == [*(clip for clip in clips if clip.split == "test"), untouched]


def test_no_move_upon_a_verdict_against_another_champion(workspace, values, monkeypatch, capsys):
    """Judging takes minutes: somebody rolled the champion back meanwhile."""
    judge = promotion.judge

    def meanwhile(*arguments):
        tracking.client(workspace).set_registered_model_alias("understudy-student", "champion", 2)
        return judge(*arguments)

    monkeypatch.setattr(promotion, "judge", meanwhile)
    strict = values | {"gate": values["gate"] | {"max_nll_increase": 0.04}}  # so that it is judged anew
    with pytest.raises(UserError, match=r"version 2 became champion while .* against version 1"):
        promotion.promote("challenger", parsed(strict), workspace, force=False, reason="")
    assert aliases(workspace)["champion"] == 2
    automatic = values | {"gate": values["gate"] | {"promote": "auto"}}
    tracking.client(workspace).set_registered_model_alias("understudy-student", "champion", 1)
    registered(workspace, automatic, BETTER, seed=4)  # the stage ends well, the version is there
    assert aliases(workspace)["champion"] == 2
    assert "version 2 became champion while" in capsys.readouterr().out


def test_what_was_declined_is_not_promoted_once_the_gate_may(workspace, values, capsys):
    promotion.decline("challenger", workspace, "dangerous")
    automatic = values | {"gate": values["gate"] | {"promote": "auto"}}
    register.run(parsed(automatic), workspace)
    assert aliases(workspace)["champion"] == 1
    assert "promoted" not in capsys.readouterr().out


def test_no_rollback_from_another_champion_than_it_began_with(workspace, values, monkeypatch):
    """Fetching the previous version takes minutes: somebody promoted another one meanwhile."""
    promotion.promote("challenger", parsed(values), workspace, force=False, reason="")
    whole = promotion._require_whole

    def meanwhile(*arguments):
        tracking.client(workspace).set_registered_model_alias("understudy-student", "champion", 2)
        return whole(*arguments)

    monkeypatch.setattr(promotion, "_require_whole", meanwhile)
    with pytest.raises(UserError, match=r"version 2 became champion while version 1 was looked at"):
        promotion.rollback(workspace, "misses cups")
    assert aliases(workspace) == {"champion": 2, "previous": 1}


def test_a_late_answer_leaves_the_champion_what_it_went_live_by(workspace, values):
    """An approval form stays open for days, and Prefect begins the flow anew when somebody answers it."""
    promotion.promote("challenger", parsed(values), workspace, force=False, reason="seen")
    before = version(workspace, 3).tags
    strict = values | {"gate": values["gate"] | {"max_nll_increase": 0.04}}
    assert promotion.judged("3", parsed(strict), workspace).outcome == "passed"
    assert "is the champion already and was not declined" in promotion.decline("3", workspace, "too late")
    assert version(workspace, 3).tags == before


def test_a_verdict_vouches_for_the_champion_it_was_against(workspace, values, monkeypatch):
    client, told = tracking.client(workspace), version(workspace, 3).tags
    other = json.loads(told["gate_json"]) | {"against": "2"}
    client.set_model_version_tag("understudy-student", 3, "gate_json", json.dumps(other))
    assert promotion.judged("3", parsed(values), workspace).against == "1"

    def fails(*_):
        raise OSError("the store is away")

    monkeypatch.setattr(promotion, "_attach", fails)
    strict = values | {"gate": values["gate"] | {"max_nll_increase": 0.04}}  # so that it is judged anew
    with pytest.raises(OSError, match="away"):
        promotion.judged("3", parsed(strict), workspace)
    assert "gate_key" not in version(workspace, 3).tags


@pytest.mark.parametrize("status", [403, 500])
def test_who_may_write_to_the_model_alone_may_promote(workspace, values, monkeypatch, capsys, status):
    """As infra/README.md says: the run that registered the version is the workers'."""
    answer = requests.Response()
    answer.status_code = status

    def refused(*_):
        raise requests.HTTPError(f"{status} from the store of files", response=answer)

    monkeypatch.setattr("mlflow.MlflowClient.log_text", refused)
    strict = values | {"gate": values["gate"] | {"max_nll_increase": 0.04}}  # so that it is judged anew
    if status == 500:
        with pytest.raises(InfrastructureError, match="500 from the store"):
            promotion.promote("challenger", parsed(strict), workspace, force=False, reason="")
        return
    promotion.promote("challenger", parsed(strict), workspace, force=False, reason="")
    assert aliases(workspace) == {"champion": 3, "previous": 1}
    assert "is gone or another's, so it gets no page" in capsys.readouterr().out


def test_where_somebody_took_the_champion_away_a_person_chooses_the_next(workspace, values):
    tracking.client(workspace).delete_registered_model_alias("understudy-student", "champion")
    automatic = values | {"gate": values["gate"] | {"promote": "auto"}}
    registered(workspace, automatic, BETTER, seed=4)
    assert aliases(workspace) == {"challenger": 4}
    promotion.promote("challenger", parsed(automatic), workspace, force=False, reason="")
    assert aliases(workspace) == {"champion": 4}


def test_nothing_goes_back_to_a_version_that_cannot_be_loaded(workspace, values):
    promotion.promote("challenger", parsed(values), workspace, force=False, reason="")
    source = version(workspace, 1).source.removeprefix("models:/")
    logged = next((workspace.root / "work" / "mlartifacts").rglob(f"{source}/artifacts"))
    (logged / "artifacts" / "release" / "extra.pkl").write_bytes(b"\x80\x04\x95")
    with pytest.raises(UserError, match=r"version 1 cannot be loaded: .*extra\.pkl"):
        promotion.rollback(workspace, "")
    shutil.rmtree(logged)  # its store lost it
    with pytest.raises(UserError, match=r"version 1 cannot be loaded: .* is not what was registered"):
        promotion.rollback(workspace, "")
    assert aliases(workspace) == {"champion": 3, "previous": 1}


def test_a_move_that_another_carried_to_its_end_is_not_done_again(workspace, values):
    """Nor what came after it undone."""
    client = tracking.client(workspace)
    move = promotion._promotion({"champion": "1"}, "3", "by somebody slow", "passed")
    with pytest.raises(
        UserError, match="another move overtook this one, which counts as not made: version 3"
    ):
        promotion._do(client, move)  # its tag is gone, and nobody did it
    client.set_model_version_tag("understudy-student", "3", f"history.{move.stamp}", move.words)
    assert promotion._do(client, move) == move
    assert aliases(workspace) == {"champion": 1, "challenger": 3}
    client.set_registered_model_tag("understudy-student", "move_in_progress", promotion._written(move))
    with pytest.raises(UserError, match="another move is under way: version 3 promoted"):
        promotion._carry_out(client, promotion._promotion({"champion": "1"}, "2", "by another", "passed"))


def test_a_clone_of_another_night_judges_nobody(workspace, values):
    clips = workspace.index / "clips.csv"
    before = clips.read_text()
    clips.write_text(before.replace("test-0,test-0.mp4", "test-x,test-0.mp4"))
    registered(workspace, values, BETTER, seed=4)
    clips.write_text(before)
    strict = values | {"gate": values["gate"] | {"max_nll_increase": 0.04}}  # so that it is judged anew
    with pytest.raises(UserError, match="this clone has others than version 4 was scored on"):
        promotion.promote("challenger", parsed(strict), workspace, force=False, reason="")


def test_without_the_clips_nothing_is_judged(workspace, values):
    clips = workspace.index / "clips.csv"
    clips.write_text(clips.read_text().replace("test-0,test-0.mp4", "test-x,test-0.mp4"))
    registered(workspace, values, BETTER, seed=4)
    assert "gate.top1" in version(workspace, 4).tags  # the clips are here, the champion was asked
    (workspace.modality("rgb") / "manifest.json").unlink()
    strict = values | {"gate": values["gate"] | {"max_nll_increase": 0.04}}  # so that it is judged anew
    with pytest.raises(UserError, match=r"is not comparable against version 1: .* are not in this clone"):
        promotion.promote("challenger", parsed(strict), workspace, force=False, reason="")
    told = version(workspace, 4).tags
    assert told["gate_verdict"] == "not comparable"
    assert "gate.top1" not in told


def test_a_planted_pickle_does_not_pass(workspace, values):
    source = version(workspace, 3).source.removeprefix("models:/")
    logged = next((workspace.root / "work" / "mlartifacts").rglob(f"{source}/artifacts"))
    (logged / "artifacts" / "release" / "extra.pkl").write_bytes(b"\x80\x04\x95")
    strict = values | {"gate": values["gate"] | {"max_nll_increase": 0.04}}  # so that it is judged anew
    with pytest.raises(UserError, match=r"extra\.pkl, which may be a pickle"):
        promotion.promote("challenger", parsed(strict), workspace, force=False, reason="")
    assert version(workspace, 3).tags["gate.loads"].startswith("FAILED: ")
    assert aliases(workspace) == {"champion": 1, "challenger": 3}


STEPS = (
    "set_registered_model_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_model_version_tag",
    "update_registered_model",
    "delete_registered_model_tag",
)
KILLED = textwrap.dedent("""
    import json, os, signal, sys
    from pathlib import Path
    from mlflow import MlflowClient
    from tasks import promotion
    from tasks.layout import Workspace
    from tasks.params import load

    steps, jobs = json.loads(sys.argv[1])

    def run(command, root, after):
        done = 0

        def counted(step):
            def call(*args, **kwargs):
                nonlocal done
                result = step(*args, **kwargs)
                done += 1
                if done == after:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result
            return call

        for name in steps:
            setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
        workspace = Workspace(Path(root))
        if command == "promote":
            promotion.promote("challenger", load(workspace.params), workspace, False, "")
        else:
            promotion.rollback(workspace, "")

    for job in jobs:
        child = os.fork()
        if not child:
            run(*job)
            os._exit(0)
        print(os.WTERMSIG(os.waitpid(child, 0)[1]))
""")


def kill(*jobs):
    """Run (command, workspace, after), each in a process of its own that dies by SIGKILL after so many steps."""
    told = [(command, str(workspace.root), after) for command, workspace, after in jobs]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps([STEPS, told])],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ended.stdout.split() == [str(int(signal.SIGKILL))] * len(jobs), ended.stderr


@pytest.mark.slow
def test_killed_in_a_promotion_the_same_command_ends_right(copied, values):
    """Written down, previous, champion, challenger gone, told twice: the seventh step erases the note."""
    cut = {after: copied(f"after-{after}") for after in range(1, 7)}
    kill(*(("promote", workspace, after) for after, workspace in cut.items()))
    assert aliases(cut[1]) == {"champion": 1, "challenger": 3}
    assert aliases(cut[3]) == {"champion": 3, "challenger": 3, "previous": 1}
    for workspace in cut.values():
        promotion.promote("challenger", parsed(values), workspace, force=False, reason="")
        assert aliases(workspace) == {"champion": 3, "previous": 1}
        told = tracking.client(workspace).get_registered_model(register.MODEL)
        assert told.description.count("promoted") == 1
        assert "move_in_progress" not in told.tags


@pytest.mark.slow
def test_killed_in_a_rollback_the_same_command_ends_right(copied, values):
    cut = {after: copied(f"after-{after}") for after in range(1, 6)}
    for workspace in cut.values():
        promotion.promote("challenger", parsed(values), workspace, force=False, reason="")
    kill(*(("rollback", workspace, after) for after, workspace in cut.items()))
    for workspace in cut.values():
        assert "interrupted rollback" in promotion.rollback(workspace, "")
        assert aliases(workspace) == {"champion": 1, "previous": 3}


def test_a_run_ends_what_a_killed_promotion_began(workspace, values, capsys):
    kill(("promote", workspace, 2))
    register.run(parsed(values), workspace)
    assert "an interrupted move was carried to its end: version 3 promoted" in capsys.readouterr().out
    assert aliases(workspace) == {"champion": 3, "previous": 1}


def test_two_versions_are_compared_clip_by_clip(workspace, tmp_path):
    found = compare.versus("@champion", "v3", workspace)
    assert found.claim.startswith(
        "Version 3 is better: 100.0 % of the action right against 0.0 % of version 1, +100.0"
    )
    assert [part.change > 0 for part in found.classes["verb"]] == [True, True]
    shown = [[cell for column in each.columns for cell in column.cells] for each in table.tables(found)]
    assert "100.0" in shown[0]
    assert {"left", "right"} <= set(shown[-1]) | set(shown[-2])
    assert compare.versus("@champion", "HEAD", workspace) is None
    with pytest.raises(UserError, match="the registry has no"):
        compare.versus("@champion", "v9", workspace)


def test_a_version_stands_for_the_comparison_in_its_release(workspace):
    (workspace.reports / "comparison.json").unlink()  # the release holds its own
    top1 = [
        compare.read(name, workspace)["rows"][0]["heads"]["action"]["top1"] for name in ("@champion", "v3")
    ]
    assert top1 == [0.0, 1.0]


def test_versions_of_other_test_clips_are_shown_but_not_paired(workspace, values):
    one = promotion.open_version(version(workspace, 1), workspace).contender.scorecard
    fewer = Scorecard(one.table[one.table["clip_id"] != "test-5"])
    from tasks.versus.compared import Side, compared

    found = compared(Side("1", [], {}, one), Side("2", [], {}, fewer), parsed(values).evaluate)
    assert found.unlike == "they were scored on other test clips (6 and 5) or labels"
    assert found.heads["action"]["top1"].interval is None
    assert "nothing follows" in found.claim
    assert (found.classes, found.slices) == ({}, [])
