"""What trained networks say of clips."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import torch

import models.fusion
import models.heads
import models.network
import models.pictures
import models.temporal
import tasks.batches
import tasks.modalities.frames
import tasks.modalities.modality
import tasks.networks
import tasks.senses
import tasks.shards
import tasks.views
from tasks import ranks
from tasks.atomic import code_digest, digest
from tasks.batches import batches, chunks, present
from tasks.clips import Clip
from tasks.errors import UserError
from tasks.gathering import summed
from tasks.networks import Committee, Spec
from tasks.senses import SharedShards
from tasks.settings import settings
from tasks.shards import Shards
from tasks.views import View, evaluation_views, training_view

if TYPE_CHECKING:
    from tasks.progress import Progress

_ARITHMETIC = ("numpy", "opencv-python-headless", "timm", "torch", "torchvision")


def device() -> torch.device:
    """Where networks run on this machine, by settings; of several ranks each has a GPU of its own.

    Raises:
        UserError: the settings name a device that torch does not know, this machine does not have or torch has no code
            for, or one GPU for several ranks.
    """
    name = settings().device
    if name.startswith("cuda:") and ranks.count() > 1:
        raise UserError(
            f"UNDERSTUDY_DEVICE is {name!r}, but a training has {ranks.count()} devices",
            remedy="set it to cuda; CUDA_VISIBLE_DEVICES chooses among GPUs",
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and ranks.count() > 1:
        if torch.cuda.device_count() < ranks.count():
            raise UserError(
                f"a training has {ranks.count()} devices, but there are {torch.cuda.device_count()} GPUs",
                remedy="lower its `devices`, or let it see more GPUs (CUDA_VISIBLE_DEVICES)",
            )
        name = f"cuda:{ranks.rank()}"
    try:
        there = torch.device(name)
        torch.zeros(1, device=there).add_(1)  # memory alone can be had of a GPU that torch has no code for
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without the device
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"UNDERSTUDY_DEVICE is {name!r}: {str(error).splitlines()[0]}",
            remedy="set it to auto or cpu; cuda needs a GPU and its driver (infra/README.md says which)",
        ) from None
    return there


def code_of_answers(spec: Spec) -> str:
    """Names the code and the libraries that decide what networks of `spec` make of a clip."""
    return digest(
        code_digest(
            *spec.code,
            models.fusion,
            models.heads,
            models.network,
            models.pictures,
            models.temporal,
            sys.modules[__name__],
            tasks.batches,
            tasks.modalities.frames,
            tasks.modalities.modality,
            tasks.networks,
            tasks.senses,
            tasks.shards,
            tasks.views,
        ),
        {name: version(name) for name in _ARITHMETIC},
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that the memory of a GPU is full."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    # Of memory that torch does not hand out itself: a process's first, and that of libraries.
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    )


def is_gpu_failure(error: BaseException) -> bool:
    """Whether the error says that a GPU, its driver or the way to it failed, which another GPU may be spared.

    But an assertion in a kernel is a defect of ours, as a class that is none, and fails everywhere.
    """
    return (
        isinstance(error, RuntimeError)
        and any(
            words in str(error)
            for words in (
                "CUDA error",
                "CUDNN_STATUS_EXECUTION_FAILED",
                "CUDNN_STATUS_MAPPING_ERROR",
                "NCCL error",
            )
        )
        and "device-side assert" not in str(error)
        and not is_out_of_memory(error)
    )


def view_logits(
    committee: Committee,
    shards: Shards | SharedShards,
    clips: Sequence[Clip],
    clips_per_video: int,
    crops: int,
    batch: int = 32,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Logits of the test views of every clip.

    Args:
        committee: the networks; moved to this machine's device.
        shards: their modality.
        clips: any clips.
        clips_per_video: interleaved temporal views of a clip.
        crops: spatial views of each.
        batch: views a forward pass.

    Returns:
        head → float32 (clips, clips_per_video · crops, classes), not calibrated, zeros where the clip lacks
        the modality; and present, bool (clips,).
    """
    spec = committee.spec
    views = [evaluation_views(clip, spec.views, clips_per_video, crops) for clip in clips]
    by_name = {clip.clip_id: chosen for clip, chosen in zip(clips, views, strict=True)}
    return _logits(
        committee, shards, clips, clips_per_video * crops, lambda clip, n: by_name[clip.clip_id][n], batch
    )


def training_view_logits(
    committee: Committee,
    shards: Shards | SharedShards,
    clips: Sequence[Clip],
    seed: int,
    batch: int = 32,
    moments: np.ndarray | None = None,
    features: np.ndarray | None = None,
    beside: Mapping[str, dict[str, np.ndarray]] | None = None,
    title: str = "",
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Logits of the training views that the epochs of a training with `seed` cycle through.

    Args:
        committee, shards, clips, batch: as for `view_logits`.
        seed: of the training.
        moments: (clips, views.per_clip, views.frames, width of the backbone), zeros, to be filled with the features
            that the first network of the committee has of every moment; where the modality shows several a frame,
            with their mean.
        features: (clips, views.per_clip, width), likewise of the clip features.
        beside: name → head → (clips, views.per_clip, classes), zeros, to be filled with the logits of those who speak
            beside a network.
        title: under which progress is shown; empty: none is.

    Returns:
        as `view_logits`, with `views.per_clip` views.
    """
    views = committee.spec.views
    return _logits(
        committee,
        shards,
        clips,
        views.per_clip,
        lambda clip, n: training_view(clip, views, seed, n),
        batch,
        seed,
        moments,
        features,
        beside,
        title,
    )


def _logits(
    committee: Committee,
    shards: Shards | SharedShards,
    clips: Sequence[Clip],
    count: int,
    view: Callable[[Clip, int], View],
    batch: int,
    seed: int | None = None,
    moments: np.ndarray | None = None,
    features: np.ndarray | None = None,
    beside: Mapping[str, dict[str, np.ndarray]] | None = None,
    title: str = "",
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    spec, there = committee.spec, device()
    committee.to(there)
    seen = present(spec.modality_params, shards, clips)
    filled = {
        head: np.zeros((len(clips), count, len(classes)), np.float32) for head, classes in spec.heads.items()
    }
    places = [(int(row), number) for row in np.flatnonzero(seen) for number in range(count)]
    mine = ranks.share(chunks(places, batch))
    shown = batches(spec.modality_params, shards, clips, spec.views.size, mine, view, seed)
    with _progress(title, sum(map(len, mine))) as progress:
        for rendered in shown:
            output = committee.output(rendered.to(there).inputs)
            said = [(filled, output.logits)]
            if beside and output.beside:
                said += [(beside[name], word.logits) for name, word in output.beside.items()]
            for arrays, logits in said:
                for head, values in logits.items():
                    arrays[head][rendered.rows, rendered.numbers] = values.float().cpu().numpy()
            if moments is not None:
                of_frames = output.moments.float().unflatten(1, (spec.views.frames, -1)).mean(2)
                moments[rendered.rows, rendered.numbers] = of_frames.cpu().numpy()
            if features is not None:
                features[rendered.rows, rendered.numbers] = output.features.float().cpu().numpy()
            if progress is not None:
                progress.advance(len(rendered.rows))
    of_others = [array for arrays in (beside or {}).values() for array in arrays.values()]
    for array in (*filled.values(), *of_others, moments, features):
        if array is not None:
            summed(array)  # of the ranks, each of which saw other batches
    return filled, seen


def _progress(title: str, views: int) -> "AbstractContextManager[Progress | None]":
    """Progress over so many views; none without a title.

    A served model, which shows none, does without the library that draws it.
    """
    if not title:
        return nullcontext()
    from tasks.progress import Progress

    return Progress(title, views, "views")
