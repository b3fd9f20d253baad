"""The student as a service: what a request may hold, what is refused and why, and the answer."""

import base64
import binascii
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from tasks.errors import UserError
from tasks.inference import device
from tasks.looking import Look, Lookers, look_at_frames
from tasks.networks import Committee
from tasks.predict import classify, looks_at
from tasks.settings import settings
from tasks.stores.probe import LONGEST_SIDE

VIDEO, CLIP, RATE = "video", "clip", "rate_hz"
"""The columns of a request."""
_BYTES = ";base64,"
_MOST_REASONS = 5


class Served:
    """A student that answers requests, from several threads at once.

    Args:
        release: the folder that was registered.
    """

    def __init__(self, release: Path):
        self.committee = Committee.load(release).to(device())
        self._rgb = looks_at(self.committee.spec)
        self._lookers = Lookers(
            self._rgb,
            self.committee.spec.views,
            settings().serve_timeout_s,
            settings().serve_max_s,
            settings().slots,
            strangers=True,
        )

    def answer(self, request: pd.DataFrame) -> pd.DataFrame:
        """For every row of `request` the most probable class of each head and the calibrated probabilities.

        Args:
            request: a row is either a `video`, a path below UNDERSTUDY_SERVE_ROOT or bytes as a data URL
                (data:video/mp4;base64,…), or a `clip`, integers 0..255 (frames, height, width, 3), with
                `rate_hz`, its frames a second; without it those that the network was trained on.

        Returns:
            columns <head> and <head>_probs (class → probability), rows in the order of the request.

        Raises:
            UserError: a row cannot be answered; says which and why. Then none is.
            InfrastructureError: this machine starts no process to decode in.
        """
        rows = request.to_dict("records")
        if not rows:
            raise UserError(f"the request brings no row with a {VIDEO} or a {CLIP}")
        if len(rows) > settings().serve_max_videos:
            raise UserError(
                f"a request brings 1 to {settings().serve_max_videos} videos, not {len(rows)} "
                "(UNDERSTUDY_SERVE_MAX_VIDEOS)"
            )
        looks = self._look(rows)
        refused = [f"row {place}: {look}" for place, look in enumerate(looks) if isinstance(look, str)]
        if refused:
            more = f"; and {len(refused) - _MOST_REASONS} more" if len(refused) > _MOST_REASONS else ""
            raise UserError("; ".join(refused[:_MOST_REASONS]) + more)
        said = classify([look for look in looks if isinstance(look, Look)], self.committee)
        return pd.DataFrame(
            [
                {
                    column: value
                    for head, ranked in heads.items()
                    for column, value in ((head, ranked[0][0]), (f"{head}_probs", dict(ranked)))
                }
                for heads in said
            ]
        )

    def _look(self, rows: Sequence[Mapping[Any, Any]]) -> list[Look | str]:
        """The view of every row, or why there is none; bytes lie in files as long as they are looked at."""
        left = settings().serve_max_bytes
        found: list[Look | str | Future[Look | str]] = []
        files: list[IO[bytes]] = []
        try:
            for row in rows:
                try:
                    clip, video = row.get(CLIP), row.get(VIDEO)
                    if _absent(clip) == _absent(video):
                        raise UserError(f"give either a {VIDEO} or a {CLIP}")
                    if _absent(clip):
                        path, size = self._path(video, left, files)
                        found.append(self._lookers.look(path, None))
                    else:
                        frames = _frames(clip, left)
                        size = frames.nbytes
                        rate_hz = _rate(row.get(RATE), self._rgb.rate_hz, len(frames))
                        found.append(look_at_frames(self._rgb, self.committee.spec.views, frames, rate_hz))
                    left -= size
                except UserError as error:
                    found.append(str(error))
            return [look.result() if isinstance(look, Future) else look for look in found]
        finally:
            for file in files:
                file.close()

    def _path(self, video: Any, left: int, files: list[IO[bytes]]) -> tuple[Path, int]:
        """The file to look at, and how much of what a request may bring it takes.

        Raises:
            UserError: it is neither bytes nor a path that may be read.
        """
        if not isinstance(video, str) or not video:
            raise UserError(f"{VIDEO} is neither a path nor a data URL")
        if video.startswith("data:"):
            content = _decoded(video, left)
            file = tempfile.NamedTemporaryFile(prefix="understudy-", suffix=".video")  # noqa: SIM115
            files.append(file)
            file.write(content)
            file.flush()
            return Path(file.name), len(content)
        path = _below_root(video)
        if path.stat().st_size > left:
            raise UserError(_TOO_MUCH)
        return path, path.stat().st_size


_TOO_MUCH = "is more than a request may bring (UNDERSTUDY_SERVE_MAX_BYTES)"


def _absent(value: Any) -> bool:
    """Whether a cell is empty: a table fills what a row does not say with None or NaN."""
    return value is None or (isinstance(value, float) and np.isnan(value))


def _decoded(url: str, left: int) -> bytes:
    head, mark, text = url.partition(_BYTES)
    if not mark:
        raise UserError(f"a data URL has the form data:video/mp4{_BYTES}…, not {head[:40]!r}")
    if len(text) * 3 // 4 > left + 2:
        raise UserError(_TOO_MUCH)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"is not base64 ({error})") from None


def _below_root(video: str) -> Path:
    """The file below the folder that may be read, links followed.

    Raises:
        UserError: no folder may be read, or the path is no file of it. What lies elsewhere is not told.
    """
    root = settings().serve_root
    if root is None:
        raise UserError(
            "this server reads no paths (UNDERSTUDY_SERVE_ROOT is not set); "
            f"send the video itself as data:video/mp4{_BYTES}…"
        )
    try:
        path = (root / video).resolve()
        if path.is_relative_to(root.resolve()) and path.is_file():
            return path
    except (OSError, ValueError, RuntimeError):  # too long, NUL, a loop of links
        pass
    raise UserError("there is no such file below the folder that this server reads")


def _frames(clip: Any, left: int) -> np.ndarray:
    """A clip as uint8 (frames, height, width, 3)."""
    wanted = "is no clip: integers 0 to 255, (frames, height, width, 3)"
    try:
        frames = np.asarray(clip)
    except ValueError:
        raise UserError(f"{CLIP} {wanted}, all frames and lines alike") from None
    if frames.dtype.kind not in "iu" or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise UserError(f"{CLIP} {wanted}, not {frames.dtype} {frames.shape}")
    if frames.size > left:
        raise UserError(_TOO_MUCH)
    if max(frames.shape[1:3]) > LONGEST_SIDE:
        raise UserError(f"{CLIP} has sides of more than {LONGEST_SIDE} pixels")
    if frames.min() < 0 or frames.max() > 255:
        raise UserError(f"{CLIP} {wanted}, not {frames.min()} to {frames.max()}")
    return np.ascontiguousarray(frames, dtype=np.uint8)


def _rate(given: Any, own_hz: float, frames: int) -> float:
    if _absent(given):
        return own_hz
    if not isinstance(given, (int, float)) or not 0 < given < float("inf"):
        raise UserError(f"{RATE} is not a number of frames a second: {given!r}")
    if frames / given > settings().serve_max_s:
        raise UserError(
            f"{CLIP} is {frames / given:.0f} s long; at most {settings().serve_max_s:g} s are taken"
        )
    return float(given)
