"""Stage `extract@<modality>`: raw videos in, a few Arrow shards of rows out.

A finished shard is kept under the work folder by the digest of all that made it, so a killed extraction goes on
where it stopped and new videos recompute only the shard they fall into.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import torch

from tasks import shards as shards_module
from tasks.atomic import code_digest, digest, new_folder, write_json, write_text
from tasks.clips import Clip, read_clips, read_videos
from tasks.datasets import detections_file, detections_path, video_path
from tasks.errors import InfrastructureError
from tasks.layout import Workspace
from tasks.modalities import AnyModality, frames
from tasks.modalities import modality as modality_module
from tasks.modalities.modality import RawVideo, Span, merge
from tasks.mortal import die_with_parent
from tasks.params import Params
from tasks.progress import Progress
from tasks.settings import settings
from tasks.shards import Row, shard_of, write_shard
from tasks.stores import faults
from tasks.stores import video as video_reader
from tasks.stores.video import VideoError


def run(params: Params, workspace: Workspace, item: str | None) -> None:
    """Extract the modality `item` of every video in the index."""
    assert item is not None
    clips = read_clips(workspace.index)
    spans = spans_by_video(clips)
    raws = {
        name: RawVideo(
            video_path(workspace.raw, params.data, name),
            detections_path(workspace.raw, params.data, name),
            video,
        )
        for name, video in read_videos(workspace.index).items()
        if name in spans
    }
    extract(
        item,
        params.modalities[item],
        raws,
        spans,
        workspace.modality(item),
        workspace.root / settings().work / "shards",
    )


def spans_by_video(clips: list[Clip]) -> dict[str, list[Span]]:
    """Video → the merged stretches of it that clips need."""
    spans: dict[str, list[Span]] = {}
    for clip in clips:
        spans.setdefault(clip.video, []).append((clip.start_s, clip.stop_s))
    return {video: merge(stretches) for video, stretches in spans.items()}


def extract(
    name: str,
    modality: AnyModality,
    raws: dict[str, RawVideo],
    spans: dict[str, list[Span]],
    out: Path,
    finished: Path,
) -> None:
    """Write the shards of `modality` and their manifest to the folder `out`.

    Args:
        name: of the modality in params.
        raws: the videos by name.
        spans: the stretches of each video to cover, seconds.
        out: made whole or not at all.
        finished: where finished shards are kept by digest.

    Raises:
        InfrastructureError: a file cannot be read on this machine as it is.
    """
    members: dict[int, list[str]] = {}
    for video in sorted(raws):
        members.setdefault(shard_of(video, modality.shards), []).append(video)
    code = code_digest(
        sys.modules[type(modality).__module__],
        detections_file,
        frames,
        modality_module,
        shards_module,
        video_reader,
    )
    decoders = {name: version(name) for name in ("av", "decord", "opencv-python-headless")}
    jobs: dict[int, tuple[str, list[tuple[RawVideo, list[Span]]]]] = {}
    for number, videos in sorted(members.items()):
        work = [(raws[video], spans[video]) for video in videos]
        sources = [[modality.reads(raw.video), span] for raw, span in work]
        jobs[number] = digest(code, decoders, modality.model_dump(), sources), work

    shards: list[dict[str, Any]] = []
    problems: dict[str, str] = {}
    with Progress(f"extract {name}", sum(len(work) for _, work in jobs.values()), "videos") as progress:
        for number, found in _each_shard(modality, jobs, finished, progress.advance):
            key, _ = jobs[number]
            shards.append({"file": f"shard-{number:03d}.arrow", "key": key, "videos": members[number]})
            problems |= found
    shards.sort(key=lambda shard: str(shard["file"]))
    with new_folder(out) as folder:
        for shard in shards:
            shutil.copyfile(_kept(finished, shard["key"]), folder / shard["file"])
        manifest = {"modality": name, "params": modality.model_dump(), "shards": shards, "problems": problems}
        write_json(folder / "manifest.json", manifest)
    for video, reason in problems.items():
        print(f"warning: {name} of {video} {reason}")


def _kept(finished: Path, key: str) -> Path:
    return finished / f"{key}.arrow"


def _each_shard(
    modality: AnyModality,
    jobs: dict[int, tuple[str, list[tuple[RawVideo, list[Span]]]]],
    finished: Path,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, dict[str, str]]]:
    """Make every shard that is not there yet, here or in worker processes; gives its number and its problems."""
    workers = min(settings().loader_workers, len(jobs))
    if not workers:
        for number, (key, work) in jobs.items():
            yield number, _make_shard(modality, key, work, finished)
            advance(len(work))
        return
    begin = (torch.get_num_threads(),)
    with ProcessPoolExecutor(workers, get_context("spawn"), begin_worker, begin) as pool:
        running = {
            pool.submit(_make_shard, modality, key, work, finished): number
            for number, (key, work) in jobs.items()
        }
        for future in as_completed(running):
            yield running[future], future.result()
            advance(len(jobs[running[future]][1]))


def begin_worker(threads: int) -> None:
    """A worker does its sums as the stage does, and does not outlive it."""
    die_with_parent()
    torch.set_num_threads(threads)


def _make_shard(
    modality: AnyModality, key: str, work: list[tuple[RawVideo, list[Span]]], finished: Path
) -> dict[str, str]:
    """Make the shard `key` unless it is there; the videos that could not be read, or not all of, with the reason."""
    cv2.setNumThreads(1)
    problems: dict[str, str] = {}
    report = finished / f"{key}.json"
    reading = finished / f"{key}.reading"
    """Names the video that is being read; one that was left is of a process that crashed or was killed there."""
    suspect = reading.read_text(encoding="utf-8") if reading.exists() else ""

    def rows() -> Iterator[tuple[str, Row]]:
        for raw, spans in work:
            if raw.video.video == suspect:
                print(
                    f"{modality.kind}: the last attempt ended in {suspect}, now read by PyAV; if nobody killed it and "
                    "this one ends there too, take that video out of data/raw"
                )
                raw = replace(raw, video=replace(raw.video, reader="pyav"))
            write_text(reading, raw.video.video)
            try:
                extracted, damage = _extracted(modality, raw, spans)
            except MemoryError:
                raise
            except InfrastructureError:
                reading.unlink()
                raise
            except Exception as error:  # whatever a decoder says of one broken file must not stop the others
                problems[raw.video.video] = f"cannot be had: {_first_line(error)}"
                continue
            if damage:
                problems[raw.video.video] = f"has gaps, where the video is damaged: {damage}"
            yield from ((raw.video.video, row) for row in extracted)

    for leftover in finished.glob(f".{key}.*"):  # of a run killed while it wrote
        leftover.unlink()
    if not report.exists():
        write_shard(_kept(finished, key), rows())
        write_json(report, problems)
        reading.unlink(missing_ok=True)
        return problems
    return dict(json.loads(report.read_text(encoding="utf-8")))


def _extracted(modality: AnyModality, raw: RawVideo, spans: list[Span]) -> tuple[list[Row], str]:
    """The rows of one video, which was sound where it was probed, and of a damaged one why they have gaps.

    What fails is tried once more, by PyAV, as decord reads ahead and lays the fault on a frame that is sound. To a
    decoder a file system that does not answer looks like a broken file or a lack of sound: between the two attempts the
    file is read without one.
    """
    try:
        rows = _attempt(modality, raw, spans)
        if rows or modality.kind != "audio" or not raw.video.audio_rate_hz:
            return rows, ""
    except (MemoryError, InfrastructureError):
        raise
    except Exception:
        pass  # what fails again is told by the second attempt
    faults.read_through(raw.path)
    raw = replace(raw, video=replace(raw.video, reader="pyav"))
    try:
        return _attempt(modality, raw, spans), ""
    except VideoError as error:
        return _attempt(modality, replace(raw, damaged=True), spans), _first_line(error)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _attempt(modality: AnyModality, raw: RawVideo, spans: list[Span]) -> list[Row]:
    try:
        return list(modality.extract(raw, spans))
    except OSError as error:
        if error.errno in faults.PASSING:
            raise InfrastructureError(f"{raw.path} cannot be read: {error.strerror}") from error
        raise
