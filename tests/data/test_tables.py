"""Tables that spreadsheets show and do not run, and that we read back as they were."""

from __future__ import annotations

import csv
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamixer.bench.command import save_report
from metamixer.bench.latency import LatencyRow
from metamixer.bench.race.report import write_records
from metamixer.data.tables import as_cell, from_cell, read_table, write_table
from metamixer.data.time_series import read_series
from metamixer.errors import MetamixerError
from metamixer.tasks.forecasting import Forecast

# NUL is refused by the csv module of Python 3.10, halves of surrogates are escaped.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
SIGNS = st.builds(
    str.__add__, st.sampled_from(["", "'", "''"]), st.sampled_from(["=", "+", "-", "@", "\t", "\r", "＝"])
)
FORMULAS = st.builds(str.__add__, SIGNS, TEXTS)
RUN_BY_SPREADSHEETS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


@pytest.mark.promise("bad input", "no text in a CSV table begins as a formula, and it is read back as it was")
@given(texts=st.lists(st.tuples(TEXTS | FORMULAS, FORMULAS), max_size=4))
def test_no_text_is_a_formula_and_all_is_read_back(tmp_path_factory: Any, texts: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("tables") / "table.csv"
    write_table(path, ["=name", "other"], texts)
    with path.open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not any(cell.startswith(RUN_BY_SPREADSHEETS) for cell in cells)
    assert read_table(path) == [{"=name": one, "other": other} for one, other in texts]
    assert all(from_cell(as_cell(text)) == text for row in texts for text in row)


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    write_table(tmp_path / "table.csv", ["a"], [[-3], [-1.5e-300], [0.1], [float("-inf")], [None]])
    text = (tmp_path / "table.csv").read_bytes().decode()
    assert text.split() == ["a", "-3", "-1.5e-300", "0.1", "-inf", '""']


def test_the_tables_of_bench_race_and_forecasts(tmp_path: Path) -> None:
    row: Any = {field.name: 1 for field in fields(LatencyRow)} | {"model": "=1+1"}
    save_report(SimpleNamespace(rows=[LatencyRow(**row)]), tmp_path / "bench.csv")  # type: ignore[arg-type]
    write_records(tmp_path / "race.csv", [{"mixer": "@sum", "top1": -1.0}])
    times = np.array(["2020-01-01", "2020-01-02", "2020-01-03"], "datetime64[D]")
    forecast = Forecast(
        ("-OT", "+x"), times, np.arange(-3.0, 3).reshape(3, 2), times, np.zeros((3, 2)), np.zeros((0, 2))
    )
    forecast.write_csv(tmp_path / "forecast.csv")
    for name in ("bench", "race", "forecast"):
        cells = [cell for line in (tmp_path / f"{name}.csv").read_text().splitlines() for cell in line.split(",")]
        assert not any(cell.startswith(("=", "+", "@", "-O")) for cell in cells)
    assert read_table(tmp_path / "bench.csv")[0]["model"] == "=1+1"
    series = read_series(tmp_path / "forecast.csv")
    assert series.columns == forecast.columns
    assert (series.values == forecast.values).all()


@pytest.mark.parametrize(
    ("text", "reason"), [("", "it is empty"), ('a\n"b', "unexpected end of data"), ("a,b\n1\n", "row 2: 1 cells where")]
)
def test_what_is_no_table_of_ours(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(MetamixerError, match=reason):
        read_table(tmp_path / "table.csv")
