"""`detections/<video>.jsonl`: one line a frame, `{"time_s": …, "boxes": [{"box": [x1, y1, x2, y2], …}]}`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError, model_validator

from tasks.errors import UserError

Unit = Annotated[float, Field(ge=0, le=1)]


class Box(BaseModel):
    """One detected hand or object; further keys of the file are ignored."""

    model_config = ConfigDict(frozen=True)

    box: tuple[Unit, Unit, Unit, Unit] = Field(description="x1, y1, x2, y2 as shares of width and height.")
    category: Literal["hand", "object"]
    score: Unit
    side: Literal["left", "right"] | None = Field(default=None, description="Of a hand; None: unknown.")
    state: Literal["no-contact", "contact"] | None = Field(
        default=None, description="Of a hand; None: unknown."
    )

    @model_validator(mode="after")
    def _corners_are_ordered(self) -> "Box":
        x1, y1, x2, y2 = self.box
        if x1 > x2 or y1 > y2:  # equal: a box cut off at the edge of the frame, harmless
            raise ValueError("box must be [x1, y1, x2, y2] with x1 <= x2 and y1 <= y2")
        return self


class Frame(BaseModel):
    """The boxes of one moment, in seconds from the video's first frame."""

    model_config = ConfigDict(frozen=True)

    time_s: NonNegativeFloat = Field(allow_inf_nan=False)
    boxes: list[Box]


def read_detections(path: Path) -> list[Frame]:
    """The frames of a detections file, rising in time.

    Raises:
        UserError: not UTF-8, not JSON, a value missing or out of its range, times that do not rise; names
            the row.
    """
    frames: list[Frame] = []
    for row, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            frame = Frame.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            reason = first["msg"].removeprefix("Value error, ")
            raise UserError(f"{place}: {reason}" if place else reason, file=path, row=row) from None
        if frames and frame.time_s <= frames[-1].time_s:
            raise UserError(f"time_s {frame.time_s} does not rise over the row before", file=path, row=row)
        frames.append(frame)
    return frames
