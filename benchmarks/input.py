"""How much of a training step is the input? Views rendered a second against network steps, per teacher.

Run after `make demo`, in the clone's root: `python -m benchmarks.input`. The last column is what counts: seconds
that rendering a view takes over the seconds that forward and backward of one view take, in the same run.
"""

import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tasks.clips import read_clips
from tasks.layout import Workspace
from tasks.params import load
from tasks.shards import Shards
from tasks.train_teacher import teacher_learner
from tasks.views import training_view

CLIPS, BATCH, STEPS = 64, 8, 8


def main() -> None:
    """Print one row a teacher."""
    workspace = Workspace(Path.cwd())
    params = load(workspace.params)
    torch.set_num_threads(params.threads)
    table = Table("teacher", "rendered views/s", "trained views/s", "input / step", "bytes a view")
    clips = read_clips(workspace.index, "train")
    for name, teacher in params.teachers.items():
        learner = teacher_learner(params, workspace, name)
        modality, shards = learner.spec.modality_params, Shards(workspace.modality(teacher.modality))
        seen = [clip for clip, there in zip(clips, learner.seen(clips), strict=True) if there][:CLIPS]
        begin = time.perf_counter()
        for number, clip in enumerate(seen):
            rows = shards.rows(clip.video)
            assert rows is not None
            rendered = modality.render(rows, training_view(clip, params.views, 0, number), params.views.size)
        render_s = (time.perf_counter() - begin) / len(seen)

        network = learner.spec.new_network().train()
        batch = torch.from_numpy(rendered).expand(BATCH, *rendered.shape).clone()
        times = []
        for _ in range(STEPS):
            begin = time.perf_counter()
            output = network(batch)
            sum(logits.sum() for logits in output.logits.values()).backward()
            times.append((time.perf_counter() - begin) / BATCH)
        step_s = sorted(times)[STEPS // 2]
        table.add_row(
            name,
            f"{1 / render_s:.0f}",
            f"{1 / step_s:.0f}",
            f"{render_s / step_s:.2f}",
            f"{rendered.nbytes:,}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
