"""params.yaml: what the project ships parses; what is wrong is named with its row and the nearest right word."""

from pathlib import Path

import pytest
import yaml

from tasks.errors import UserError
from tasks.params import load, parse

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
FILE = Path("params.yaml")
LABELS = {"kind": "supervised", "head_weights": None, "label_smoothing": 0.0}


def row_of(text, line):
    return text.splitlines().index(line) + 1


def test_the_shipped_params_parse():
    params = load(ROOT / "params.yaml")
    assert {"rgb", "flow", "detections", "audio"} <= set(params.teachers)
    assert {"baseline", "student"} <= set(params.students)


@pytest.mark.parametrize(
    "file",
    ["params.yaml", "benchmarks/av_digits.yaml", *sorted(map(str, (ROOT / "infra/presets").glob("*.yaml")))],
    ids=lambda file: Path(file).stem,
)
def test_student_and_baseline_have_the_same_network_and_budget(file: str):
    params = load(ROOT / file)
    baseline, student = params.students["baseline"], params.students["student"]
    assert (baseline.backbone, baseline.training) == (student.backbone, student.training)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  frames: 8", "  frame: 8", r"row \d+: unknown key views.frame; did you mean 'frames'\?"),
        ("seeds: [0]", "sedes: [0]", r"row \d+: unknown key sedes; did you mean 'seeds'\?"),
        ("  size: 56\n", "", r"missing key views.size"),
        ("  size: 56", "  size: -1", r"views.size: Input should be greater than 0"),
        ("  size: 56", "  size: big", r"row \d+: views.size: Input should be a valid integer"),
        (
            "zoom: [1.0, 1.25]",
            "zoom: [1.5, 1.25]",
            r"views: zoom: the first number must not exceed the second",
        ),
        (
            "    modality: flow",
            "    modality: flwo",
            r"row \d+: teachers.flow.modality: there is no 'flwo'; did you mean 'flow'",
        ),
        (
            "learns_from: data/index",
            "learns_from: data/idx",
            r"row \d+: students.baseline.learns_from: Input should be 'data/index', 'artifacts/teachings' or",
        ),
        ("  student: auto", "  student: studnet", r"did you mean 'student'"),
        ("  clips: [1, 2, 5]", "  clips: [2, 5]", r"row \d+: evaluate.clips: 1 must be among them: one view"),
        (
            "name: test_resnet, ",
            "nam: test_resnet, ",
            r"unknown key teachers.rgb.backbone.nam; did you mean 'name'",
        ),
        ("divergence: forward_kl", "divergence: foward_kl", r"row \d+: students.student.method.divergence"),
        ("label_smoothing: 0.0", "label_smoothing: 1.0", r"label_smoothing: Input should be less than 1"),
        (", label_smoothing: 0.0", "", r"missing key students.baseline.method.label_smoothing"),
        ("weights: data_set", "weights: dataset", r"student.ensemble.weights: .*'learned'"),
        ("kind: frames", "kind: frame", r"teachers.rgb.backbone"),
        ("views:\n", "views: [\n", r"not valid YAML"),
        ("head: action", "head: actoin", r"register.head: there is no 'actoin'; did you mean 'action'"),
    ],
)
def test_mistakes_are_named(old, new, message):
    assert old in TEXT
    with pytest.raises(UserError, match=message):
        parse(TEXT.replace(old, new, 1), FILE)


def test_further_mistakes_are_counted_by_rows():
    text = TEXT.replace("precision: float32", "precision: float31").replace("  size: 56", "  size: big")
    rows = [text[: text.index(part)].count("\n") + 1 for part in ("  size: big", "precision: float31")]
    with pytest.raises(UserError) as caught:
        parse(text, FILE)
    assert caught.value.row == rows[0]
    assert caught.value.remedy.startswith(f"more to mend in row {rows[1]}")


def test_the_row_is_that_of_the_key():
    text = TEXT.replace("  test_zoom:", "  test_zom:")
    with pytest.raises(UserError) as caught:
        parse(text, FILE)
    assert text.splitlines()[caught.value.row - 1].startswith("  test_zom:")


def test_one_class_is_nothing_to_recognise():
    values = yaml.safe_load(TEXT)
    values["data"]["heads"] = {"verb": ["stir"], "noun": ["cup", "jar"]}
    with pytest.raises(UserError, match="head verb has 1 class"):
        parse(yaml.safe_dump(values), FILE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learns_from": "data/index"}, "method hints needs teachings"),
        ({"learns_from": "artifacts/teachings/rgb"}, r"ensemble.teachers must be \[rgb\]"),
        ({"learns_from": "artifacts/teachers"}, "method hints is not shown what teachers see"),
        ({"method": LABELS}, "method supervised learns from labels alone"),
        (
            {
                "method": {
                    "kind": "omnivorous",
                    "teachers": ["flow"],
                    "modality_dropout": 0.5,
                    "head_weights": None,
                }
            },
            "method omnivorous is shown what teachers see: learns_from: artifacts/teachers",
        ),
    ],
)
def test_a_student_that_contradicts_itself_is_refused(change, message):
    values = yaml.safe_load(TEXT)
    values["students"]["student"] |= change
    with pytest.raises(UserError, match=message):
        parse(yaml.safe_dump(values), FILE)


def test_a_student_cannot_hear_a_teacher_that_is_not_there():
    with pytest.raises(UserError, match="there is no 'sound'"):
        parse(TEXT.replace("detections, audio], weights", "detections, sound], weights"), FILE)


def test_a_student_of_teachers_needs_a_mix():
    values = yaml.safe_load(TEXT)
    values["students"]["student"]["ensemble"] = None
    with pytest.raises(UserError, match="needs an `ensemble` section"):
        parse(yaml.safe_dump(values), FILE)


def test_no_params_says_where_to_run(tmp_path):
    with pytest.raises(UserError, match="inside a clone"):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "method",
    [
        {"kind": "hints", "hint_weight": 1.0},
        {"kind": "rkd", "distance_weight": 25.0, "angle_weight": 50.0},
    ],
)
def test_hints_need_a_teacher_that_gives_them(method):
    document = yaml.safe_load(TEXT)
    del document["students"]["student"]["method"]["hint_weight"]
    document["students"]["student"]["method"] |= method
    document["teachers"]["rgb"]["hints"] = False
    with pytest.raises(UserError, match=rf"students.student: method {method['kind']} needs `hints: true`"):
        parse(yaml.safe_dump(document), FILE)
    document["teachers"]["flow"]["hints"] = True
    assert parse(yaml.safe_dump(document), FILE).students["student"].method.kind == method["kind"]


@pytest.mark.parametrize("name", ["reverse_then_forward", "chi_squared", "auto"])
def test_a_divergence_is_chosen_by_name(name):
    text = TEXT.replace("divergence: forward_kl", f"divergence: {name}")
    assert parse(text, FILE).students["student"].method.divergence == name
