"""The data set formats: one file each, one line each in this registry."""

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.datasets.annotations import Dataset, suggestion
from tasks.datasets.epic_kitchens import EpicKitchens
from tasks.datasets.folder import Folder
from tasks.datasets.something_else import SomethingElse
from tasks.errors import UserError

if TYPE_CHECKING:  # params names the modalities, one of which reads a file of this package
    from tasks.params import Data

FORMATS: dict[str, Dataset] = {
    "folder": Folder(),
    "epic_kitchens": EpicKitchens(),
    "something_else": SomethingElse(),
}


def dataset(name: str) -> Dataset:
    """The format that params call `name`.

    Raises:
        UserError: there is none.
    """
    if name not in FORMATS:
        raise UserError(f"data.format: there is no format {name!r}", remedy=suggestion(name, FORMATS))
    return FORMATS[name]


def video_path(raw: Path, data: "Data", video: str) -> Path:
    """Where the file of `video` lies below the raw folder."""
    return dataset(data.format).video_path(raw, video)


def detections_path(raw: Path, data: "Data", video: str) -> Path:
    """Where the detections of `video` lie below the raw folder, or would lie."""
    return dataset(data.format).detections_path(raw, video)
