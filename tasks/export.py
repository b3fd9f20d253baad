"""The student that ships, in forms that other programs run: torch.export (pt2) and ONNX, checked against torch.

Both take what RGB renders, float32 (batch, frames, channels, size, size), and give for each head its calibrated
probabilities, (batch, classes): the temperature is inside. They hold neither pickles nor paths of the machine that
wrote them, and the same network gives the same bytes.
"""

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from models.calibration import apply
from tasks.atomic import write_json
from tasks.clips import read_clips
from tasks.errors import UserError
from tasks.layout import Workspace
from tasks.networks import Committee, Spec
from tasks.params import Parity
from tasks.predict import looks_at, refuse_pickles
from tasks.shards import Shards
from tasks.views import evaluation_views

PT2, ONNX, PARITY = "student.pt2", "student.onnx", "parity.json"
"""The files in the release."""
INPUT = "clips"
"""The name of the input."""

Form = Callable[[Tensor], Mapping[str, Tensor]]
"""Clips as RGB renders them, float32 on the CPU → head → calibrated probabilities."""


class Calibrated(nn.Module):
    """A committee as one network that gives calibrated probabilities.

    Args:
        committee: on the CPU.
    """

    def __init__(self, committee: Committee):
        super().__init__()
        self.members = nn.ModuleList(committee.members)
        self.temperature = {head: committee.temperature[head] for head in committee.spec.heads}

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """Head → probabilities (batch, classes) of clips (batch, frames, channels, height, width)."""
        said = [member(clips).logits for member in self.members]
        return {
            head: apply(torch.stack([logits[head] for logits in said]).mean(0), temperature).softmax(-1)
            for head, temperature in self.temperature.items()
        }


def export(release: Path, params: Parity, workspace: Workspace) -> dict[str, Any]:
    """Write student.pt2, student.onnx and parity.json beside the network in `release`; give what parity.json holds.

    Args:
        release: the folder of a committee.
        params: on how many test views the forms must agree with torch, and how well.
        workspace: has the test split and its RGB.

    Raises:
        UserError: a form says something else than torch.
    """
    committee = Committee.load(release)
    write(committee, release)
    clips = shown_clips(committee.spec, workspace, params.clips)
    found = {name: _rounded_up(value) for name, value in differences(release, clips).items()}
    wrong = [f"{name} by {value:.1g}" for name, value in found.items() if not value <= params.tolerance]
    if wrong:
        raise UserError(
            f"the exported student differs from torch on {len(clips)} test views: {', '.join(wrong)} "
            f"(register.parity.tolerance is {params.tolerance:g})",
            file=release,
            remedy="choose a backbone that exports, or raise the tolerance if this difference does no harm",
        )
    parity = {
        "forms": {name: {"max_abs_diff": value} for name, value in found.items()},
        "tolerance": params.tolerance,
        "clips": len(clips),
    }
    write_json(release / PARITY, parity)
    return parity


def write(committee: Committee, folder: Path) -> None:
    """Write student.pt2 and student.onnx of a committee that looks at RGB into `folder`."""
    spec = committee.spec
    example = torch.zeros(2, *looks_at(spec).shape(spec.views.frames, spec.views.size))
    with torch.no_grad():
        program = torch.export.export(
            Calibrated(committee).eval(), (example,), dynamic_shapes=({0: Dim("batch")},)
        )
    _forget_where(program)
    _write_onnx(program, list(spec.heads), folder / ONNX)
    program.example_inputs = None  # they would be pickled into the archive
    with warnings.catch_warnings():
        # Weights that lie pixel by pixel are stored as they lie.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(program, folder / PT2)


def _forget_where(program: ExportedProgram) -> None:
    """Take the lines of code that made its nodes out of a program: they name files of this machine."""
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
                node.meta.pop(key, None)


def _write_onnx(program: ExportedProgram, heads: list[str], file: Path) -> None:
    exported = torch.onnx.export(
        program.run_decompositions({torch.ops.aten.mean.dim: _mean}),
        input_names=[INPUT],
        output_names=heads,
        external_data=False,
        verbose=False,
    )
    assert exported is not None
    proto = exported.model_proto
    del proto.metadata_props[:]
    for node in (*proto.graph.node, *(node for function in proto.functions for node in function.node)):
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer):
        del value.metadata_props[:]
    file.write_bytes(proto.SerializeToString(deterministic=True))


def _mean(x: Tensor, dims: list[int], keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """The mean over one dimension after the other, as aten.mean.dim.

    onnxruntime adds up all dimensions in one float32: over the 25,000 pixels of a clip that costs four digits, and
    moved probabilities by 2e-4.
    """
    assert dtype is None
    axes = sorted((axis % x.ndim for axis in dims), reverse=True)
    for axis in axes:
        x = x.sum(dim=axis, keepdim=True) / x.shape[axis]
    return x if keepdim else x.squeeze(axes)


def forms(release: Path) -> dict[str, Form]:
    """The student of a release in all its forms: torch (from safetensors), pt2, onnx; each on one CPU thread.

    `torch.export.load` trusts what it reads: give it only what this machine wrote or checked.

    Raises:
        UserError: there is a file that may be a pickle.
    """
    import onnxruntime

    refuse_pickles(release, str(release))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(release / ONNX, options, providers=["CPUExecutionProvider"])
    heads = [output.name for output in session.get_outputs()]

    def onnx(clips: Tensor) -> dict[str, Tensor]:
        said = session.run(heads, {INPUT: clips.numpy()})
        return {head: torch.from_numpy(np.asarray(probs)) for head, probs in zip(heads, said, strict=True)}

    return {
        "torch": Calibrated(Committee.load(release)).eval(),
        "pt2": torch.export.load(release / PT2).module(),
        "onnx": onnx,
    }


@torch.no_grad()
def differences(release: Path, clips: Tensor) -> dict[str, float]:
    """For each form but torch the largest difference of a probability from torch's.

    Args:
        release: as for `forms`.
        clips: two or more; shown in one batch and, the first, alone.
    """
    run = forms(release)
    found = dict.fromkeys(run.keys() - {"torch"}, 0.0)
    for batch in (clips, clips[:1]):
        expected = run["torch"](batch)
        for name in sorted(found):
            said = run[name](batch)
            apart = [(said[head] - probs).abs().max().item() for head, probs in expected.items()]
            # Not Python's `max`, by which 0 is more than what is not a number.
            found[name] = float(np.max([found[name], *apart]))
    return {name: found[name] for name in ("pt2", "onnx")}


@torch.no_grad()
def latency_ms(release: Path, repeats: int) -> dict[str, float]:
    """Milliseconds that each form takes for one clip on one CPU thread, median over `repeats` after one to warm up.

    Args:
        release: as for `forms`.
        repeats: clips, the forms taking turns.
    """
    spec = Committee.load(release).spec
    clip = torch.zeros(1, *looks_at(spec).shape(spec.views.frames, spec.views.size))
    run = forms(release)
    times_ms: dict[str, list[float]] = {name: [] for name in run}
    with _one_thread():
        for _ in range(repeats + 1):
            for name, form in run.items():
                begin = time.perf_counter()
                form(clip)
                times_ms[name].append(1000 * (time.perf_counter() - begin))
    return {name: statistics.median(values[1:]) for name, values in times_ms.items()}


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def shown_clips(spec: Spec, workspace: Workspace, count: int) -> Tensor:
    """Views of `count` test clips, evenly chosen, float32 (count, frames, channels, size, size).

    Raises:
        UserError: the split has no clip, or the shards are not there.
    """
    rgb = looks_at(spec)
    try:
        shards = Shards(workspace.modality(spec.modality))
    except FileNotFoundError as error:
        raise UserError("not found", file=error.filename, remedy="run `dvc repro` or `dvc pull`") from None
    clips = [
        clip for clip in read_clips(workspace.index, "test") if rgb.covers(shards.rows(clip.video), clip)
    ]
    if not clips:
        raise UserError("no test clip has RGB", file=workspace.index / "clips.csv")
    places = np.unique(np.linspace(0, len(clips) - 1, count).round().astype(int))
    shown = []
    for clip in (clips[place] for place in places):
        rows = shards.rows(clip.video)
        assert rows is not None
        (view,) = evaluation_views(clip, spec.views)
        shown.append(rgb.render(rows, view, spec.views.size))
    return torch.from_numpy(np.stack(shown))


def _rounded_up(value: float) -> float:
    """`value` to one significant digit, never less: the last bits differ from machine to machine."""
    if not value or not math.isfinite(value):
        return value
    unit = 10.0 ** math.floor(math.log10(value))
    return float(f"{math.ceil(value / unit) * unit:.0e}")
