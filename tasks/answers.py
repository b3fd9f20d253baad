"""What networks say of clips, kept in the work folder: a report with one model more asks that model alone."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save

import tasks.report.nesting
from tasks.atomic import code_digest, digest, file_digest, new_file
from tasks.clips import Clip
from tasks.inference import code_of_answers, device, view_logits
from tasks.networks import Committee
from tasks.report.nesting import nesting, view_places
from tasks.senses import SharedShards
from tasks.shards import Shards

Answers = dict[tuple[int, int], dict[str, np.ndarray]]
"""(Clips, crops) → head → logits, float32 (clips, 1, classes), the mean over that many views; not calibrated."""

_PRESENT = "present"


@dataclass(frozen=True)
class Question:
    """What is asked of networks.

    Attributes:
        committee: the networks; moved to this machine's device where they have to be asked.
        weights: the folder that they are of.
        shards: of their modality.
        clips: any.
        counts: numbers of clips a video, see `view_logits`.
        crops: numbers of crops, likewise.
    """

    committee: Committee
    weights: Path
    shards: Shards | SharedShards
    clips: Sequence[Clip]
    counts: Sequence[int]
    crops: Sequence[int]

    def answered(self, folder: Path) -> tuple[Answers, np.ndarray]:
        """What they say with every number of views, as they said before if nothing changed since.

        Args:
            folder: where answers are kept, each by the digest of all that it depends on.

        Returns:
            the answers; and present, bool (clips,).
        """
        file = folder / f"{self._key()}.safetensors"
        if file.is_file():
            found = load_file(file)
        else:
            found = self._ask()
            with new_file(file) as temporary:
                temporary.write_bytes(save(found))
        by_views = {
            (count, crop): {head: found[_name(count, crop, head)] for head in self.committee.spec.heads}
            for count in self.counts
            for crop in self.crops
        }
        return by_views, found[_PRESENT]

    def _ask(self) -> dict[str, np.ndarray]:
        found, most = {}, max(self.crops)
        for source, nested in nesting(self.counts).items():
            logits, found[_PRESENT] = view_logits(self.committee, self.shards, self.clips, source, most)
            for count, crop in ((count, crop) for count in nested for crop in self.crops):
                places = view_places(source, most, count, crop)
                for head, values in logits.items():
                    mean = torch.from_numpy(values[:, places]).mean(dim=1, keepdim=True)
                    found[_name(count, crop, head)] = mean.numpy()
        return found

    def _key(self) -> str:
        """Names everything that the answers depend on."""
        return digest(
            code_of_answers(self.committee.spec),
            code_digest(sys.modules[__name__], tasks.report.nesting),
            device().type,
            {file.name: file_digest(file) for file in sorted(self.weights.iterdir())},
            self.shards.digest,
            [(clip.clip_id, clip.video, clip.start_s, clip.stop_s) for clip in self.clips],
            sorted(self.counts),
            sorted(self.crops),
        )


def _name(count: int, crop: int, head: str) -> str:
    return f"{count}x{crop}/{head}"
