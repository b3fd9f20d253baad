"""Reading CSV files that people made: every row knows its line, every fault is named."""

import csv
import io
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from tasks.errors import UserError


def read_table(file: Path, columns: Iterable[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a header: (line on which the row starts, column → stripped text).

    Blank lines are skipped. The header must hold `columns`.

    Raises:
        UserError: missing, empty, not UTF-8, not CSV, a column missing or named twice, a row of another
            length, a control character in a cell.
    """
    reader = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
    line = 0
    header: list[str] | None = None
    try:
        for cells in reader:
            row, line = line + 1, reader.line_num
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if any(unicodedata.category(letter) == "Cc" for cell in cells for letter in cell):
                raise UserError("a cell holds a line break or another control character", file=file, row=row)
            if header is None:
                header = _checked_header(cells, columns, file, row)
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"has {len(cells)} cells where the header has {len(header)}",
                    file=file,
                    row=row,
                    remedy="put a value that holds a comma in double quotes",
                )
            yield row, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"not valid CSV: {error}", file=file, row=max(1, reader.line_num)) from None
    if header is None:
        raise UserError("is empty", file=file, remedy="its first row must name the columns")


def header_of(file: Path) -> list[str]:
    """The column names of a CSV file.

    Raises:
        UserError: see `read_table`.
    """
    for cells in csv.reader(io.StringIO(_text(file), newline="")):
        if any(cell.strip() for cell in cells):
            return [cell.strip() for cell in cells]
    raise UserError("is empty", file=file, remedy="its first row must name the columns")


def _text(file: Path) -> str:
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise UserError(
            "not found", file=file, remedy="see `understudy import --help` for the format"
        ) from None
    except IsADirectoryError:
        raise UserError("is a folder, not a file", file=file) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise UserError("is not UTF-8 text", file=file, row=row, remedy="save it as UTF-8") from None
    if "\0" in text:
        row = text.count("\n", 0, text.index("\0")) + 1
        raise UserError("holds a NUL character; it is not a text file", file=file, row=row)
    return text


def _checked_header(cells: list[str], columns: Iterable[str], file: Path, row: int) -> list[str]:
    twice = sorted({cell for cell in cells if cells.count(cell) > 1})
    if twice:
        raise UserError(f"names the column {twice[0]!r} twice", file=file, row=row)
    missing = [column for column in columns if column not in cells]
    if missing:
        raise UserError(
            f"has no column {missing[0]!r}", file=file, row=row, remedy=f"its columns are: {', '.join(cells)}"
        )
    return cells
