"""Probing many videos side by side, each once: what was found is kept by the content of the file."""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue

import tasks.stores.probe
import tasks.stores.video
from tasks.atomic import code_digest, digest, file_digest, write_json
from tasks.errors import InfrastructureError
from tasks.progress import Progress
from tasks.settings import settings
from tasks.stores.aside import DecodingStopped
from tasks.stores.faults import read_through
from tasks.stores.probe import Probe, Prober
from tasks.stores.video import VideoError

_MOST_PROBERS = 8
"""Processes that decode at a time, a core each."""


def probe_all(jobs: Sequence[tuple[Path, list[float]]], kept: Path) -> Iterator[tuple[str, Probe | str]]:
    """The digest of every file and its probe, or why it cannot be read; kept, so that none is done twice."""
    probers: SimpleQueue[Prober] = SimpleQueue()
    started = [
        Prober(settings().decode_timeout_s) for _ in range(min(_MOST_PROBERS, len(os.sched_getaffinity(0))))
    ]
    for prober in started:
        probers.put(prober)

    def job(path: Path, moments_s: list[float]) -> tuple[str, Probe | str]:
        sha256 = file_digest(path)
        prober = probers.get()
        try:
            return sha256, _probe_once(path, sha256, moments_s, prober, kept)
        finally:
            probers.put(prober)

    pool = ThreadPoolExecutor(len(started))
    try:
        with Progress("probe", len(jobs), "videos") as progress:
            for result in pool.map(job, *zip(*jobs, strict=True)) if jobs else ():
                progress.advance()
                yield result
    finally:
        pool.shutdown(cancel_futures=True)
        for prober in started:
            prober.close()


@cache
def _made_by() -> str:
    """Names the code and the decoders that probe: others may find something else."""
    decoders = {name: version(name) for name in ("av", "decord")}
    return digest(code_digest(tasks.stores.probe, tasks.stores.video), decoders)


def _probe_once(path: Path, sha256: str, moments_s: list[float], prober: Prober, kept: Path) -> Probe | str:
    note = kept / f"{digest(_made_by(), sha256, moments_s)}.json"
    if note.exists():
        answer = json.loads(note.read_text(encoding="utf-8"))
    else:
        try:
            answer = {"probe": asdict(_surely_probed(path, moments_s, prober))}
        except DecodingStopped as error:
            return str(error)  # not kept: a machine with more time or memory may fare better
        except VideoError as error:
            answer = {"reason": str(error)}
        write_json(note, answer)
    if "reason" in answer:
        return str(answer["reason"])
    return Probe(**answer["probe"] | {"broken_s": tuple(answer["probe"]["broken_s"])})


def _surely_probed(path: Path, moments_s: list[float], prober: Prober) -> Probe:
    """The probe of a video, of which what is wrong is the file's fault: to a decoder, a file system that does not
    answer looks like a broken file. The file is read without one and probed again.

    Raises:
        VideoError, InfrastructureError: as `Prober.probe`; the latter also where the file's bytes cannot be read.
    """

    def ask() -> Probe:
        try:
            return prober.probe(path, moments_s)
        except InfrastructureError as error:
            raise InfrastructureError(f"{path}: {error}") from None

    try:
        found = ask()
        if not found.broken_s:
            return found
    except DecodingStopped:
        raise
    except VideoError:
        pass  # what fails again is told by the second attempt
    read_through(path)
    return ask()
