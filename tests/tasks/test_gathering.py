"""Two ranks make what one process makes: weights after every method, batch statistics, predictions of every clip.

Run as a script, this file is the two ranks: real processes, joined by gloo, which leave what they made in a folder.
Trainings are in double precision, where nothing but the order of sums differs.
"""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed import TCPStore

from models.backbones.frames import Frames
from models.backbones.stlt import STLT
from models.distill.hints import Hints
from models.distill.kd import KD
from models.distill.method import Hint, HintShape, Lesson, Method
from models.distill.mst import MST, Joint, Together
from models.distill.rkd import RKD
from models.distill.supervised import Supervised
from models.fusion import FusedNetwork, LateFusion, Sights
from models.heads import Heads
from models.network import Network, Word, build
from tasks import inference, ranks
from tasks.batches import Batch, batches
from tasks.gathering import partly
from tasks.layout import Workspace
from tasks.networks import Committee
from tasks.params import Params, Training
from tasks.train_teacher import teacher_learner
from tasks.training import Course, fit

ROOT = Path(__file__).parents[2]
CLIPS, CLASSES, FRAMES = 13, 3, 4
TRAINING = Training(
    epochs=2,
    batch=4,  # batches of 5, 4 and 4 clips: shares of 2 and 3
    learning_rate=0.01,
    weight_decay=0.05,
    warmup_epochs=1,
    decay="cosine",
    clip_norm=1.0,
    ema=0.9,
    precision="float32",
    devices=2,
)
BOXES = STLT(
    kind="stlt", width=16, spatial_layers=1, temporal_layers=1, attention_heads=2, max_frames=4, dropout=0.0
)
PICTURES = Frames(
    kind="frames",
    name="test_resnet",
    pretrained=False,
    temporal="conv",
    normalise="none",
    dropout=0.0,
    drop_path=0.0,
)
TAUGHT: dict[str, Any] = {
    "temperature": 2.0,
    "divergence": "forward_kl",
    "distillation_weight": 0.5,
    "ground_truth_weight": 0.5,
    "unlabelled_weight": 1.0,
    "head_weights": None,
}
BY_LABELS = Supervised(kind="supervised", head_weights=None, label_smoothing=0.1)
GATED = MST(
    kind="mst",
    temperature=2.0,
    top_k=1,
    distillation_weight=1.0,
    balance_weight=1.0,
    gate_weight=1.0,
    gate_temperature=0.5,
    gate_width=8,
    head_weights=None,
).routed(["a", "b", "c"], {"action": CLASSES})


class Scenario(NamedTuple):
    """A training: what it sees, by which network, and how it learns."""

    inputs: Any
    network: Callable[[], Network]
    method: Method
    dtype: torch.dtype = torch.float64
    training: Training = TRAINING


def draw(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(len(shape)))


def boxes() -> torch.Tensor:
    drawn = draw(CLIPS, FRAMES, 3, 8)
    drawn[..., 5:] = drawn[..., 5:].mul(2).round()
    return drawn


def pictures() -> torch.Tensor:
    return draw(CLIPS, FRAMES, 3, 32, 32)


def sights(rare: str) -> Sights:
    """Two clips of thirteen have the modality `rare`, so that a rank, or both, often see none; all have the other."""
    present = {name: torch.ones(CLIPS, dtype=torch.bool) for name in ("boxes", "pictures")}
    present[rare][[number for number in range(CLIPS) if number not in (2, 9)]] = False
    return Sights({"boxes": boxes(), "pictures": pictures()}, present)


def fused() -> Network:
    branches = {"boxes": BOXES, "pictures": PICTURES}
    spec = LateFusion(kind="fused", branches=branches, head="joint", dropout=0.0, modality_dropout=0.0)
    return build(spec, {"boxes": 8, "pictures": 3}, {"action": CLASSES})


def two_sets() -> Sights:
    """Boxes twice over, the second of two clips alone, so that one rank sees some where the other sees none."""
    present = {name: torch.ones(CLIPS, dtype=torch.bool) for name in ("boxes", "others")}
    present["others"][[number for number in range(CLIPS) if number not in (2, 9)]] = False
    return Sights({"boxes": boxes(), "others": boxes().flip(0)}, present)


class OneLayer(nn.Module):
    """Features in bfloat16 under autocast; where no clip has the modality, zeros in float32 stand for them."""

    width = 16

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, self.width)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        moments = self.layer(x.mean(2))
        return moments.mean(1), moments


def fused_layers() -> Network:
    fused = FusedNetwork({"others": OneLayer(), "boxes": OneLayer()}, modality_dropout=0.0)
    return Network(fused, Heads(fused.width, {"action": CLASSES}, 0.0))


def small() -> Network:
    return build(BOXES, 8, {"action": CLASSES})


def together() -> Network:
    """A student of boxes, with a fused teacher and one of pictures."""
    seeing = build(PICTURES, 3, {"action": CLASSES})
    return Together(small(), {"all": fused(), "eyes": seeing}, {"all": None, "eyes": "pictures"}, "boxes")


SCENARIOS: dict[str, Callable[[], Scenario]] = {
    "supervised": lambda: Scenario(boxes(), small, BY_LABELS),
    "single precision": lambda: Scenario(boxes(), small, BY_LABELS, torch.float32),
    "kd": lambda: Scenario(boxes(), small, KD(kind="kd", **TAUGHT)),
    "rkd": lambda: Scenario(boxes(), small, RKD(kind="rkd", distance_weight=5.0, angle_weight=5.0, **TAUGHT)),
    "hints": lambda: Scenario(boxes(), small, Hints(kind="hints", hint_weight=1.0, **TAUGHT)),
    "mst": lambda: Scenario(boxes(), small, GATED),
    "batch norm": lambda: Scenario(pictures(), lambda: build(PICTURES, 3, {"action": CLASSES}), BY_LABELS),
    "rare pictures": lambda: Scenario(sights("pictures"), fused, BY_LABELS),
    "rare boxes": lambda: Scenario(sights("boxes"), fused, BY_LABELS),
    # Without convolutions, which processors may compute wrongly in bfloat16 (`tasks.precision`).
    "half precision": lambda: Scenario(
        two_sets(),
        fused_layers,
        BY_LABELS,
        torch.float32,
        TRAINING.model_copy(update={"precision": "bfloat16"}),
    ),
    "mst_joint": lambda: Scenario(sights("pictures"), together, Joint(kind="mst_joint", temperature=2.0)),
}


def trained(scenario: Scenario, folder: Path) -> dict[str, Any]:
    """Train it as however many ranks there are: weights and the losses of every epoch."""
    dtype = scenario.dtype
    labels = torch.arange(CLIPS) % CLASSES
    logits = {name: draw(CLIPS, CLASSES).to(dtype).roll(shift, 0) for shift, name in enumerate("abc")}
    hints = draw(CLIPS, FRAMES, 6).to(dtype)
    member, seen = torch.arange(CLIPS) % 2, torch.arange(CLIPS) % 5 != 0

    def cut(inputs: Any, rows: torch.Tensor) -> Any:
        if isinstance(inputs, Sights):
            return Sights(
                {name: cut(values, rows) for name, values in inputs.inputs.items()},
                {name: values[rows] for name, values in inputs.present.items()},
            )
        return inputs[rows].to(dtype)

    def shown(places: Any) -> Any:
        for place in places:
            rows = torch.tensor([row for row, _ in place])
            yield Batch(cut(scenario.inputs, rows), rows, torch.tensor([number for _, number in place]))

    def objective(output: Any, batch: Batch, progress: float) -> Any:
        rows = batch.rows
        lesson = Lesson(
            {"action": logits["a"][rows].log_softmax(-1)},
            seen[rows],
            {"eyes": Hint(hints[rows], member[rows], seen[rows])},
            teachers={name: Word({"action": values[rows]}, seen[rows]) for name, values in logits.items()},
        )
        return scenario.method.loss(output, lesson, {"action": labels[rows]}, companion, progress)

    torch.manual_seed(7)
    network = scenario.network().to(dtype)
    width = int(network.backbone.width)  # type: ignore[arg-type]
    companion = scenario.method.companion(width, {"eyes": HintShape(2, 6)}).to(dtype)
    course = Course(
        "test",
        scenario.training,
        3,
        CLIPS,
        CLIPS,
        shown,
        objective,
        scenario.method.needs_hints,
        companion,
        lambda network: {},
        folder / f"{scenario.method.kind}.pt",
        lambda _: None,
        lambda figures: None,
    )
    network, history = fit(network, course)
    losses = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in history]
    return {"weights": network.state_dict(), "companion": companion.state_dict(), "losses": losses}


def asked(root: Path) -> dict[str, Any]:
    """What a network says of clips, an odd number, in batches of two views; and which views were rendered here."""
    params = Params.model_validate(json.loads((root / "params.json").read_text(encoding="utf-8")))
    learner = teacher_learner(params, Workspace(root), "boxes")
    torch.manual_seed(5)
    network = learner.spec.new_network()
    network.register_forward_hook(
        lambda _, __, output: output._replace(beside={"echo": Word(output.logits, torch.ones(0))})
    )
    committee = Committee(learner.spec, [network], {})
    rendered = []

    def counted(*arguments: Any) -> Any:
        for batch in batches(*arguments):
            rendered.extend(zip(batch.rows.tolist(), batch.numbers.tolist(), strict=True))
            yield batch

    clips = learner.validation
    moments = np.zeros((len(clips), 2, 4, 16), np.float32)
    features = np.zeros((len(clips), 2, 16), np.float16)
    echo = {head: np.zeros((len(clips), 2, len(of)), np.float32) for head, of in learner.spec.heads.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "batches", counted)
        said, seen = inference.training_view_logits(
            committee,
            learner.shards,
            clips,
            0,
            batch=3,
            moments=moments,
            features=features,
            beside={"echo": echo},
        )
    found = {"seen": seen, "moments": moments, "features": features}
    return {
        "said": {head: torch.from_numpy(values) for head, values in said.items()},
        "echo": {head: torch.from_numpy(values) for head, values in echo.items()},
        **{name: torch.from_numpy(values) for name, values in found.items()},
        "rendered": rendered,
    }


def normalised(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What a batch normalisation makes of this rank's share of a batch far from zero, and its gradients."""
    whole, above = 50 + 2 * draw(5, 4, 3, 3), draw(5, 4, 3, 3).flip(0)
    sizes = ranks.shares(len(whole))
    begin = sum(sizes[: ranks.rank()])
    own = slice(begin, begin + sizes[ranks.rank()])
    layer, x = nn.BatchNorm2d(4), whole[own].to(dtype).requires_grad_()
    with partly(layer):
        y = layer(x)
    y.backward(above[own].to(dtype))
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert layer.running_var is not None
    return {"y": y.detach(), "x": x.grad, "weight": layer.weight.grad, "variance": layer.running_var}


PRECISIONS = {"float32": (torch.float32, 2e-5), "bfloat16": (torch.bfloat16, 3e-2)}
"""Each with how far from one process two ranks may be."""


def be(rank: int, port: int, root: Path) -> None:
    """One of two ranks: do everything and leave it in `root`."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    torch.set_num_threads(1)
    with ranks.joined(torch.device("cpu")):
        made: dict[str, Any] = {
            name: trained(make(), root / name.replace(" ", "_")) for name, make in SCENARIOS.items()
        }
        made |= {f"normalised {name}": normalised(dtype) for name, (dtype, _) in PRECISIONS.items()}
        made["asked"] = asked(root)
        torch.save(made, root / f"{rank}.pt")


@pytest.fixture(scope="module")
def root(
    tmp_path_factory: pytest.TempPathFactory, drawn_workspace: Any, small_params: dict[str, Any]
) -> Path:
    folder: Path = tmp_path_factory.mktemp("ranks")
    drawn_workspace(folder)
    (folder / "params.json").write_text(json.dumps(small_params))
    return folder


@pytest.fixture(scope="module")
def by_two(root: Path) -> list[dict[str, Any]]:
    """What each rank made."""
    subprocess.run(
        [sys.executable, __file__, str(root)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        timeout=300,
    )
    return [torch.load(root / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture
def by_one(tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    return lambda name: trained(SCENARIOS[name](), tmp_path)


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in weights.values()])


CLOSE = {"single precision": (3e-3, 1e-4), "half precision": (1e-2, 1e-2)}
"""How far weights and losses may be from those of one process, where it is not double precision: AdamW takes a whole
step by a gradient that is rounding alone."""


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_ranks_end_in_the_weights_of_one_process(
    name: str, by_two: list[dict[str, Any]], by_one: Callable[[str], dict[str, Any]]
) -> None:
    alone, ours = by_one(name), by_two[0][name]
    assert alone["weights"].keys() == ours["weights"].keys()
    close, near = CLOSE.get(name, (1e-9, 1e-9))
    for part in ("weights", "companion"):
        if alone[part]:
            torch.testing.assert_close(flat(ours[part]), flat(alone[part]), rtol=0, atol=close)
    for one, two in zip(alone["losses"], ours["losses"], strict=True):
        assert two == pytest.approx(one, rel=near)


@pytest.mark.parametrize("name", PRECISIONS)
def test_batch_normalisation_is_that_of_the_whole_batch(name: str, by_two: list[dict[str, Any]]) -> None:
    dtype, close = PRECISIONS[name]
    alone, (one, two) = normalised(dtype), (made[f"normalised {name}"] for made in by_two)
    together = {part: torch.cat([one[part], two[part]]) for part in ("y", "x")}
    together["weight"] = one["weight"] + two["weight"]
    assert torch.equal(one["variance"], two["variance"])
    together["variance"] = one["variance"]
    for part, value in alone.items():
        torch.testing.assert_close(together[part], value, rtol=close, atol=close)


@pytest.mark.parametrize("name", SCENARIOS)
def test_ranks_stay_equal_to_the_bit(name: str, by_two: list[dict[str, Any]]) -> None:
    first, second = (made[name] for made in by_two)
    for part in ("weights", "companion"):
        assert all(torch.equal(value, second[part][key]) for key, value in first[part].items())
    assert first["losses"] == second["losses"]


def test_the_first_rank_alone_keeps_a_checkpoint(root: Path, by_two: list[dict[str, Any]]) -> None:
    assert [file.name for file in (root / "supervised").iterdir()] == ["supervised.pt"]


def test_every_view_of_an_odd_number_of_clips_is_seen_once(root: Path, by_two: list[dict[str, Any]]) -> None:
    alone = asked(root)
    assert len(alone["said"]["verb"]) % 2 == 1
    shares = [made["asked"]["rendered"] for made in by_two]
    assert all(shares)
    assert sorted(shares[0] + shares[1]) == sorted(alone["rendered"]) == sorted(set(alone["rendered"]))
    for made in by_two:
        for head, values in alone["said"].items():
            assert torch.equal(made["asked"]["said"][head], values)
            assert torch.equal(made["asked"]["echo"][head], values)
        for name in ("seen", "moments", "features"):
            assert torch.equal(made["asked"][name], alone[name])


def test_alone_there_is_no_process_group(by_one: Callable[[str], dict[str, Any]]) -> None:
    by_one("supervised")
    assert not torch.distributed.is_initialized()
    assert (ranks.count(), ranks.is_first()) == (1, True)


if __name__ == "__main__":
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    fork = multiprocessing.get_context("fork")
    pair = [fork.Process(target=be, args=(rank, store.port, Path(sys.argv[1]))) for rank in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join()
    sys.exit(any(process.exitcode for process in pair))
