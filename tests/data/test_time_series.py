"""Reading tables over time, their splits and windows, and the files that are refused in one sentence."""

from __future__ import annotations

import gzip
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from metamixer import MetamixerError
from metamixer.data.time_series import (
    Series,
    Standardisation,
    Windows,
    read_series,
    split_rows,
    usual_split,
    windows_of,
)

GOOD = "date,a,b\n2020-01-01 00:00:00,1,10\n2020-01-01 01:00:00,2,20.5\n2020-01-01 02:00:00,-3e0,30\n"


def write(folder: Path, text: str, name: str = "series.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def series(rows: int, columns: int = 2, name: str = "series.csv") -> Series:
    times = np.datetime64("2020-01-01T00:00:00") + np.arange(rows) * np.timedelta64(3600, "s")
    values = np.random.default_rng(0).normal(5, 3, (rows, columns))
    return Series(Path(name), tuple("abcdefgh"[:columns]), times, values)


def test_times_and_numbers_are_read(tmp_path: Path) -> None:
    read = read_series(write(tmp_path, GOOD))
    assert read.columns == ("a", "b")
    assert read.values.tolist() == [[1, 10], [2, 20.5], [-3, 30]]
    assert read.times.tolist() == [datetime(2020, 1, 1, hour) for hour in range(3)]
    assert read.step == np.timedelta64(1, "h")


@pytest.mark.parametrize(
    "text",
    [
        "a,b,date\n1,10,1990/1/1 0:00\n2,20.5,1990/1/2 0:00\n-3,30,1990/1/3 0:00\n",  # as exchange_rate writes them
        "\ufeffdate,a,b\r\n2002-01-01,1,10\r\n2002-01-08,2,20.5\r\n\r\n2002-01-15,-3,30",
        'when,a,b\n"2002-01-01T00:00:00",1,10\n2002-02-01,2,20.5\n2002-03-01, -3 ,30\n',
    ],
)
def test_other_habits_of_writing(text: str, tmp_path: Path) -> None:
    assert read_series(write(tmp_path, text)).values.tolist() == [[1, 10], [2, 20.5], [-3, 30]]
    with gzip.open(tmp_path / "s.csv.gz", "wt", encoding="utf-8") as file:
        file.write(text)
    assert read_series(tmp_path / "s.csv.gz").columns == ("a", "b")


def test_the_time_column_can_be_named(tmp_path: Path) -> None:
    text = "date,when,a\n1,2020-01-01,5\n2,2020-01-02,6\n"
    read = read_series(write(tmp_path, text), time_column="when")
    assert read.columns == ("date", "a")
    with pytest.raises(MetamixerError, match="has no column 'then'; it has date, when, a"):
        read_series(tmp_path / "series.csv", time_column="then")


def test_fractions_of_seconds_and_offsets_from_utc(tmp_path: Path) -> None:
    lines = ["date,a", *(f"2020-01-01 00:00:00.{10 * i:03},{i}" for i in range(5))]
    quick = read_series(write(tmp_path, "\n".join(lines)))
    assert quick.step == np.timedelta64(10, "ms")
    assert quick.times[-1].item() == datetime(2020, 1, 1, microsecond=40_000)
    lines = ["date,a", "2020-03-29T00:30:00+01:00,1", "2020-03-29T00:00:00+00:00,2", "2020-03-29T03:30:00+02:00,3"]
    assert read_series(write(tmp_path, "\n".join(lines))).times.tolist() == [
        datetime(2020, 3, 28, 23, 30), datetime(2020, 3, 29), datetime(2020, 3, 29, 1, 30),
    ]  # fmt: skip


def dates(*days: str) -> Series:
    return Series(Path("s.csv"), ("a",), np.array(days, "datetime64[us]"), np.zeros((len(days), 1)))


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (dates("2016-06-01", "2016-07-01", "2016-08-01"), ["2016-09-01", "2016-10-01", "2016-11-01"]),
        (dates("2019-10-15T06", "2019-11-15T06", "2019-12-15T06"), ["2020-01-15T06", "2020-02-15T06", "2020-03-15T06"]),
        (dates("2019-10-31", "2019-11-30", "2019-12-31"), ["2020-01-31", "2020-02-29", "2020-03-31"]),
        (dates("2019-03-31", "2019-06-30", "2019-09-30"), ["2019-12-31", "2020-03-31", "2020-06-30"]),
        (dates("2018-01-01", "2019-01-01", "2020-01-01"), ["2021-01-01", "2022-01-01", "2023-01-01"]),
        (dates("2020-01-30", "2020-01-31", "2020-02-01"), ["2020-02-02", "2020-02-03", "2020-02-04"]),
        (dates("2020-01-31T23:59:59.5", "2020-01-31T23:59:59.75"), ["2020-02-01", "2020-02-01T00:00:00.25"]),
    ],
)
def test_times_go_on_by_months_or_by_steps(series: Series, expected: list[str]) -> None:
    last = len(series) - 1
    assert np.array_equal(series.following(last, len(expected)), np.array(expected, "datetime64[us]"))
    assert np.array_equal(series.following(0, last), series.times[1:])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2,20.5", "2,", "row 3, column b: the value is missing"),
        ("2,20.5", "2,nan", r"row 3, column b: the value is missing or infinite \(nan\)"),
        ("2,20.5", "inf,1", "row 3, column a: the value is missing or infinite"),
        ("2,20.5", "two,20.5", "row 3, column a: 'two' is no number"),
        ("2,20.5", "2", "row 3: 2 cells where the header has 3"),
        ("01:00:00", "00:00:00", "row 3, column date: the time 2020-01-01 00:00:00 occurs twice"),
        ("02:00:00", "00:30:00", "row 4, column date: the time 2020-01-01 00:30:00 is earlier than the row before"),
        ("02:00:00", "02:00:00+01:00", "row 4, column date: some times have a UTC offset and some have none"),
        ("2020-01-01 01:00:00", "0001-01-01T00:00:00+05:00", "row 3, column date: '0001-.*' is no time such as"),
        ("2020-01-01 01:00:00", "soon", "row 3, column date: 'soon' is no time such as 2016-07-01 00:00:00"),
        ("date,a,b", "date,a,a", "row 1: the column 'a' occurs twice"),
        ("date,a,b", "date,a,", "row 1: a column has no name"),
    ],
)
def test_cells_that_are_wrong(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in GOOD
    with pytest.raises(MetamixerError, match=rf"series.csv,? {message}"):
        read_series(write(tmp_path, GOOD.replace(old, new)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "series.csv holds 0 rows below its header"),
        (GOOD.splitlines()[0] + "\n2020-01-01,1,2\n", "holds 1 rows below its header"),
        ("date\n2020-01-01\n2020-01-02\n", "holds times alone"),
    ],
)
def test_files_without_a_series(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(MetamixerError, match=message):
        read_series(write(tmp_path, text))


def test_what_is_no_csv_file(tmp_path: Path) -> None:
    for path, message in [(tmp_path / "nowhere.csv", "no such file"), (tmp_path, "is a folder")]:
        with pytest.raises(MetamixerError, match=message):
            read_series(path)
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(MetamixerError, match=r"b.csv cannot be read as a CSV file \(it is no text\)"):
        read_series(tmp_path / "b.csv")
    (tmp_path / "c.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(MetamixerError, match=r"c.csv.gz cannot be read as a CSV file"):
        read_series(tmp_path / "c.csv.gz")


def test_a_damaged_gzip_file(tmp_path: Path) -> None:
    lines = [f"{np.datetime64('2020-01-01') + i},{i * i % 997}" for i in range(2000)]
    whole = gzip.compress("\n".join(["date,a", *lines]).encode())
    for start in range(10, len(whole) - 10, len(whole) // 20):
        (tmp_path / "d.csv.gz").write_bytes(whole[:start] + bytes(8) + whole[start + 8 :])
        with pytest.raises(MetamixerError, match=r"d.csv.gz"):
            read_series(tmp_path / "d.csv.gz")


def test_splits_of_the_literature() -> None:
    hours = split_rows(series(17420, name="ETTh1.csv.gz"))
    assert hours == {"train": (0, 8640), "val": (8640, 11520), "test": (11520, 14400)}
    assert split_rows(series(69680, name="ETTm2.csv"))["test"] == (46080, 57600)
    # As exchange_rate: 7588 rows, the tenth in the middle takes what rounding leaves.
    assert split_rows(series(7588)) == {"train": (0, 5311), "val": (5311, 6071), "test": (6071, 7588)}
    assert split_rows(series(20000), "ett_hour") == hours
    assert [usual_split(series(5, name=name)) for name in ("etth2.csv", "ETTm1.csv.gz", "a.csv")] == [
        "ett_hour", "ett_minute", "ratio",
    ]  # fmt: skip
    with pytest.raises(MetamixerError, match=r"ETTh1.csv holds 100 rows; the split .* needs 14400"):
        split_rows(series(100, name="ETTh1.csv"))


def test_standardisation_is_of_the_training_rows_and_can_be_undone() -> None:
    read = series(100)
    scale = Standardisation.of(read, (0, 70))
    standard = scale.apply(read.values)
    assert standard[:70].mean(0) == pytest.approx([0, 0], abs=1e-12)
    assert standard[:70].std(0) == pytest.approx([1, 1])
    np.testing.assert_allclose(scale.undo(standard), read.values, rtol=1e-12)
    read.values[:70, 1] = 4
    with pytest.raises(MetamixerError, match=r"series.csv, column b: the value is 4 in all training rows \(2 to 71\)"):
        Standardisation.of(read, (0, 70))


def test_every_window_once_and_in_its_part() -> None:
    """The literature's numbers for ETTh1: 8449, 2785 and 2785 windows of 96 + 96 rows."""
    read = series(17420, 1, "ETTh1.csv")
    read.values[:, 0] = np.arange(17420)
    rows = split_rows(read)
    parts = windows_of(read, Standardisation(np.zeros(1), np.ones(1)), rows, 96, 96)
    assert {part: len(windows) for part, windows in parts.items()} == {"train": 8449, "val": 2785, "test": 2785}
    for part, windows in parts.items():
        first, last = windows[0], windows[len(windows) - 1]
        assert first[1][0, 0] == max(96, rows[part][0])
        assert last[1][-1, 0] == rows[part][1] - 1
        assert last[0][-1, 0] + 1 == last[1][0, 0]
        past, future = windows.stacked(len(windows) - 3, len(windows) + 5)
        assert past.shape == (3, 96, 1)
        assert np.array_equal(past[-1], last[0])
        assert np.array_equal(future[-1], last[1])
    with pytest.raises(IndexError):
        parts["val"][2785]


def test_parts_shorter_than_a_window() -> None:
    read = series(100)
    scale = Standardisation.of(read, (0, 70))
    with pytest.raises(MetamixerError, match=r"holds 100 rows, of which the val part \(10 rows\) has no window of 20"):
        windows_of(read, scale, split_rows(read), 20, 11)
    assert len(windows_of(read, scale, split_rows(read), 20, 10)["val"]) == 1
    assert len(Windows(read.values, (0, 5), 4, 2)) == 0
