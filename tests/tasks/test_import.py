"""`understudy import` takes a folder or an S3 prefix in: data/raw, data.dvc and params.yaml follow it."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer

from tasks import import_data as import_module
from tasks import params
from tasks.errors import InfrastructureError, UserError
from tasks.import_data import import_data
from tasks.layout import Workspace
from tasks.survey import survey
from tasks.written_params import written_params

_REPOSITORY = Path(__file__).parents[2]


def dvc(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=root, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture(scope="module")
def _initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clone")
    os.environ["DVC_SITE_CACHE_DIR"] = str(tmp_path_factory.mktemp("site"))
    dvc(root, "init", "--no-scm", "-q")
    shutil.copy(_REPOSITORY / "params.yaml", root)
    shutil.copytree(_REPOSITORY / "infra" / "presets", root / "infra" / "presets")
    return root


@pytest.fixture
def clone(_initialised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("UNDERSTUDY_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    shutil.copytree(_initialised, tmp_path / "clone")
    return Workspace(tmp_path / "clone")


@pytest.fixture
def source(raw_folder) -> Path:
    return raw_folder()


def rewritten(clone: Workspace, source: Path) -> tuple[str, list[str]]:
    current = params.load(clone.params)
    found = survey(source, str(source), current.data)
    return written_params(clone.params.read_text(), current, found)


def test_a_folder_is_taken_in(clone: Workspace, source: Path, capsys):
    found = import_data(str(source), clone)
    assert (found.clips, found.videos, found.groups, found.sound, found.detections) == (
        12,
        12,
        6,
        True,
        False,
    )
    assert (clone.raw / "videos" / "v3.mp4").read_bytes() == (source / "videos" / "v3.mp4").read_bytes()
    (tracked,) = yaml.safe_load((clone.root / "data.dvc").read_text())["outs"]
    assert tracked["path"] == "data/raw"
    assert tracked["nfiles"] == 13
    assert "up to date" in dvc(clone.root, "status", "data.dvc")
    written = params.load(clone.params)
    assert written.data.heads == {"action": ["cut", "wash"]}
    assert (written.data.name, written.data.slices) == ("raw", [])
    assert "detections" not in written.modalities
    assert "detections" not in written.teachers
    assert "audio" in written.modalities
    told = capsys.readouterr().out
    assert "no video has detections" in told
    assert "understudy run" in told


def test_what_would_surprise_is_told_before_anything_runs(clone: Workspace, source: Path, capsys):
    """Detections named unlike their video, and a split that no clip asks for."""
    (source / "detections").mkdir()
    (source / "detections" / "v0.jsonl").write_text("")
    header, *rows = (source / "annotations.csv").read_text().splitlines()
    columns = header.split(",")
    lines = [",".join([*columns, *([] if "split" in columns else ["split"])])]
    for row in rows:
        values = dict(zip(columns, row.split(","), strict=True)) | {"split": "train"}
        values["split"] = "val" if values["group"] == rows[0].split(",")[columns.index("group")] else "train"
        lines.append(",".join(values.values()))
    (source / "annotations.csv").write_text("\n".join(lines) + "\n")
    import_data(str(source), clone, dry_run=True)
    told = capsys.readouterr().out
    assert "1 file(s) of detections/ belong to no video of the clips, the first v0.jsonl" in told
    assert "as v0.mp4.jsonl" in told
    assert "no clip says test: groups of train will become it" in told
    assert "no clip says val" not in told


def test_comments_and_the_other_numbers_stay(clone: Workspace, source: Path):
    before = clone.params.read_text()
    import_data(str(source), clone)
    after = clone.params.read_text()
    assert [line for line in before.splitlines() if line.startswith("#")] == [
        line for line in after.splitlines() if line.startswith("#")
    ]
    old, new = yaml.safe_load(before), yaml.safe_load(after)
    assert old["teachers"]["rgb"]["training"] == new["teachers"]["rgb"]["training"]
    assert old["views"] == new["views"]
    heard = old["students"]["student"]["ensemble"]
    heard["teachers"] = [name for name in heard["teachers"] if name in new["teachers"]]
    old["students"]["student"]["method"] |= {
        "distillation_weight": "auto",
        "ground_truth_weight": 0.5,
        "unlabelled_weight": "auto",
    }  # other heads
    assert old["students"] == new["students"]


def test_import_again_and_back(clone: Workspace, source: Path):
    import_data(str(source), clone)
    first = (clone.root / "data.dvc").read_text()
    video = source / "videos" / "v0.mp4"
    before = video.read_bytes()
    video.write_bytes(before + b"\0")
    import_data(str(source), clone)
    assert (clone.root / "data.dvc").read_text() != first
    (clone.root / "data.dvc").write_text(first)
    dvc(clone.root, "checkout", "--force", "data.dvc")
    assert (clone.raw / "videos" / "v0.mp4").read_bytes() == before


def test_changes_that_dvc_does_not_hold_are_not_lost(clone: Workspace, source: Path):
    import_data(str(source), clone)
    (clone.raw / "videos" / "mine.mp4").write_bytes(b"precious")
    with pytest.raises(UserError, match="changes that DVC does not hold"):
        import_data(str(source), clone)
    assert (clone.raw / "videos" / "mine.mp4").read_bytes() == b"precious"
    import_data(str(source), clone, force=True)
    assert not (clone.raw / "videos" / "mine.mp4").exists()


def test_a_dry_run_changes_nothing(clone: Workspace, source: Path, capsys):
    before = clone.params.read_text()
    import_data(str(source), clone, dry_run=True)
    assert not clone.raw.exists()
    assert not (clone.root / "data.dvc").exists()
    assert clone.params.read_text() == before
    assert "nothing was changed" in capsys.readouterr().out


def test_params_that_cannot_be_written_stop_it_before_data_is_replaced(
    clone: Workspace, source: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        import_data(str(source), clone)
    assert not clone.raw.exists()
    assert not (clone.root / "data.dvc").exists()
    assert params.load(clone.params).data.name != "raw"


def test_room_is_asked_for_the_copy_and_for_dvcs_own_of_it(
    clone: Workspace, source: Path, monkeypatch: pytest.MonkeyPatch
):
    size = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
    monkeypatch.setattr(import_module, "_share", lambda *_: False)  # as ext4, whatever this disk can
    monkeypatch.setattr(import_module, "_free", lambda _: 2 * size - 1)
    with pytest.raises(UserError, match=r"data/raw and DVC's cache of it take .* of the disk of"):
        import_data(str(source), clone)
    assert not clone.raw.exists()
    monkeypatch.setattr(import_module, "_free", lambda _: 2 * size)
    import_data(str(source), clone)


def test_a_dvc_that_fails_leaves_params_as_they_were_and_says_how_to_go_on(clone: Workspace, source: Path):
    before = clone.params.read_text()
    (clone.root / ".dvc" / "cache").write_text("no folder")
    with pytest.raises(InfrastructureError, match="understudy import --force"):
        import_data(str(source), clone)
    assert clone.params.read_text() == before
    (clone.root / ".dvc" / "cache").unlink()
    import_data(str(source), clone, force=True)
    assert params.load(clone.params).data.name == "raw"


def test_folds_follow_the_groups(clone: Workspace, raw_folder):
    source = raw_folder(
        [[f"c{n}", f"v{n}.mp4", 0, 1, "cut" if n % 2 else "wash", f"g{n // 4}"] for n in range(16)]
    )
    text, notes = rewritten(clone, source)
    assert {teacher.folds for teacher in params.parse(text, clone.params).teachers.values()} == {2}
    assert any("2 fold(s)" in note for note in notes)


def test_rows_of_which_no_use_can_be_made_are_told_before_anything_is_taken_in(tmp_path: Path, raw_folder):
    rows = [[f"c{n}", f"v{n}.mp4", 0.0, 1.0, "cut" if n % 2 else "wash", f"g{n // 2}"] for n in range(12)]
    rows[3][4], rows[5][2:4] = "", (0.9, 0.2)
    raw = raw_folder(rows)
    found = survey(raw, str(raw), params.load(Path(import_module.__file__).parents[1] / "params.yaml").data)
    assert found.notes == [
        "2 row(s) will be left out, the first being annotations.csv, row 5, clip 'c3': "
        "the label action is missing"
    ]


def test_what_cannot_be_split_takes_no_place(clone: Workspace, raw_folder):
    before = sorted(clone.raw.rglob("*")), clone.params.read_text()
    source = raw_folder(
        [[f"c{n}", f"v{n}.mp4", 0.0, 1.0, "cut" if n % 2 else "wash", "p0"] for n in range(12)]
    )
    with pytest.raises(UserError, match=r"its 1 group\(s\) of labelled clips leave the split val empty"):
        import_data(str(source), clone)
    assert (sorted(clone.raw.rglob("*")), clone.params.read_text()) == before


def test_a_lesson_for_unlabelled_clips_is_settled_anew_where_all_are_labelled(clone: Workspace, source: Path):
    """The sample's teachers learn from all labelled clips, and teach those that nobody labelled."""
    before = params.load(clone.params)
    assert {teacher.folds for teacher in before.teachers.values()} == {1}
    assert before.students["student"].method.distillation_weight == 0
    text, notes = rewritten(clone, source)
    after = params.parse(text, clone.params)
    method = after.students["student"].method
    assert (method.distillation_weight, method.ground_truth_weight, method.unlabelled_weight) == (
        "auto",
        0.5,
        "auto",
    )
    assert {teacher.folds for teacher in after.teachers.values()} == {3}
    assert any("now has distillation_weight auto, ground_truth_weight 0.5" in note for note in notes)
    assert any("cross-fitted in 3 folds" in note for note in notes)


def test_it_stays_where_some_clips_have_no_label(clone: Workspace, raw_folder):
    columns = ["clip_id", "video", "start_s", "stop_s", "action", "group", "split"]
    rows = [[f"c{n}", f"v{n}.mp4", 0, 1, "cut" if n % 2 else "wash", f"g{n // 2}", ""] for n in range(12)]
    text, _ = rewritten(clone, raw_folder([*rows, ["u", "u.mp4", 0, 1, "", "u", "unlabelled"]], columns))
    after = params.parse(text, clone.params)
    assert after.students["student"].method == params.load(clone.params).students["student"].method
    assert {teacher.folds for teacher in after.teachers.values()} == {1}


def test_weights_of_other_heads_are_settled_anew(clone: Workspace, source: Path):
    values = yaml.safe_load(clone.params.read_text())
    values["students"]["student"]["method"]["distillation_weight"] = {"verb": 0.5, "noun": 0.0}
    values["students"]["student"]["method"]["head_weights"] = {"verb": 1.0, "noun": 0.5}
    clone.params.write_text(yaml.safe_dump(values))
    text, notes = rewritten(clone, source)
    method = params.parse(text, clone.params).students["student"].method
    assert (method.distillation_weight, method.ground_truth_weight) == ("auto", 0.5)
    assert any("now has distillation_weight auto, ground_truth_weight 0.5" in note for note in notes)
    assert (method.head_weights, "students.student now weighs all heads alike" in notes) == (None, True)


def test_hints_outlive_the_teacher_that_gave_them(clone: Workspace, source: Path):
    values = yaml.safe_load(clone.params.read_text())
    values["teachers"]["rgb"]["hints"] = False
    values["teachers"]["detections"]["hints"] = True  # and the source has none
    clone.params.write_text(yaml.safe_dump(values))
    text, notes = rewritten(clone, source)
    teachers = params.parse(text, clone.params).teachers
    assert "detections" not in teachers
    assert all(teacher.hints for teacher in teachers.values())
    assert any("hints of all its teachers" in note for note in notes)


def test_who_heard_only_what_is_gone_hears_all_that_is_left(clone: Workspace, source: Path):
    values = yaml.safe_load(clone.params.read_text())
    values["students"]["student"]["ensemble"]["teachers"] = ["detections"]  # and the source has none
    values["teachers"]["rgb"]["hints"] = False
    values["teachers"]["detections"]["hints"] = True
    clone.params.write_text(yaml.safe_dump(values))
    text, notes = rewritten(clone, source)
    found = params.parse(text, clone.params)
    assert found.students["student"].ensemble.teachers == list(found.teachers)
    assert all(teacher.hints for teacher in found.teachers.values())
    assert any("learns from all teachers" in note for note in notes)


def test_no_sound_at_all_drops_audio(clone: Workspace, source: Path, films):
    for video in (source / "videos").iterdir():
        films.write(video, films.grey(10))
    written = rewritten(clone, source)[0]
    assert "audio" not in params.parse(written, clone.params).modalities


def test_the_note_says_how_many_videos_were_listened_to(
    clone: Workspace, source: Path, films, monkeypatch: pytest.MonkeyPatch
):
    for video in (source / "videos").iterdir():
        films.write(video, films.grey(10))
    assert any("no video has audio" in note for note in rewritten(clone, source)[1])
    for module in ("survey", "written_params"):
        monkeypatch.setattr(f"tasks.{module}.LISTENED_TO", 2)
    assert any("no video of the 2 looked at has audio" in note for note in rewritten(clone, source)[1])


def test_hints_of_what_is_gone_come_from_all_teachers(clone: Workspace, source: Path):
    values = yaml.safe_load(clone.params.read_text())
    values["fused"] = {
        "both": {"teachers": ["rgb", "audio"], "kind": "ume", "feature_weight": 0.0, "dropout": 0.0}
    }
    values["fused"]["both"]["training"] = values["students"]["student"]["training"]
    values["students"]["student"]["ensemble"]["teachers"] = ["detections", "both"]  # and the source has none
    values["teachers"]["detections"]["hints"] = True
    clone.params.write_text(yaml.safe_dump(values))
    text, _ = rewritten(clone, source)
    heard = params.parse(text, clone.params).students["student"].ensemble.teachers
    assert set(heard) == {"both", "rgb", "flow", "audio"}  # a fused teacher gives no hints


def test_classes_that_yaml_would_misread_survive(clone: Workspace, raw_folder):
    labels = ["no", "1e3", "10", "9", "it's: [odd] #1", "窗"]
    source = raw_folder([[f"c{n}", f"v{n}.mp4", 0, 1, labels[n % 6], f"g{n}"] for n in range(24)])
    text, _ = rewritten(clone, source)
    assert params.parse(text, clone.params).data.heads["action"] == [
        "9",
        "10",
        "1e3",
        "it's: [odd] #1",
        "no",
        "窗",
    ]


def test_verb_noun_and_slices(clone: Workspace, raw_folder):
    columns = ["clip_id", "video", "start_s", "stop_s", "verb", "noun", "group", "light", "note"]
    source = raw_folder(
        [
            [
                f"c{n}",
                f"v{n}.mp4",
                0,
                1,
                "ab"[n % 2],
                "xy"[n % 2],
                f"g{n}",
                "on" if n % 3 else "off",
                f"free text {n}",
            ]
            for n in range(24)
        ],
        columns,
    )
    found = survey(source, str(source), params.load(clone.params).data)
    assert found.heads == {"verb": ["a", "b"], "noun": ["x", "y"]}
    assert found.slices == ["light"]


def annotated(text: str) -> Callable[[Path], object]:
    """Spoils a source: its annotations are `text`."""
    return lambda raw: (raw / "annotations.csv").write_text(text)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda raw: shutil.rmtree(raw), "is not a folder"),
        (lambda raw: (raw / "annotations.csv").unlink(), "no annotations of a known format"),
        (lambda raw: shutil.rmtree(raw / "videos"), "none of its 12 video"),
        (lambda raw: (raw / "videos" / "x.mp4").symlink_to("/etc/hostname"), "link that leads out"),
        (
            annotated("clip_id,video,start_s,stop_s,action\na,v0.mp4,0,1,cut\n"),
            "there is nothing to recognise",
        ),
        (
            annotated("clip_id,video,start_s,stop_s,label\na,v0.mp4,0,1,cut\n"),
            "has no label column",
        ),
        (
            annotated("clip_id;video;start_s;stop_s;action\na;v0.mp4;0;1;cut\n"),
            "one column found\n.*separate columns with commas",
        ),
        (
            annotated("clip_id,video,start_s,stop_s,action\na,v0.mp4,0:00.2,1,cut\nb,v1.mp4,0,1,mix\n"),
            "start_s is '0:00.2', not a number\n.*seconds, as 12.5",
        ),
    ],
)
def test_a_bad_source_changes_nothing(clone: Workspace, source: Path, spoil, message: str):
    before = clone.params.read_text()
    spoil(source)
    with pytest.raises(UserError, match=message):
        import_data(str(source), clone)
    assert not clone.raw.exists()
    assert clone.params.read_text() == before


def test_a_preset_takes_the_place_of_params(clone: Workspace, source: Path, capsys):
    import_data(str(source), clone, preset="epic-kitchens-100")
    written = params.load(clone.params)
    preset = params.load(_REPOSITORY / "infra" / "presets" / "epic-kitchens-100.yaml")
    assert (written.data.format, written.data.heads) == ("folder", {"action": ["cut", "wash"]})
    assert written.views == preset.views
    assert {name: teacher.backbone for name, teacher in written.teachers.items()} == {
        name: preset.teachers[name].backbone for name in ("rgb", "flow", "audio")
    }  # the source has no detections
    assert clone.params.read_text().startswith("# EPIC-KITCHENS-100 with the networks")
    assert (
        "note: the other params are those of infra/presets/epic-kitchens-100.yaml" in capsys.readouterr().out
    )


def test_a_preset_can_be_looked_at_first(clone: Workspace, source: Path, capsys):
    before = clone.params.read_text()
    import_data(str(source), clone, dry_run=True, preset="something-else")
    assert clone.params.read_text() == before
    assert not clone.raw.exists()
    told = capsys.readouterr().out
    assert "infra/presets/something-else.yaml" in told
    assert "some videos have audio, but params.yaml names no such modality" in told


def test_an_unknown_preset_is_suggested(clone: Workspace, source: Path):
    with pytest.raises(UserError, match=r"no preset 'epic-kitchens'\n.*did you mean 'epic-kitchens-100'"):
        import_data(str(source), clone, preset="epic-kitchens")
    with pytest.raises(UserError, match="known: epic-kitchens-100, something-else, something-something-v2"):
        import_data(str(source), clone, preset="../../params")


def _epic_kitchens(folder: Path) -> str:
    official = Path(os.environ["UNDERSTUDY_SHARED_DATA"]) / "epic_kitchens_100"
    for file in official.glob("*.csv"):
        shutil.copy(file, folder)
    (folder / "detections").mkdir()
    (folder / "detections" / "P01_11.jsonl").write_text("")
    return "P01_11"


def _something_else(folder: Path) -> str:
    official = Path(os.environ["UNDERSTUDY_SHARED_DATA"]) / "something_else"
    for name in (
        "compositional_labels.json",
        "compositional_oneobject_train.json",
        "annotations_sample.json",
    ):
        shutil.copy(official / name, folder)
    clips = json.loads((folder / "compositional_oneobject_train.json").read_text())
    boxes = json.loads((folder / "annotations_sample.json").read_text())
    return next(clip["id"] for clip in clips if clip["id"] in boxes)


@pytest.mark.skipif("UNDERSTUDY_SHARED_DATA" not in os.environ, reason="needs the official files")
@pytest.mark.parametrize(
    ("preset", "official", "counts", "slices"),
    [
        (
            "epic-kitchens-100",
            _epic_kitchens,
            {"verb": 97, "noun": 300},
            ["unseen_participant", "tail_class"],
        ),
        ("something-something-v2", _something_else, {"action": 174}, []),
        ("something-else", _something_else, {"action": 174}, []),
    ],
)
def test_the_official_files_fill_in_their_preset(
    clone: Workspace, tmp_path: Path, films, preset: str, official, counts: dict[str, int], slices: list[str]
):
    folder = tmp_path / preset
    folder.mkdir()
    video = official(folder)
    films.write(folder / "videos" / f"{video}.mp4", films.grey(10), sound=films.tone(1.0))
    shipped = params.load(_REPOSITORY / "infra" / "presets" / f"{preset}.yaml")
    import_data(str(folder), clone, preset=preset)
    written = params.load(clone.params)
    assert {head: len(classes) for head, classes in written.data.heads.items()} == counts
    assert (written.data.name, written.data.format, written.data.slices) == (
        preset,
        shipped.data.format,
        slices,
    )
    assert written.teachers == shipped.teachers
    assert written.students == shipped.students
    assert written.modalities == shipped.modalities


def test_from_s3(clone: Workspace, source: Path, monkeypatch: pytest.MonkeyPatch):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        bucket = boto3.resource("s3").create_bucket(Bucket="recordings")
        for path in source.rglob("*"):
            if path.is_file():
                bucket.upload_file(str(path), f"2024/kitchen/{path.relative_to(source).as_posix()}")
        found = import_data("s3://recordings/2024/kitchen", clone)
    finally:
        server.stop()
    assert found.name == "kitchen"
    assert params.load(clone.params).data.name == "kitchen"
    assert {p.name for p in clone.raw.iterdir()} == {"annotations.csv", "videos"}
    assert len(list((clone.raw / "videos").iterdir())) == 12


def test_what_was_made_of_absent_teachers_goes_with_them(clone, source):
    """The source has sound and no boxes: who needs boxes shrinks or goes, and no student is left without a teacher."""
    document = yaml.safe_load(clone.params.read_text())
    budget = document["students"]["student"]["training"]
    fused = {"kind": "auto", "feature_weight": 10.0, "dropout": 0.2, "training": budget}
    document["fused"] = {
        "three": {"teachers": ["rgb", "audio", "detections"], **fused},
        "two": {"teachers": ["rgb", "detections"], **fused},
    }
    masks = {"width": 6, "attention_heads": 3, "training": budget}
    specialists = {"student": "rgb", "temperature": 4.0, "training": budget, "masks": masks}
    document["specialists"] = {
        "kept": {"fused": "three", "auxiliaries": ["audio", "detections"], **specialists},
        "gone": {"fused": "two", "auxiliaries": ["audio"], **specialists},
    }
    document["students"]["student"]["ensemble"]["teachers"] = ["rgb", "three", "two"]
    method = {
        "kind": "mst",
        "temperature": 4.0,
        "top_k": 1,
        "distillation_weight": 1.0,
        "balance_weight": 1.0,
    }
    method |= {"gate_weight": 1.0, "gate_temperature": 1.0, "gate_width": 8, "head_weights": None}
    for name in ("kept", "gone"):
        document["students"][f"of-{name}"] = document["students"]["baseline"] | {
            "learns_from": f"artifacts/specialists/{name}",
            "method": method,
        }
    shown = {"kind": "omnivorous", "modality_dropout": 0.5, "head_weights": None}
    for name, teachers in {"shown": ["audio", "detections"], "blind": ["detections"]}.items():
        document["students"][name] = document["students"]["baseline"] | {
            "learns_from": "artifacts/teachers",
            "method": shown | {"teachers": teachers},
        }
    document["register"]["student"] = "of-gone"
    clone.params.write_text(yaml.safe_dump(document, sort_keys=False))
    text, notes = rewritten(clone, source)
    found = params.parse(text, clone.params)
    assert {name: entry.teachers for name, entry in found.fused.items()} == {"three": ["rgb", "audio"]}
    assert {name: entry.auxiliaries for name, entry in found.specialists.items()} == {"kept": ["audio"]}
    assert set(found.students) == {"baseline", "student", "of-kept", "shown"}
    assert found.students["student"].ensemble.teachers == ["rgb", "three"]
    assert found.students["shown"].method.teachers == ["audio"]
    assert found.register_.student == "auto"
    assert "fused.two is taken out, as fewer than two of its teachers are left" in notes
