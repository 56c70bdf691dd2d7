"""Tables of numbers over time: reading a CSV file, its splits, and its windows."""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
import zlib
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from metamixer.data.files import open_regular
from metamixer.data.formats import short_lines
from metamixer.data.tables import from_cell
from metamixer.errors import MetamixerError
from metamixer.limits import TABLE_BYTES, available_memory, require_memory

TIME_NAMES = ("date", "time", "datetime", "timestamp", "ds")
# Beside ISO 8601.
_FORMATS = ("%Y/%m/%d %H:%M", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d", "%d/%m/%Y %H:%M", "%d/%m/%Y", "%Y%m%d")

_MEMORY_PER_BYTE = 8  # of text: a cell of seven characters takes over 60 bytes as a string in a list
_UNKNOWN = 1 << 62

Split = Literal["auto", "ett_hour", "ett_minute", "ratio"]
Part = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Series:
    """Several variables at rising times.

    Args:
        path: the file.
        columns: names of the variables.
        times: one per row, to the microsecond; those with a UTC offset are in UTC.
        values: ``rows × variables``, float64.
    """

    path: Path
    columns: tuple[str, ...]
    times: NDArray[np.datetime64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def step(self) -> np.timedelta64:
        """The commonest distance between two rows."""
        return _commonest(np.diff(self.times))

    def following(self, row: int, count: int) -> NDArray[np.datetime64]:
        """``count`` times behind a row's, in steps of calendar months where all rows have the same day of the month or
        the month's last, else in those of ``step``."""
        for shift in (np.timedelta64(1, "D"), np.timedelta64(0, "D")):  # from the day behind, last days are first days
            times = self.times + shift
            months = times.astype("datetime64[M]")
            inside = times - months
            if (inside == inside[0]).all():
                step = _commonest(np.diff(months))
                return months[row] + step * np.arange(1, count + 1) + inside[0] - shift
        return self.times[row] + self.step * np.arange(1, count + 1)


def _commonest(steps: NDArray[np.timedelta64]) -> np.timedelta64:
    found, counts = np.unique(steps, return_counts=True)
    return found[counts.argmax()]


def read_series(path: str | Path, time_column: str | None = None) -> Series:
    """A CSV file (or ``.csv.gz``) with a header, one column of times and numbers in all others.

    Args:
        path: the file.
        time_column: name of the column of times; by default the one named date, time, datetime, timestamp or ds, else
            the first.

    Times are ISO 8601 (``2016-07-01 00:00:00``) or ``1990/1/1 0:00``, all with a UTC offset or all without, and must
    rise from row to row.

    Raises MetamixerError, naming the file and where it can the row (as counted in an editor, the header is row 1) and
    the column: for a file that cannot be read, fewer than two rows or no column of numbers, columns without or with the
    same name, rows of another length, missing values, text where numbers belong, times that cannot be read, that occur
    twice or that fall, and a UTC offset in some of them only.
    """
    path = Path(path)
    rows = _rows(path)
    if len(rows) < 3:
        raise MetamixerError(f"{path} holds {max(0, len(rows) - 1)} rows below its header; a series needs two or more")
    (_, header), *rows = rows
    columns = [from_cell(name.strip()) for name in header]
    if "" in columns or len(set(columns)) < len(columns):
        twice = next((name for name in columns if columns.count(name) > 1), "")
        raise MetamixerError(
            f"{path}, row 1: " + (f"the column {twice!r} occurs twice" if twice else "a column has no name")
        )
    place = _time_place(path, columns, time_column)
    variables = [name for i, name in enumerate(columns) if i != place]
    if not variables:
        raise MetamixerError(f"{path} holds times alone, no column of numbers")
    require_memory(8 * len(rows) * len(variables), f"{path}, {len(rows)} rows of {len(variables)} numbers")
    times: list[datetime] = []
    values = np.empty((len(rows), len(variables)))
    for i, (number, cells) in enumerate(rows):
        if len(cells) != len(columns):
            raise MetamixerError(f"{path}, row {number}: {len(cells)} cells where the header has {len(columns)}")
        times.append(_time(path, number, columns[place], cells[place]))
        numbers = cells[:place] + cells[place + 1 :]
        values[i] = [_number(path, number, name, cell) for name, cell in zip(variables, numbers, strict=True)]
        if (times[-1].tzinfo is None) != (times[0].tzinfo is None):
            raise MetamixerError(
                f"{path}, row {number}, column {columns[place]}: some times have a UTC offset and some have none"
                f" ({rows[0][1][place]} and {cells[place]})"
            )
        if i and times[-1] <= times[-2]:
            which = "occurs twice" if times[-1] == times[-2] else "is earlier than the row before"
            raise MetamixerError(f"{path}, row {number}, column {columns[place]}: the time {cells[place]} {which}")
    stored = np.array([time.replace(tzinfo=None) for time in times], dtype="datetime64[us]")
    return Series(path, tuple(variables), stored, values)


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Row numbers, as an editor counts them, and cells; blank lines are left out."""
    with open_regular(path, TABLE_BYTES, "a CSV file") as file:
        require_memory(_MEMORY_PER_BYTE * os.fstat(file.fileno()).st_size, f"{path} as a table")
        most = min(TABLE_BYTES, (available_memory() or _UNKNOWN) // _MEMORY_PER_BYTE)  # once it is unpacked, too
        try:
            stream = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
                reader = csv.reader(short_lines(text, str(path), most))
                return [(reader.line_num, cells) for cells in reader if cells]
        except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
            reason = "it is no text" if isinstance(error, UnicodeDecodeError) else str(error) or type(error).__name__
            raise MetamixerError(f"{path} cannot be read as a CSV file ({reason})") from None


def _time_place(path: Path, columns: list[str], time_column: str | None) -> int:
    if time_column is not None:
        if time_column not in columns:
            raise MetamixerError(f"{path} has no column {time_column!r}; it has {', '.join(columns)}")
        return columns.index(time_column)
    return next((i for i, name in enumerate(columns) if name.lower() in TIME_NAMES), 0)


def _time(path: Path, row: int, column: str, cell: str) -> datetime:
    """In UTC if an offset is told, else without a time zone."""
    text = cell.strip()
    try:
        time = datetime.fromisoformat(text)
        return time if time.tzinfo is None else time.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        pass
    for form in _FORMATS:
        try:
            return datetime.strptime(text, form)
        except ValueError:
            continue
    raise MetamixerError(f"{path}, row {row}, column {column}: {cell!r} is no time such as 2016-07-01 00:00:00")


def _number(path: Path, row: int, column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        said = f"{cell!r} is no number" if cell.strip() else "the value is missing"
        raise MetamixerError(f"{path}, row {row}, column {column}: {said}") from None
    if not math.isfinite(value):
        raise MetamixerError(f"{path}, row {row}, column {column}: the value is missing or infinite ({cell.strip()})")
    return value


# --- Splits ----------------------------------------------------------------------------------------------------------

_MONTH = 30 * 24  # hours, as the ETT splits count


def split_rows(series: Series, split: Split = "auto") -> dict[Part, tuple[int, int]]:
    """First row and the row behind the last of the training, validation and test part, as the literature cuts them.

    ``ett_hour`` and ``ett_minute`` are 12, 4 and 4 months of 30 days in hours or quarters of an hour (what follows is
    not used); ``ratio`` is 70, 10 and 20 %, training and test rounded down. ``auto`` goes by the file's name: ETTh1,
    ETTh2, ETTm1, ETTm2, and anything else by ratio.

    Raises MetamixerError for an ETT split of too short a series.
    """
    if split == "auto":
        split = usual_split(series)
    rows = len(series)
    if split == "ratio":
        train, test = int(0.7 * rows), int(0.2 * rows)
        ends = (train, rows - test, rows)
    else:
        month = _MONTH * (4 if split == "ett_minute" else 1)
        ends = (12 * month, 16 * month, 20 * month)
        if rows < ends[-1]:
            raise MetamixerError(f"{series.path} holds {rows} rows; the split into 12, 4 and 4 months needs {ends[-1]}")
    return {"train": (0, ends[0]), "val": (ends[0], ends[1]), "test": (ends[1], ends[2])}


def usual_split(series: Series) -> Split:
    """What ``auto`` means in :func:`split_rows`."""
    name = series.path.name.lower()
    return "ett_hour" if name.startswith("etth") else "ett_minute" if name.startswith("ettm") else "ratio"


@dataclass(frozen=True)
class Standardisation:
    """Mean and deviation of every variable; ``apply`` makes rows of mean 0 and deviation 1, ``undo`` the reverse."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def of(cls, series: Series, rows: tuple[int, int]) -> Standardisation:
        """From some rows of a series. Raises MetamixerError for a variable that is constant there."""
        values = series.values[rows[0] : rows[1]]
        constant = np.flatnonzero(np.ptp(values, axis=0) == 0)
        if len(constant):
            raise MetamixerError(
                f"{series.path}, column {series.columns[constant[0]]}: the value is {values[0, constant[0]]:g} in all"
                f" training rows ({rows[0] + 2} to {rows[1] + 1}); leave the column out"
            )
        return cls(values.mean(0), values.std(0))

    def apply(self, values: NDArray) -> NDArray:
        return (values - self.mean) / self.deviation

    def undo(self, values: NDArray) -> NDArray:
        return values * self.deviation + self.mean


class Windows:
    """Every window of some rows: ``lookback`` rows to read and the ``horizon`` rows behind them to forecast.

    Args:
        values: ``rows × variables``, standardised.
        rows: first row to be *forecast* and the row behind the last; what is read may lie before, except where the part
            begins the series.
        lookback, horizon: rows.
    """

    def __init__(self, values: NDArray, rows: tuple[int, int], lookback: int, horizon: int) -> None:
        first = max(0, rows[0] - lookback)
        self.values = values[first : rows[1]].astype(np.float32)
        self.lookback, self.horizon = lookback, horizon

    def __len__(self) -> int:
        return max(0, len(self.values) - self.lookback - self.horizon + 1)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """``lookback × variables`` and ``horizon × variables``."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        middle = index + self.lookback
        return self.values[index:middle], self.values[middle : middle + self.horizon]

    def stacked(self, start: int, stop: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Windows ``start`` to ``stop``, or to the last: ``n × lookback × variables``, ``n × horizon × variables``."""
        both = np.lib.stride_tricks.sliding_window_view(self.values, self.lookback + self.horizon, axis=0)
        both = both[start:stop].transpose(0, 2, 1)
        return both[:, : self.lookback], both[:, self.lookback :]


def windows_of(
    series: Series, scale: Standardisation, rows: dict[Part, tuple[int, int]], lookback: int, horizon: int
) -> dict[Part, Windows]:
    """The windows of every part. Raises MetamixerError for a part that is shorter than one window."""
    values = scale.apply(series.values)
    parts = {part: Windows(values, ends, lookback, horizon) for part, ends in rows.items()}
    for part, windows in parts.items():
        if len(windows) == 0:
            raise MetamixerError(
                f"{series.path} holds {len(series)} rows, of which the {part} part"
                f" ({rows[part][1] - rows[part][0]} rows) has no window of {lookback} rows to read and {horizon} to"
                " forecast"
            )
    return parts
