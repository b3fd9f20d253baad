"""What networks say of clips, kept in the work folder: a report with one model more asks that model alone."""

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

import models.fusion
import models.heads
import models.network
import models.pictures
import models.temporal
import tasks.batches
import tasks.inference
import tasks.modalities.frames
import tasks.modalities.modality
import tasks.networks
import tasks.report.nesting
import tasks.senses
import tasks.shards
import tasks.views
from tasks.atomic import code_digest, digest, file_digest, new_file
from tasks.clips import Clip
from tasks.inference import device, view_logits
from tasks.networks import Committee
from tasks.report.nesting import nesting, view_places
from tasks.senses import SharedShards
from tasks.shards import Shards

Answers = dict[tuple[int, int], dict[str, np.ndarray]]
"""(Clips, crops) → head → logits, float32 (clips, 1, classes), the mean over that many views; not calibrated."""

_ARITHMETIC = ("numpy", "opencv-python-headless", "timm", "torch", "torchvision")
_PRESENT = "present"


def answers(
    folder: Path,
    committee: Committee,
    weights: Path,
    shards: Shards | SharedShards,
    clips: Sequence[Clip],
    counts: Sequence[int],
    crops: Sequence[int],
) -> tuple[Answers, np.ndarray]:
    """What networks say with every number of views, as they said before if nothing changed since.

    Args:
        folder: where answers are kept, each by the digest of all that it depends on.
        committee: the networks; moved to this machine's device where they have to be asked.
        weights: the folder that they are of.
        shards: of their modality.
        clips: any.
        counts: numbers of clips a video, see `view_logits`.
        crops: numbers of crops, likewise.

    Returns:
        the answers; and present, bool (clips,).
    """
    file = folder / f"{_key(committee, weights, shards, clips, counts, crops)}.npz"
    if file.is_file():
        with np.load(file, allow_pickle=False) as kept:
            found = dict(kept)
    else:
        found = _asked(committee, shards, clips, counts, crops)
        with new_file(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **found)  # type: ignore[arg-type]  # its stub takes names for options
    by_views = {
        (count, crop): {head: found[_name(count, crop, head)] for head in committee.spec.heads}
        for count in counts
        for crop in crops
    }
    return by_views, found[_PRESENT]


def _asked(
    committee: Committee,
    shards: Shards | SharedShards,
    clips: Sequence[Clip],
    counts: Sequence[int],
    crops: Sequence[int],
) -> dict[str, np.ndarray]:
    found = {}
    for source, nested in nesting(counts).items():
        logits, found[_PRESENT] = view_logits(committee, shards, clips, source, max(crops))
        for count, crop in ((count, crop) for count in nested for crop in crops):
            places = view_places(source, max(crops), count, crop)
            for head, values in logits.items():
                mean = torch.from_numpy(values[:, places]).mean(dim=1, keepdim=True)
                found[_name(count, crop, head)] = mean.numpy()
    return found


def _name(count: int, crop: int, head: str) -> str:
    return f"{count}x{crop}/{head}"


def _key(
    committee: Committee,
    weights: Path,
    shards: Shards | SharedShards,
    clips: Sequence[Clip],
    counts: Sequence[int],
    crops: Sequence[int],
) -> str:
    """Names everything that answers depend on."""
    return digest(
        code_digest(
            *committee.spec.code,
            models.fusion,
            models.heads,
            models.network,
            models.pictures,
            models.temporal,
            sys.modules[__name__],
            tasks.batches,
            tasks.inference,
            tasks.modalities.frames,
            tasks.modalities.modality,
            tasks.networks,
            tasks.report.nesting,
            tasks.senses,
            tasks.shards,
            tasks.views,
        ),
        {name: version(name) for name in _ARITHMETIC},
        device().type,
        {file.name: file_digest(file) for file in sorted(weights.iterdir())},
        shards.digest,
        [(clip.clip_id, clip.video, clip.start_s, clip.stop_s) for clip in clips],
        sorted(counts),
        sorted(crops),
    )
