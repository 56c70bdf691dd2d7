"""CSV tables that a spreadsheet shows and does not run."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metamixer.data.files import read_text, replace_when_done
from metamixer.errors import MetamixerError
from metamixer.limits import TABLE_BYTES

# Spreadsheets take a cell that begins so for a formula, full-width signs in some languages (OWASP, "CSV Injection").
_FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")


def write_table(path: str | Path, columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a header and rows, whole or not at all.

    Numbers are written as they are. Text that a spreadsheet would take for a formula gets an apostrophe in front, which
    :func:`read_table` takes off again. Raises MetamixerError where the file cannot be written.
    """
    with (
        replace_when_done(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(map(as_cell, columns))
        writer.writerows(map(as_cell, row) for row in rows)


def write_records(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a table of mappings, with a column for every name in any of them. As :func:`write_table`."""
    records = list(records)
    columns = list(dict.fromkeys(name for record in records for name in record))
    write_table(path, columns, ([record.get(name) for name in columns] for record in records))


def read_table(path: str | Path) -> list[dict[str, str]]:
    """The rows of a table of ours by column, as text. Raises MetamixerError for a file that is none."""
    try:
        cells = list(csv.reader(io.StringIO(read_text(path, TABLE_BYTES, "a CSV file")), strict=True))
    except csv.Error as error:
        raise MetamixerError(f"{path} cannot be read as a CSV file ({error})") from None
    if not cells:
        raise MetamixerError(f"{path} cannot be read as a CSV file (it is empty)")
    header, *rows = [[from_cell(cell) for cell in row] for row in cells]
    uneven = next((number for number, row in enumerate(rows, 2) if len(row) != len(header)), None)
    if uneven is not None:
        raise MetamixerError(f"{path}, row {uneven}: {len(rows[uneven - 2])} cells where the header has {len(header)}")
    return [dict(zip(header, row, strict=True)) for row in rows]


def as_cell(value: Any) -> Any:
    """What is written for a value: text that begins like a formula with an apostrophe more, all else as it is."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def from_cell(cell: str) -> str:
    """The inverse of :func:`as_cell`, for text."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
