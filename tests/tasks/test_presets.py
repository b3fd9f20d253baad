"""Every shipped preset: it parses, says the paper's numbers, and its networks take what its modalities render.

Source of the numbers: Radevski et al., Multimodal Distillation for Egocentric Action Recognition, ICCV 2023.
"""

import math
from pathlib import Path

import pytest
import torch

from models.distill.method import Lesson
from models.network import count_parameters, gmacs
from tasks.datasets import FORMATS
from tasks.errors import UserError
from tasks.networks import Spec
from tasks.params import Params, load, parse

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "infra" / "presets").glob("*.yaml"))
CLASSES = {"epic_kitchens": {"verb": 97, "noun": 300}, "something_else": {"action": 174}}
WIDTH = 768  # of Video Swin-T and of STLT alike
MILLIONS = {"rgb": 27.85, "flow": 27.85, "audio": 27.85, "detections": 85.2}
presets = pytest.mark.parametrize("preset", [load(file) for file in FILES], ids=[file.stem for file in FILES])


def specs(preset: Params) -> dict[str, Spec]:
    """Of every teacher and student, with as many classes as the data set has."""
    heads = {
        head: [str(number) for number in range(count)] for head, count in CLASSES[preset.data.format].items()
    }
    entries = {
        f"teacher {name}": (teacher.modality, teacher.backbone) for name, teacher in preset.teachers.items()
    }
    entries |= {f"student {name}": ("rgb", student.backbone) for name, student in preset.students.items()}
    return {
        name: Spec(
            modality=modality,
            modality_params=preset.modalities[modality],
            views=preset.views,
            heads=heads,
            backbone=backbone,
        )
        for name, (modality, backbone) in entries.items()
    }


def test_the_three_data_sets_have_one():
    assert [file.stem for file in FILES] == [
        "epic-kitchens-100",
        "something-else",
        "something-something-v2",
    ]


@presets
def test_only_the_data_is_left_to_fill_in(preset: Params):
    assert preset.data.format in FORMATS
    assert preset.data.heads.keys() == CLASSES[preset.data.format].keys()


def test_weights_have_to_be_named():
    file = FILES[0]
    text = file.read_text(encoding="utf-8").replace("pretrained: KINETICS400_V1", "pretrained: true")
    with pytest.raises(
        UserError, match=r"teachers.rgb.backbone.pretrained: say which: KINETICS400_V1, or the path"
    ):
        parse(text, file)


@presets
def test_the_recipe_is_the_papers(preset: Params):
    views = preset.views
    assert (views.frames, views.size, views.zoom, views.test_zoom, views.flip) == (
        16,
        224,
        (1.15, 1.43),
        1,
        False,
    )
    assert list(views.jitter.model_dump().values()) == [0.25, 0.25, 0.25, 0.1]
    trainings = {name: entry.training for name, entry in (preset.teachers | preset.students).items()}
    for name, training in trainings.items():
        assert training.batch == (128 if name == "detections" else 16)
        assert (training.epochs, training.warmup_epochs, training.decay) == (30, 3, "linear")
        assert (training.learning_rate, training.weight_decay, training.clip_norm) == (1e-4, 0.02, 5.0)
    for entry in (preset.teachers | preset.students).values():
        if entry.backbone.kind != "stlt":
            assert (entry.backbone.name, entry.backbone.drop_path) == ("swin3d_t", 0.2)
            assert entry.backbone.pretrained == "KINETICS400_V1"
    assert preset.evaluate.crops == [1, 3]
    assert preset.modalities["detections"].max_boxes == 14


@presets
def test_the_senses_are_those_that_the_data_set_has(preset: Params):
    senses = {"rgb", "flow", "detections"} | ({"audio"} if preset.data.format == "epic_kitchens" else set())
    assert preset.modalities.keys() == preset.teachers.keys() == senses
    assert set(preset.students["student"].ensemble.teachers) == senses
    if "audio" in senses:
        audio = preset.modalities["audio"]
        assert (audio.rate_hz, audio.n_fft, audio.window, audio.hop) == (16000, 1024, 160, 80)
        assert audio.shape(16, 224) == (16, 1, 128, 224)


@presets
def test_every_network_takes_a_view_and_has_the_papers_size(preset: Params):
    for name, spec in specs(preset).items():
        with torch.device("meta"):
            network = spec.empty_network()
            output = network(spec.example())
        assert {head: tuple(logits.shape) for head, logits in output.logits.items()} == {
            head: (1, len(classes)) for head, classes in spec.heads.items()
        }
        assert output.moments.shape == (1, 16, WIDTH)
        heads = sum(len(classes) for classes in spec.heads.values()) * (WIDTH + 1)
        assert (count_parameters(network) - heads) / 1e6 == pytest.approx(
            MILLIONS[spec.modality], rel=1e-3
        ), name


@presets
def test_the_student_costs_what_the_baseline_costs(preset: Params):
    costs = []
    for name in ("student baseline", "student student"):
        spec = specs(preset)[name]
        with torch.device("meta"):
            costs.append(gmacs(spec.empty_network(), spec.example()))
    assert costs[0] == costs[1] == pytest.approx(43.9, abs=0.05)


def test_a_student_learns_from_a_view_of_true_size():
    """One clip of 16 frames of 224², and what the preset's method makes of it, on the CPU."""
    preset = load(ROOT / "infra" / "presets" / "epic-kitchens-100.yaml")
    spec = specs(preset)["student student"]
    settled = {"distillation_weight": 0.5, "unlabelled_weight": 0.0}
    method = preset.students["student"].method.model_copy(update=settled)
    torch.manual_seed(0)
    network = spec.empty_network()
    lesson = {head: torch.randn(1, len(classes)).log_softmax(-1) for head, classes in spec.heads.items()}
    with torch.inference_mode():
        output = network(torch.rand(spec.example().shape))
        labels = {head: torch.tensor([1]) for head in spec.heads}
        losses = method.loss(output, Lesson(lesson, torch.tensor([True]), {}), labels, torch.nn.Module(), 0.0)
    ignorant = sum(math.log(len(classes)) / 2 for classes in spec.heads.values())
    told = losses.parts["ground_truth"].item()
    assert told == pytest.approx(0.5 * ignorant, rel=0.2)  # nothing is learnt yet
    assert losses.total.item() > told
