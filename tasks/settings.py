"""Where things run: environment variables `UNDERSTUDY_*`. A setting never changes a result; params do that."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from pydantic import Field, PositiveInt, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.errors import UserError


class Settings(BaseSettings):
    """Places and sizes of this machine.

    Every field is read from the environment variable of its name with the prefix `UNDERSTUDY_`,
    for example `UNDERSTUDY_SLOTS=4 understudy run`.
    """

    model_config = SettingsConfigDict(env_prefix="UNDERSTUDY_", frozen=True)

    work: Path = Field(
        default=Path(".understudy"),
        description="Scratch that outlives a killed run: checkpoints, finished shards, locks, the local "
        "MLflow store. Safe to delete when nothing runs: `trainings`, `shards`, `probes`, `answers` and `studies` in "
        "it. `mlflow.db` and `mlartifacts` hold all runs and the registry.",
    )
    checkpoints: str = Field(
        default="",
        description="A folder or s3://bucket/prefix that all workers see: checkpoints are copied there, at most every "
        "30 s, so that a training whose machine died goes on, on another. Delete what is older than your longest "
        "training as you like.",
    )
    clone: Path = Field(
        default=Path("."), description="The clone that a flow works in where its parameters name none."
    )
    device: str = Field(
        default="auto",
        description="torch device for training; auto: cuda if there is one. The standing GPU workers of infra/ "
        "set cuda; one started by hand, or a job for each run, is on auto, and trains on the CPU where CUDA does not "
        "start.",
    )
    pipeline_run: str = Field(
        default="",
        pattern=r"^[^'\\]*$",
        description="Name of a pipeline run: MLflow shows the trainings as nested runs of one of that name. "
        "`understudy run` sets it.",
    )
    loader_workers: int = Field(
        default=0,
        ge=0,
        description="Processes that decode views for a training. 0: it does so itself, and keeps those that memory has "
        "room for; for a GPU and data larger than memory, 4 or so.",
    )
    slots: PositiveInt = Field(
        default_factory=lambda: max(1, len(os.sched_getaffinity(0))),
        description="Stages that `understudy run` runs side by side, each on `threads` CPU threads. Of several GPUs "
        "each stage has one to itself (or as many as its training has `devices`); a single one they share, so set 1 "
        "for networks that fill it.",
    )
    view_memory_bytes: int = Field(
        default_factory=lambda: memory_bytes() // 4 // max(1, len(os.sched_getaffinity(0))),
        ge=0,
        description="Memory of one stage for views that it will show again; default: a quarter of the machine's, "
        "shared by as many stages as there are cores. Unused with loader workers.",
    )
    max_video_bytes: PositiveInt = Field(default=20 * 2**30, description="Larger videos go to quarantine.")
    decode_timeout_s: float = Field(
        default=120.0, gt=0, description="A probe of one video may take this long."
    )
    webhook_url: SecretStr | None = Field(
        default=None,
        description="`understudy deploy` has Prefect call it when a run fails or crashes, nobody takes a nightly "
        'run, a challenger wins or the champion drifts; a POST of `{"text": …}`.',
    )
    serve_root: Path | None = Field(
        default=None,
        description="Folder whose videos a served model may read by their path; unset: none, videos come as bytes.",
    )
    serve_max_bytes: PositiveInt = Field(
        default=64 * 2**20,
        description="A request to a served model may bring this much video, decoded from base64.",
    )
    serve_max_videos: PositiveInt = Field(
        default=32, description="A request to a served model may bring so many videos and clips."
    )
    serve_max_s: float = Field(
        default=600.0, gt=0, description="A served model takes videos of at most this length."
    )
    serve_timeout_s: float = Field(
        default=20.0, gt=0, description="A served model gives up on a video whose decoding takes longer."
    )


def dvc_scratch(root: Path) -> Path:
    """DVC's own scratch for the clone at `root`, for this user's eyes only.

    Its default is world-writable and read by pickle: whoever shares the machine could have it run what he put there.
    """
    folder = Path(os.environ.get("DVC_SITE_CACHE_DIR", root / settings().work / "dvc"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def dvc_config(root: Path) -> dict[str, dict[str, Any]]:
    """What DVC's API is told, beside its own files, where it opens the clone at `root`."""
    return {"core": {"site_cache_dir": str(dvc_scratch(root)), "analytics": False}}


def memory_bytes() -> int:
    """The memory of this machine, or of the container that we run in."""
    limits = [psutil.virtual_memory().total]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(Path(file).read_text(encoding="ascii")))
    return min(limits)


def settings() -> Settings:
    """The settings of this process, read anew from the environment.

    Raises:
        UserError: a variable that says nothing possible; names it.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        variable = f"UNDERSTUDY_{first['loc'][0]}".upper()
        raise UserError(
            f"{variable}={first['input']}: {first['msg']}", remedy=f"set {variable} anew, or unset it"
        ) from None
