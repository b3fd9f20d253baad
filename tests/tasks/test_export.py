"""The exported forms say what torch says, are the same bytes again, and hold neither pickles nor places."""

import io
import json
import re
import zipfile
from pathlib import Path

import onnx
import pytest
import torch

from models.backbones.frames import Frames
from models.backbones.r3d import R3D
from tasks import export
from tasks.errors import UserError
from tasks.layout import Workspace
from tasks.networks import Committee
from tasks.params import Parity
from tasks.predict import refuse_pickles

TOLERANCE = 1e-5


def frames(temporal="mean", normalise="clip", name="test_resnet"):
    return Frames(
        kind="frames",
        name=name,
        pretrained=False,
        temporal=temporal,
        normalise=normalise,
        dropout=0.2,
        drop_path=0.0,
    )


def save(committee, folder):
    folder.mkdir()
    committee.save(folder)
    export.write(committee, folder)
    return folder


@pytest.fixture(scope="module")
def release(tmp_path_factory, rgb_student):
    return save(
        rgb_student(frames(), 2, change_s=0.1, frames=4), tmp_path_factory.mktemp("export") / "release"
    )


def clips(count, channels=6):
    return torch.rand(count, 4, channels, 32, 32, generator=torch.Generator().manual_seed(1))


def test_every_form_says_what_torch_says(release):
    found = export.differences(release, clips(5))
    assert set(found) == {"pt2", "onnx"}
    assert max(found.values()) <= TOLERANCE


def test_a_form_that_says_what_is_no_number_is_not_taken_for_equal(release, monkeypatch):
    real = export.forms(release)

    def broken(shown):
        said = real["onnx"](shown)
        return {head: values * float("nan") if head == "noun" else values for head, values in said.items()}

    monkeypatch.setattr(export, "forms", lambda _: real | {"onnx": broken})
    found = export.differences(release, clips(3))
    assert found["pt2"] <= TOLERANCE
    assert not found["onnx"] <= TOLERANCE


def test_the_temperature_is_inside_and_any_batch_is_taken(release):
    committee = Committee.load(release)
    for count in (1, 2, 7):
        logits = committee.logits(clips(count))
        for form in export.forms(release).values():
            said = form(clips(count))
            assert torch.allclose(said["verb"], (logits["verb"] / 2.0).softmax(-1), atol=TOLERANCE)
            assert torch.allclose(said["noun"], (logits["noun"] / 0.5).softmax(-1), atol=TOLERANCE)


@pytest.mark.parametrize(
    "backbone",
    [
        frames("stack", "frame"),
        frames("difference", "weights"),
        frames("conv", "none", "test_convnext"),
        R3D(kind="r3d", name="r3d_18", pretrained=False, normalise="weights", dropout=0.0),
    ],
    ids=["stack", "difference", "conv", "r3d"],
)
def test_a_backbone_exports(rgb_student, tmp_path, backbone):
    folder = save(rgb_student(backbone, frames=4), tmp_path / "release")
    assert max(export.differences(folder, clips(3, channels=3)).values()) <= TOLERANCE


def reduced_axes(file):
    """How many axes each node of an ONNX file reduces at once."""
    graph = onnx.load(file).graph
    values = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    return [values[node.input[1]].size for node in graph.node if node.op_type in ("ReduceMean", "ReduceSum")]


def test_means_are_taken_one_dimension_after_the_other(release):
    """onnxruntime adds up all axes in one float32: a trained student's probabilities moved by 2e-4."""
    found = reduced_axes(release / export.ONNX)
    assert len(found) >= 6  # a clip's mean and its deviation, over frames, height and width
    assert max(found) <= 2  # two where the image network pools its last few pixels


def test_the_same_network_gives_the_same_bytes_without_a_place_in_them(release, tmp_path):
    again = save(Committee.load(release), tmp_path / "again")
    for name in (export.PT2, export.ONNX):
        content = (release / name).read_bytes()
        assert content == (again / name).read_bytes()
        assert re.search(rb"\.py\b|site-packages", content) is None
        assert str(Path(__file__).parents[2]).encode() not in content


def test_the_onnx_names_its_input_and_heads_and_passes_the_checker(release):
    model = onnx.load(release / export.ONNX)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["clips"]
    assert [value.name for value in model.graph.output] == ["verb", "noun"]
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in shape[1:]] == [4, 6, 32, 32]
    assert shape[0].dim_param


def test_packaging_stops_where_a_form_differs(rgb_student, tmp_path, monkeypatch):
    committee = rgb_student(frames(), frames=4)
    folder = tmp_path / "release"
    folder.mkdir()
    committee.save(folder)
    monkeypatch.setattr(export, "shown_clips", lambda *_: clips(3, channels=3))
    found = export.export(folder, Parity(clips=3, tolerance=TOLERANCE), Workspace(tmp_path))
    assert found == json.loads((folder / "parity.json").read_text())
    assert found["clips"] == 3
    assert all(form["max_abs_diff"] <= TOLERANCE for form in found["forms"].values())

    write = export.write

    def write_another(ours, place):
        write(Committee(ours.spec, ours.members, {"verb": 2.1, "noun": 0.5}), place)

    monkeypatch.setattr(export, "write", write_another)
    with pytest.raises(UserError, match=r"differs from torch on 3 test views: pt2 by 0\.0\d+, onnx by"):
        export.export(folder, Parity(clips=3, tolerance=TOLERANCE), Workspace(tmp_path))


def test_differences_are_rounded_up_never_down():
    assert [export._rounded_up(value) for value in (0.0, 1e-7, 1.2e-7, 8.1e-7, 9.9e-7, 0.011)] == [
        0.0, 1e-7, 2e-7, 9e-7, 1e-6, 0.02,
    ]  # fmt: skip


def test_latency_is_told_for_every_form(release):
    found = export.latency_ms(release, repeats=2)
    assert set(found) == {"torch", "pt2", "onnx"}
    assert all(value > 0 for value in found.values())


class Planted:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("planted"),)


def rewritten(source, target, change):
    """The archive with its members as `change` (a function of name and bytes) gives them; None leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if (content := change(name, old.read(name))) is not None:
                new.writestr(name, content)
    return target


def test_an_archive_as_it_was_written_passes(release, tmp_path):
    refuse_pickles(release, "release")
    rewritten(release / export.PT2, tmp_path / "student.pt2", lambda _, content: content)
    refuse_pickles(tmp_path, "copy")


def with_sample_inputs(name, content):
    return saved(Planted()) if name.endswith("sample_inputs/model.pt") else content


def with_pickled_weight(name, content):
    return (
        content.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
        if "weights_config" in name
        else content
    )


def saved(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    "change", [with_sample_inputs, with_pickled_weight], ids=lambda change: change.__name__
)
def test_an_archive_with_a_pickle_is_refused(release, tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    rewritten(release / export.PT2, tmp_path / "student.pt2", change)
    with pytest.raises(UserError, match=r"holds student\.pt2, which may be a pickle"):
        refuse_pickles(tmp_path, "models:/m@champion")
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    "member",
    [
        "student/data/constants/opaque_obj_0",
        "student/data/constants/custom_obj_0",
        "student/data/weights/model.pt",
        "student/data/aotinductor/model/x.so",
        "student/extra/x",
        "version",
        "student/models/other.json",
    ],
)
def test_an_archive_with_any_other_member_is_refused(release, tmp_path, member):
    file = rewritten(release / export.PT2, tmp_path / "student.pt2", lambda _, content: content)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(member, b"{}")
    with pytest.raises(UserError, match="may be a pickle"):
        refuse_pickles(tmp_path, "m")


def test_what_only_ends_in_pt2_is_refused(tmp_path):
    for content in (b"", b"\x80\x04\x95", b"PK\x03\x04rest", saved(Planted())):
        (tmp_path / "student.pt2").write_bytes(content)
        with pytest.raises(UserError, match="may be a pickle"):
            refuse_pickles(tmp_path, "m")


def test_the_forms_of_a_planted_release_are_not_loaded(release, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "release"
    folder.mkdir()
    for file in release.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    rewritten(release / export.PT2, folder / export.PT2, with_sample_inputs)
    with pytest.raises(UserError, match="may be a pickle"):
        export.forms(folder)
    assert not (tmp_path / "planted").exists()
