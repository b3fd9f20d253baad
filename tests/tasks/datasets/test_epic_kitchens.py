"""EPIC-KITCHENS-100's official files are read as published."""

import os
from pathlib import Path

import pytest

from tasks.datasets import dataset
from tasks.datasets.annotations import check
from tasks.errors import UserError

_HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)


def line(narration: str, participant: str, verb: int, noun: int, start: str = "00:05:27.84") -> str:
    video = f"{participant}_01"
    times = f"00:00:00.5,{start},01:05:31.97,1,2"
    return f"{narration},{participant},{video},{times},wash it,rinse,{verb},it,{noun},['it'],[0]\n"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "EPIC_100_verb_classes.csv").write_text(
        "id,key,instances,category\n0,take,\"['a', 'b']\",x\n1,wash,[],y\n"
    )
    (tmp_path / "EPIC_100_noun_classes.csv").write_text(
        "id,key,instances,category\n0,tap,[],x\n1,cup,[],y\n2,pan,[],y\n"
    )
    (tmp_path / "EPIC_100_validation.csv").write_text(
        _HEADER + line("P01_01_0", "P01", 1, 2) + line("P18_01_0", "P18", 0, 0)
    )
    return tmp_path


def test_a_row_of_the_validation_file(raw: Path):
    reader = dataset("epic_kitchens")
    assert reader.recognises(raw)
    clip = reader.clips(raw, ["verb", "noun"])[0]
    assert (clip.clip_id, clip.video, clip.row) == ("P01_01_0", "P01_01", 2)
    assert (clip.start_s, clip.stop_s) == (pytest.approx(327.84), pytest.approx(3931.97))
    assert clip.labels == {"verb": "wash", "noun": "pan"}
    assert (clip.group, clip.split) == ("P01", "")  # no train file: split by participant


def test_both_files_keep_the_official_split(raw: Path):
    (raw / "EPIC_100_train.csv").write_text(
        _HEADER + line("P01_02_0", "P01", 0, 1).replace("P01_01", "P01_02")
    )
    (raw / "EPIC_100_unseen_participant_ids_validation.csv").write_text("participant_id\nP18\n")
    (raw / "EPIC_100_tail_verbs.csv").write_text("verb\n1\n")
    (raw / "EPIC_100_tail_nouns.csv").write_text("noun\n")
    reader = dataset("epic_kitchens")
    train, seen, unseen = reader.clips(raw, ["verb", "noun"])
    check([train, seen, unseen], reader.heads(raw))
    assert (train.split, seen.split, unseen.split) == ("train", "test", "test")
    assert train.group != seen.group  # the published sets share participants
    assert [clip.slices["unseen_participant"] for clip in (train, seen, unseen)] == ["no", "no", "yes"]
    assert [clip.slices["tail_class"] for clip in (train, seen, unseen)] == ["no", "yes", "no"]


@pytest.mark.parametrize("place", ["P01/videos/P01_01.MP4", "videos/P01/P01_01.mp4", "videos/P01_01.MP4"])
def test_where_videos_may_lie(raw: Path, place: str):
    (raw / place).parent.mkdir(parents=True)
    (raw / place).touch()
    assert dataset("epic_kitchens").video_path(raw, "P01_01") == raw / place


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line("P01_01_1", "P01", 9, 0), "verb_class is '9', there are 2"),
        (line("P01_01_1", "P01", 0, 0, start="five"), "start_timestamp is 'five'"),
        (line("../P01", "P01", 0, 0), "leaves its folder"),
    ],
)
def test_a_bad_row_is_named(raw: Path, bad: str, message: str):
    (raw / "EPIC_100_validation.csv").write_text(_HEADER + bad)
    with pytest.raises(UserError, match="row 2") as caught:
        dataset("epic_kitchens").clips(raw, ["verb", "noun"])
    assert message in str(caught.value)


@pytest.mark.skipif("UNDERSTUDY_SHARED_DATA" not in os.environ, reason="needs the official files")
def test_the_official_files():
    raw = Path(os.environ["UNDERSTUDY_SHARED_DATA"]) / "epic_kitchens_100"
    reader = dataset("epic_kitchens")
    heads = reader.heads(raw)
    assert (len(heads["verb"]), len(heads["noun"])) == (97, 300)
    clips = reader.clips(raw, heads)
    check(clips, heads)
    assert len(clips) == 9668
    assert {clip.group for clip in clips if clip.slices["unseen_participant"] == "yes"} == {"P18", "P32"}
