"""Fetching a folder from S3 or whatever speaks its protocol (set AWS_ENDPOINT_URL), safely and resumably."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ProfileNotFound

from tasks.atomic import new_file
from tasks.errors import InfrastructureError, UserError
from tasks.names import normal, unsafe

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LOG = ".understudy-downloads.jsonl"
"""In the target folder: one line an object that has arrived whole."""
_ATTEMPTS = 9
"""A fetch of hours must outlive half a minute's outage; botocore's own three attempts end within seconds."""


@dataclass(frozen=True)
class Remote:
    """One object: its key, where it goes below the folder, and what tells its versions apart."""

    key: str
    path: str
    size: int
    etag: str


def download(uri: str, folder: Path, progress: Callable[[int, int], None]) -> list[Path]:
    """Fetch everything below `uri` into `folder`; objects that have arrived before are not fetched again.

    Args:
        uri: s3://bucket/prefix.
        folder: where to, and for nothing else; every file appears whole or not at all, and goes when its object has.
        progress: told after each object how many of how many bytes are there.

    Returns:
        The files, in the order of their keys.

    Raises:
        UserError: no such bucket or prefix, no access, keys that must not become paths, or no room for it all.
        InfrastructureError: the endpoint cannot be reached, after AWS_MAX_ATTEMPTS attempts.
    """
    bucket, prefix = _parse(uri)
    try:
        client = boto3.client("s3", config=_config())
        remotes = _listed(client, bucket, prefix, uri)
        return _fetch(client, bucket, remotes, folder, progress)
    except (NoCredentialsError, ProfileNotFound):
        raise UserError(
            f"no credentials for {uri}",
            remedy="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a server other "
            "than Amazon's also AWS_ENDPOINT_URL",
        ) from None
    except ClientError as error:
        raise _explained(error, uri) from None
    except (BotoCoreError, boto3.exceptions.Boto3Error) as error:
        raise InfrastructureError(f"{uri} cannot be fetched: {error}") from None


def _config() -> Config:
    # botocore lets a Config override the variable, so that our default has to look for it.
    attempts = int(os.environ.get("AWS_MAX_ATTEMPTS") or _ATTEMPTS)
    return Config(
        retries={"total_max_attempts": attempts, "mode": "standard"},
        connect_timeout=10,
        read_timeout=60,
        user_agent_extra="understudy",
    )


def _parse(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    if parts.scheme != "s3" or not parts.netloc or "@" in parts.netloc:
        raise UserError(
            "not an S3 address", remedy="write s3://bucket/prefix; credentials go in the environment"
        )
    prefix = uri.partition("://")[2].partition("/")[2].strip("/")
    return parts.netloc, f"{prefix}/" if prefix else ""


def _explained(error: ClientError, uri: str) -> Exception:
    code = error.response.get("Error", {}).get("Code", "")
    if code in ("NoSuchBucket", "404", "NoSuchKey"):
        return UserError(f"{uri} does not exist", remedy="check the bucket's name and AWS_ENDPOINT_URL")
    if code in ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"):
        return UserError(f"access to {uri} is refused ({code})", remedy="check the AWS credentials")
    return InfrastructureError(f"{uri} cannot be fetched ({code})")


def _listed(client: "S3Client", bucket: str, prefix: str, uri: str) -> list[Remote]:
    remotes = [
        Remote(item["Key"], normal(item["Key"].removeprefix(prefix)), item["Size"], item["ETag"])
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for item in page.get("Contents", [])
        if not item["Key"].endswith("/")  # markers of empty folders
    ]
    if not remotes:
        raise UserError(f"{uri} holds no object", remedy="check the prefix")
    taken: set[str] = set()
    for remote in remotes:
        reason = unsafe(remote.path) or ("names the same file as another key" if remote.path in taken else "")
        if reason:
            raise UserError(
                f"the key {remote.key!r} {reason}", file=uri, remedy="rename the object; nothing was fetched"
            )
        taken.add(remote.path)
    for remote in remotes:
        if any(parent.as_posix() in taken for parent in Path(remote.path).parents):
            raise UserError(f"the key {remote.key!r} lies below a key that is an object", file=uri)
    return remotes


def _fetch(
    client: "S3Client", bucket: str, remotes: list[Remote], folder: Path, progress: Callable[[int, int], None]
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    _prune(folder, {folder / remote.path for remote in remotes})
    log = folder / LOG
    arrived = _arrived(log)
    total, done = sum(remote.size for remote in remotes), 0

    def is_whole(remote: Remote) -> bool:
        target = folder / remote.path
        return remote in arrived and target.is_file() and target.stat().st_size == remote.size

    needed, free = sum(each.size for each in remotes if not is_whole(each)), _free(folder)
    if needed > free:
        raise UserError(
            f"{needed / 1e9:.1f} GB are to be fetched from {bucket}, the disk has {free / 1e9:.1f} GB left",
            file=folder,
            remedy="make room, or set UNDERSTUDY_WORK to a folder on a larger disk; what has arrived stays",
        )
    for remote in remotes:
        target = folder / remote.path
        if not is_whole(remote):
            with new_file(target) as temporary:
                client.download_file(bucket, remote.key, str(temporary))
                if temporary.stat().st_size != remote.size:
                    raise InfrastructureError(f"{remote.key} changed while it was fetched; try again")
            with log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(remote)) + "\n")
        done += remote.size
        progress(done, total)
    return [folder / remote.path for remote in remotes]


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _prune(folder: Path, listed: set[Path]) -> None:
    """Delete what has arrived before and is not listed any more; hidden files are the log and downloads under way."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what a folder holds before the folder
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in listed and not path.name.startswith("."):
            path.unlink()


def _arrived(log: Path) -> set[Remote]:
    """What the log says has arrived; a line cut off by a kill is not counted."""
    arrived = set()
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        try:
            arrived.add(Remote(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return arrived
