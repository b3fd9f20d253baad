"""What does a clip cost in each form, and a video in batch prediction? One run, so the ratios are comparable.

Run after `make demo`, in the clone's root: `python -m benchmarks.predict [FOLDER]`; its videos are data/raw/videos
unless named. The first table is the network alone, on one CPU thread; `pyfunc` is the registered champion asked for a
decoded clip, with all that MLflow does around it. The second is `understudy predict` from files, decoding included.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from tasks.export import differences, forms, latency_ms, shown_clips
from tasks.layout import Workspace
from tasks.predict import identify, looks_at
from tasks.predictions_file import find, write
from tasks.settings import settings
from tasks.stores import tracking

REPEATS = 100
BATCHES = (1, 16)
VIDEOS = 64


def main(arguments: list[str]) -> None:
    """Print both tables."""
    workspace = Workspace(Path.cwd())
    torch.set_num_threads(1)
    table = Table("form", "ms a clip", "against torch", "largest difference")
    student = identify(str(workspace.release))
    clips = shown_clips(student.committee.spec, workspace, REPEATS)
    found = latency_ms(workspace.release, REPEATS) | {"pyfunc": _pyfunc_ms(workspace)}
    apart = differences(workspace.release, clips)
    for name, value in found.items():
        difference = f"{apart[name]:.0e}" if name in apart else ""
        table.add_row(name, f"{value:.2f}", f"{value / found['torch']:.2f}", difference)
    Console().print(table)

    table = Table("clips at once", *forms(workspace.release), title="clips a second")
    for batch in BATCHES:
        table.add_row(
            str(batch), *(f"{_rate(form, clips[:batch]):.0f}" for form in forms(workspace.release).values())
        )
    Console().print(table)

    videos = find(arguments or [str(workspace.raw / "videos")])[:VIDEOS]
    table = Table(
        "batch", "videos/s", title=f"understudy predict, {len(videos)} videos, {settings().slots} slots"
    )
    for batch in BATCHES:
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            write(videos, student, Path(folder, "said.parquet"), batch, 3, None)
            table.add_row(str(batch), f"{len(videos) / (time.perf_counter() - begin):.1f}")
    Console().print(table)


def _pyfunc_ms(workspace: Workspace) -> float:
    """Median milliseconds for a decoded clip, as large as the views, by the champion."""
    import mlflow

    with tracking.addressed(workspace):
        model = mlflow.pyfunc.load_model("models:/understudy-student@champion")
    spec = identify(str(workspace.release)).committee.spec
    rgb = looks_at(spec)
    frames = np.zeros((round(2 * rgb.rate_hz), rgb.short_side, rgb.short_side, 3), np.uint8)
    request = pd.DataFrame({"clip": [frames], "rate_hz": [rgb.rate_hz]})
    times_ms = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        model.predict(request)
        times_ms.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times_ms[1:])


@torch.no_grad()
def _rate(form, clips) -> float:  # type: ignore[no-untyped-def]
    times_s = []
    for _ in range(20):
        begin = time.perf_counter()
        form(clips)
        times_s.append(time.perf_counter() - begin)
    return len(clips) / statistics.median(times_s)


if __name__ == "__main__":
    main(sys.argv[1:])
