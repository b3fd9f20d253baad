"""The errors a person can cause and mend. Everything else is a defect of ours and keeps its traceback."""

from pathlib import Path


class UserError(Exception):
    """Wrong input or settings: printed without a traceback, exit code 2, never retried.

    Args:
        message: what is wrong, in one sentence.
        file: the file it stands in.
        row: the row of that file, counted as an editor counts lines (the header is row 1).
        remedy: what to do about it.
    """

    exit_code = 2

    def __init__(
        self, message: str, *, file: Path | str | None = None, row: int | None = None, remedy: str = ""
    ):
        self.message, self.file, self.row, self.remedy = message, file, row, remedy
        where = "" if file is None else f"{file}, row {row}: " if row is not None else f"{file}: "
        super().__init__(where + message + (f"\n  → {remedy}" if remedy else ""))


class InfrastructureError(Exception):
    """A disk, network or store that failed: exit code 75 (EX_TEMPFAIL), worth trying again."""

    exit_code = 75
