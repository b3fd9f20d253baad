"""STUDY.yaml: what it may say, how it is refused, and the params.yaml that comes of it."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.distill.method import Taught
from tasks.errors import UserError
from tasks.params import load, parse
from tasks.study import spec
from tasks.survey import Summary

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "benchmarks" / "study.yaml"
STUDY = """\
name: tiny
seeds: [3, 4]
baseline: labels
data_sets:
  sample: {source: clone}
methods:
  labels: {like: baseline}
  softer:
    like: student
    method:
      temperature: 2.0
  whole:
    like: student
    method: {kind: supervised, head_weights: null, label_smoothing: 0.0}
    learns_from: data/index
    ensemble: null
changes:
  teachers:
    flow:
      folds: 2
"""
KD = (
    "method: {kind: kd, temperature: 1.0, divergence: forward_kl, distillation_weight: 0.0, "
    "ground_truth_weight: 1.0, unlabelled_weight: 1.0, head_weights: null}"
)
"""For a student of teachers that give no hints."""
SILENT = Summary(
    name="silent", format="folder", heads={"action": ["cut", "wash"]}, slices=[], clips=30, videos=30, groups=10,
    splits={}, unlabelled=0, training_groups=6, missing_videos=[], sound=False, detections=True,
)  # fmt: skip


def composed(tmp_path: Path, text: str = STUDY, found: Summary | None = None) -> spec.Composed:
    """The params of the data set `sample` of a study with this text."""
    file = tmp_path / "study.yaml"
    file.write_text(text)
    return spec.compose(spec.read(file), "sample", ROOT / "params.yaml", found)


def test_the_shipped_study_fits_the_shipped_params():
    source = spec.read(SHIPPED)
    found = spec.compose(source, "sample", ROOT / "params.yaml", None)
    assert found.params.students.keys() == source.study.methods.keys()
    assert found.params.students["hints"].method.kind == "hints"
    assert found.params.students["self"].learns_from == "artifacts/teachings/rgb"


def test_methods_become_students_and_the_rest_stays(tmp_path: Path):
    found, base = composed(tmp_path), load(ROOT / "params.yaml")
    assert found.params == parse(found.text, tmp_path / "params.yaml")
    assert found.params.seeds == [3, 4]
    assert list(found.params.students) == ["labels", "softer", "whole"]
    assert found.params.students["labels"] == base.students["baseline"]
    softer, student = found.params.students["softer"], base.students["student"]
    assert softer.method == student.method.model_copy(update={"temperature": 2.0})
    assert softer.training == student.training
    assert found.params.students["whole"].method == base.students["baseline"].method
    assert found.params.teachers["flow"] == base.teachers["flow"].model_copy(update={"folds": 2})
    assert found.params.teachers["audio"] == base.teachers["audio"]
    assert found.params.data == base.data


def test_a_teacher_may_be_left_out_where_no_method_hears_it(tmp_path: Path):
    alone = STUDY.replace("      folds: 2\n", "      folds: 2\n    audio: null\n")
    with pytest.raises(
        UserError, match=r"row 8: students.softer.ensemble.teachers|row 8: methods.softer.ensemble"
    ):
        composed(tmp_path, alone)
    deaf = alone.replace(
        "      temperature: 2.0\n", "      temperature: 2.0\n    ensemble: {teachers: [rgb, flow]}\n"
    )
    assert set(composed(tmp_path, deaf).params.teachers) == {"rgb", "flow", "detections"}


@pytest.mark.parametrize(
    ("before", "after", "row", "words"),
    [
        ("    flow:\n      folds: 2", "    flw: 2", 19, "teachers: there is no 'flw'; did you mean 'flow'?"),
        ("seeds:", "sedes:", 2, "unknown key sedes; did you mean 'seeds'?"),
        (
            "{source: clone}",
            "{sourse: clone}",
            5,
            "unknown key data_sets.sample.sourse; did you mean 'source'?",
        ),
        ("baseline: labels", "baseline: label", 3, "there is no 'label'; did you mean 'labels'?"),
        ("seeds: [3, 4]", "seeds: [3, 3]", 2, "seeds: one is there twice"),
        ("seeds: [3, 4]", "seeds: []", 2, "seeds: List should have at least 1 item"),
        ("like: student\n    method:\n", "like: studnet\n    method:\n", 9, "did you mean 'student'?"),
        (
            "      temperature:",
            "      temprature:",
            11,
            "unknown key methods.softer.method.temprature; did you mean",
        ),
        ("temperature: 2.0", "temperature: -1", 11, "methods.softer.method.temperature: "),
        ("folds: 2", "fold: 2", 20, "unknown key changes.teachers.flow.fold; did you mean 'folds'?"),
        (
            "    flow:\n      folds: 2",
            "    flw: null",
            19,
            "teachers: there is no 'flw'; did you mean 'flow'?",
        ),
        (
            "    flow:\n      folds: 2",
            "    flw:\n      folds: 2",
            19,
            "teachers: there is no 'flw'; did you mean 'flow'?",
        ),
        (
            "kind: supervised",
            "kind: supervisd",
            14,
            "kind: there is no 'supervisd'; did you mean 'supervised'?",
        ),
        ("  teachers:\n    flow:", "  seeds:\n    flow:", 18, "all data sets have the study's `seeds`"),
        (
            "  teachers:\n    flow:",
            "  teacers:\n    flow:",
            18,
            "unknown key changes.teacers; did you mean 'teachers'?",
        ),
        (
            "{source: clone}",
            "{source: clone, changes: {views: {size: 0}}}",
            5,
            "data_sets.sample.changes.views.size: Input should be greater than 0",
        ),
        ("{source: clone}", "{source: clone, params: no.yaml}", 5, "there is no file 'no.yaml'"),
        ("name: tiny", "name: [", 3, "not valid YAML"),
    ],
)
def test_what_is_wrong_is_told_with_its_row(tmp_path: Path, before: str, after: str, row: int, words: str):
    assert before in STUDY
    with pytest.raises(UserError) as refused:
        composed(tmp_path, STUDY.replace(before, after))
    assert f"study.yaml, row {row}: " in str(refused.value)
    assert words in str(refused.value)


def test_a_data_set_has_changes_of_its_own_and_they_come_last(tmp_path: Path):
    changes = (
        "{search: {epochs: 2}, teachers: {flow: {folds: 3}}, students: {student: {training: {epochs: 7}}}}"
    )
    own = STUDY.replace("{source: clone}", f"{{source: clone, changes: {changes}}}")
    found = composed(tmp_path, own).params
    assert found.students["softer"].training.epochs == 7
    assert found.search.epochs == 2
    assert found.search.temperature == load(ROOT / "params.yaml").search.temperature
    assert found.teachers["flow"].folds == 3


def test_a_study_of_one_method_or_no_file_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="at least 2 items"):
        composed(tmp_path, STUDY[: STUDY.index("  softer:")])
    with pytest.raises(UserError, match=r"not found\n  → benchmarks/study.yaml is one to start from"):
        spec.read(tmp_path / "nowhere.yaml")


def test_data_without_sound_takes_its_teacher_out_and_the_method_that_hears_it_alone(tmp_path: Path):
    text = STUDY.replace(
        "changes:\n",
        f"  ears: {{like: student, learns_from: artifacts/teachings/audio, ensemble: {{teachers: [audio]}}, {KD}}}\n"
        "changes:\n",
    )
    by_head = "      temperature: 2.0\n      distillation_weight: {verb: 0.5, noun: 0.0}\n"
    text = text.replace("      temperature: 2.0\n", by_head)
    assert "ears" in composed(tmp_path, text).params.students
    found = composed(tmp_path, text, SILENT)
    assert found.left_out == {"ears": "the data has nothing that its teachers see (audio)"}
    assert not any("students.ears" in note for note in found.notes)
    assert list(found.params.students) == ["labels", "softer", "whole"]
    assert "audio" not in found.params.modalities
    heard = found.params.students["softer"].ensemble
    assert heard is not None
    assert heard.teachers == ["rgb", "flow", "detections"]
    assert found.params.data.heads == {"action": ["cut", "wash"]}
    assert found.params.students["softer"].method.distillation_weight == "auto"  # was by verb and noun
    assert found.params.seeds == [3, 4]


def test_a_method_of_fused_teachers_stays_and_one_of_lost_specialists_is_left_out_with_its_reason(
    tmp_path: Path,
):
    training = (
        "{epochs: 2, batch: 4, learning_rate: 0.1, weight_decay: 0.0, warmup_epochs: 0, decay: linear, "
        "clip_norm: 1.0, ema: 0.0, precision: float32, devices: 1}"
    )
    rest = f"student: rgb, temperature: 4.0, training: {training}, "
    rest += f"masks: {{width: 6, attention_heads: 3, training: {training}}}"
    method = "kind: mst, temperature: 4.0, top_k: 1, distillation_weight: 1.0, balance_weight: 1.0, "
    method += "gate_weight: 1.0, gate_temperature: 1.0, gate_width: 8, head_weights: null"
    text = STUDY.replace("folds: 2", "folds: 1").replace(
        "changes:\n",
        f"  joint: {{like: student, ensemble: {{teachers: [umt], weights: uniform}}, {KD}}}\n"
        f"  gated: {{like: baseline, learns_from: artifacts/specialists/ears, method: {{{method}}}}}\n"
        "changes:\n"
        "  fused: {umt: {teachers: [rgb, flow], kind: umt, feature_weight: 1.0, dropout: 0.0, "
        f"training: {training}}}}}\n"
        f"  specialists: {{ears: {{fused: umt, auxiliaries: [audio], {rest}}}}}\n",
    )
    assert {"joint", "gated"} <= composed(tmp_path, text).params.students.keys()
    found = composed(tmp_path, text, SILENT)
    assert found.left_out == {"gated": "the data has not what artifacts/specialists/ears was made to see"}
    assert found.params.students["joint"].ensemble.teachers == ["umt"]  # type: ignore[union-attr]


def test_a_method_at_fault_is_told_before_data_is_taken_in(tmp_path: Path):
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.replace("  softer:\n    like: student\n", "  softer:\n"))
    with pytest.raises(UserError, match=r"study.yaml, row \d+: missing key methods\.softer\."):
        spec.before_import(spec.read(file), "sample", ROOT / "params.yaml")


def test_teachers_get_no_hints_for_a_method_that_is_left_out(tmp_path: Path):
    hints = KD.replace("kind: kd", "kind: hints, hint_weight: 1.0")
    lesson = "learns_from: artifacts/teachings/audio, ensemble: {teachers: [audio]}"
    text = STUDY.replace("changes:\n", f"  ears: {{like: student, {lesson}, {hints}}}\nchanges:\n")
    found = composed(tmp_path, text, SILENT)
    assert "ears" in found.left_out
    assert {name for name, teacher in found.params.teachers.items() if teacher.hints} == {"rgb"}


def test_a_baseline_that_the_data_cannot_have_is_refused(tmp_path: Path):
    text = STUDY.replace(
        "  labels: {like: baseline}\n",
        "  labels: {like: student, learns_from: artifacts/teachings/audio, ensemble: {teachers: [audio]}}\n",
    )
    with pytest.raises(UserError, match=r"row 7: sample has no videos for the baseline"):
        composed(tmp_path, text, SILENT)


def test_data_with_the_senses_of_no_method_is_refused_before_anything_is_trained(tmp_path: Path):
    """A study of the baseline alone compares nothing."""
    ears = f"like: student, learns_from: artifacts/teachings/audio, ensemble: {{teachers: [audio]}}, {KD}"
    head, rest = STUDY.split("methods:\n")
    text = (
        f"{head}methods:\n  labels: {{like: baseline}}\n  ears: {{{ears}}}\n{rest[rest.index('changes:') :]}"
    )
    assert "ears" in composed(tmp_path, text).params.students
    with pytest.raises(UserError, match="sample has the senses of no method but the baseline"):
        composed(tmp_path, text, SILENT)


def test_an_import_does_without_students_of_specialists_and_senses_that_the_study_leaves_out(tmp_path: Path):
    base = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    omnivorous = {"kind": "omnivorous", "teachers": ["audio"], "modality_dropout": 0.5, "head_weights": None}
    gated = {"kind": "mst", "temperature": 4.0, "top_k": 1, "distillation_weight": 1.0, "balance_weight": 1.0}
    gated |= {"gate_weight": 1.0, "gate_temperature": 1.0, "gate_width": 8, "head_weights": None}
    training = base["teachers"]["rgb"]["training"]
    base["fused"]["umt"] = {"teachers": ["rgb", "flow"], "kind": "ume", "feature_weight": 1.0, "dropout": 0.0}
    base["fused"]["umt"]["training"] = training
    base["specialists"]["mst"] = {
        "fused": "umt",
        "auxiliaries": ["flow"],
        "student": "rgb",
        "temperature": 4.0,
        "training": training,
    }
    base["specialists"]["mst"]["masks"] = {"width": 6, "attention_heads": 3, "training": training}
    like = base["students"]["baseline"]
    base["students"]["shown"] = like | {"learns_from": "artifacts/teachers", "method": omnivorous}
    base["students"]["gated"] = like | {"learns_from": "artifacts/specialists/mst", "method": gated}
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump(base))
    file = tmp_path / "study.yaml"
    changes = "      folds: 2\n    audio: null\n  specialists: {mst: null}\n"
    file.write_text(STUDY.replace("      folds: 2\n", changes.replace("folds: 2", "folds: 1")))
    found = parse(spec.before_import(spec.read(file), "sample", params), params)
    assert list(found.students) == ["baseline"]


def test_an_import_starts_from_params_that_stand_alone(tmp_path: Path):
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.replace("      folds: 2\n", "      folds: 2\n    audio: null\n"))
    text = spec.before_import(spec.read(file), "sample", ROOT / "params.yaml")
    found = parse(text, tmp_path / "params.yaml")
    assert list(found.students) == ["baseline"]  # the other hears audio
    assert "audio" not in found.teachers


@pytest.mark.parametrize(
    ("base", "changes", "expected"),
    [
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}, {"a": {"x": 1, "y": 3}}),
        ({"a": {"kind": "kd", "y": 2}}, {"a": {"kind": "hints"}}, {"a": {"kind": "hints"}}),
        ({"a": {"kind": "kd", "y": 2}}, {"a": {"kind": "kd", "y": 1}}, {"a": {"kind": "kd", "y": 1}}),
        ({"a": {"x": 1}}, {"a": None}, {"a": None}),
        ({"a": None}, {"a": {"x": 1}, "b": [1]}, {"a": {"x": 1}, "b": [1]}),
    ],
)
def test_sections_are_merged_unless_their_kind_differs(
    base: dict[str, Any], changes: dict[str, Any], expected: dict[str, Any]
):
    kept = yaml.safe_dump(base)
    assert spec.merged(base, changes) == expected
    assert yaml.safe_dump(base) == kept


EXTENSION = """\
extends: study.yaml
name: elsewhere
data_sets:
  mine: {source: clone}
methods:
  softer: {method: {temperature: 4.0}}
  whole: null
  more: {like: student}
"""


def extended(tmp_path: Path, text: str = EXTENSION, other: str = STUDY) -> spec.Source:
    (tmp_path / "study.yaml").write_text(other)
    (tmp_path / "mine.yaml").write_text(text)
    return spec.read(tmp_path / "mine.yaml")


@pytest.mark.parametrize("senses", [True, False])
def test_the_readmes_example_fits_data_with_all_senses_and_with_none_beside_pictures(
    tmp_path: Path, senses: bool
):
    """No weight is left to be settled by an import, so every method is the one of its name."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml\n(# benchmarks/my_study.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)
    file = tmp_path / "my_study.yaml"
    file.write_text(text.replace("extends: study.yaml", f"extends: {SHIPPED}"))
    found = spec.compose(
        spec.read(file), "mine", ROOT / "params.yaml", replace(SILENT, sound=senses, detections=senses)
    )
    methods = {name: student.method for name, student in found.params.students.items()}
    assert {teacher.folds for teacher in found.params.teachers.values()} == {3}
    assert methods.keys() == set(spec.read(SHIPPED).study.methods) - found.left_out.keys()
    taught = [method for name, method in methods.items() if isinstance(method, Taught) and name != "auto"]
    assert {method.distillation_weight for method in taught} == {0.5}


def test_a_study_takes_methods_of_another_and_no_data_set(tmp_path: Path):
    source = extended(tmp_path)
    study, other = source.study, spec.read(tmp_path / "study.yaml").study
    assert (study.name, study.seeds, study.baseline) == ("elsewhere", [3, 4], "labels")
    assert list(study.data_sets) == ["mine"]
    assert list(study.methods) == ["labels", "softer", "more"]
    assert study.methods["softer"] == {"like": "student", "method": {"temperature": 4.0}}
    assert study.changes == other.changes


@pytest.mark.parametrize(
    ("text", "other", "message"),
    [
        (EXTENSION.replace("study.yaml", "none.yaml"), STUDY, r"mine.yaml, row 1: extends: there is no file"),
        (EXTENSION.replace("name: elsewhere\n", ""), STUDY, r"mine.yaml.*missing key name"),
        (
            EXTENSION.replace("temperature", "temprature"),
            STUDY,
            r"mine.yaml, row 6: .*temprature.*'temperature'",
        ),
        (EXTENSION, STUDY.replace("seeds:", "sedes:"), r"study.yaml, row 2: unknown key sedes"),
        (
            EXTENSION,
            EXTENSION,
            r"mine.yaml, row 1: .* extends another study itself\n.*→ extend study.yaml, or copy",
        ),
        (
            EXTENSION.replace("whole: null", "whle: null"),
            STUDY,
            r"mine.yaml, row 7: methods: there is no 'whle' to leave out; did you mean 'whole'\?",
        ),
        (
            EXTENSION.replace("  softer: {method: {temperature: 4.0}}\n", ""),
            STUDY.replace("temperature: 2.0", "temperature: -2.0"),
            r"(?s)mine.yaml, row 5: methods.softer.*→ what is said here of methods.softer takes the place",
        ),
    ],
)
def test_what_is_wrong_is_told_in_the_file_that_has_it(tmp_path: Path, text: str, other: str, message: str):
    with pytest.raises(UserError, match=message):
        spec.compose(extended(tmp_path, text, other), "mine", ROOT / "params.yaml", None)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "benchmarks").glob("study_*.yaml")), ids=lambda file: file.stem
)
def test_the_other_shipped_studies_fit_their_params(file: Path):
    source = spec.read(file)
    for name, data_set in source.study.data_sets.items():
        found = replace(SILENT, heads=HEADS_OF[file.stem], sound=True, detections=False)
        composed = spec.compose(source, name, ROOT / "params.yaml", found)
        assert composed.params.students.keys() == source.study.methods.keys()
        assert data_set.source != "clone"


HEADS_OF = {
    "study_av_digits": {"action": [str(digit) for digit in range(10)]},
    "study_fights": {"action": ["fight", "no fight"]},
    "study_paper": {"verb": ["take", "put"], "noun": ["cup", "jar"]},
}


def test_specialists_that_no_method_learns_from_are_not_trained(tmp_path: Path):
    composed = spec.compose(spec.read(SHIPPED), "sample", ROOT / "params.yaml", None)
    assert list(composed.params.specialists) == ["mst"]
    own = (ROOT / "benchmarks" / "study_av_digits.yaml").read_text(encoding="utf-8")
    own = own.replace("study.yaml", str(SHIPPED)).replace(
        "av_digits.yaml", str(SHIPPED.parent / "av_digits.yaml")
    )
    file = tmp_path / "mine.yaml"
    before, methods, after = own.partition("methods:\n")
    file.write_text(before + methods + "  mst: null\n" + after.partition("  specialists:")[0])
    found = replace(SILENT, heads=HEADS_OF["study_av_digits"], sound=True, detections=False)
    source = spec.read(file)
    parse(spec.before_import(source, "scratch", ROOT / "params.yaml"), file)
    composed = spec.compose(source, "scratch", ROOT / "params.yaml", found)
    assert list(composed.params.fused) == ["umt"]
    assert composed.params.specialists == {}
