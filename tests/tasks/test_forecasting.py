"""Forecasting: the baselines and errors against plain loops, training, files and plots."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import metamixer as mm
from metamixer import MetamixerError
from metamixer.data.time_series import Series, Windows, read_series
from metamixer.tasks.forecasting import (
    Forecasting,
    evaluate_series,
    fit_linear,
    forecast,
    forecast_errors,
    network_forecaster,
    season_of,
    seasonal_naive,
)

SMALL = dict(lookback=12, horizon=5, dim=4, kernel_size=5, small_kernel=3, drop_rate=0.1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """200 hours of two variables with a period of 12 hours."""
    random = np.random.default_rng(0)
    with (tmp_path / "waves.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["date", "sine", "cosine"])
        for hour in range(200):
            day, rest = divmod(hour, 24)
            angle = 2 * np.pi * hour / 12
            row = 100 + 10 * np.array([np.sin(angle), np.cos(angle)]) + random.normal(size=2)
            writer.writerow([f"2020-01-{day + 1:02} {rest:02}:00:00", *row])
    return tmp_path / "waves.csv"


def task(data: Path, **kwargs: object) -> Forecasting:
    made = Forecasting(data=str(data), **(SMALL | kwargs))  # type: ignore[arg-type]
    made.open()
    return made


def test_errors_count_every_window_step_and_variable() -> None:
    values = np.random.default_rng(0).normal(size=(40, 3))
    windows = Windows(values, (0, 40), 6, 4)
    expected = [
        (values[start + 5] - values[start + 6 + step]) for start in range(31) for step in range(4)
    ]  # the last value again
    for batch_size in (1, 7, 31, 100):  # an incomplete last batch counts too
        mse, mae = forecast_errors(seasonal_naive(1, 4), windows, batch_size)
        assert mse == pytest.approx(np.mean(np.square(expected)), rel=1e-6)
        assert mae == pytest.approx(np.mean(np.abs(expected)), rel=1e-6)


def test_seasonal_naive_repeats_the_last_season() -> None:
    past = np.arange(10.0, dtype=np.float32)[None, :, None]
    assert seasonal_naive(4, 7)(past)[0, :, 0].tolist() == [6, 7, 8, 9, 6, 7, 8]
    assert seasonal_naive(1, 3)(past)[0, :, 0].tolist() == [9, 9, 9]


@pytest.mark.parametrize(
    ("step", "lookback", "season"),
    [((1, "h"), 96, 24), ((10, "ms"), 96, 1), ((15, "m"), 96, 96), ((15, "m"), 95, 1), ((1, "D"), 96, 7),
     ((7, "D"), 36, 1), ((7, "D"), 104, 52), ((30, "D"), 24, 12), ((365, "D"), 24, 1)],
)  # fmt: skip
def test_seasons(step: tuple[int, str], lookback: int, season: int) -> None:
    times = np.datetime64("2020-01-01T00:00:00") + np.arange(9) * np.timedelta64(*step)
    assert season_of(Series(Path("s.csv"), ("a",), times, np.zeros((9, 1))), lookback) == season


def test_linear_baseline_is_ridge_regression_on_differences() -> None:
    values = np.random.default_rng(0).normal(size=(300, 2)).cumsum(0)
    train, validation = Windows(values, (0, 250), 8, 3), Windows(values, (250, 300), 8, 3)
    found = fit_linear(train, validation, penalties=(1e-12,))
    x, y = [], []
    for start in range(250 - 10):
        for variable in range(2):
            window = values[start : start + 11, variable].astype(np.float32)
            x.append([*(window[:7] - window[7]), 1.0])  # the last difference is always 0
            y.append(window[8:] - window[7])
    weights = np.linalg.lstsq(np.array(x), np.array(y), rcond=None)[0]
    past, _ = validation.stacked(0, 1)
    for variable in range(2):
        window = past[0, :, variable]
        expected = window[7] + [*(window[:7] - window[7]), 1.0] @ weights
        np.testing.assert_allclose(found(past)[0, :, variable], expected, atol=1e-3)


def test_linear_baseline_finds_a_rule_and_picks_its_penalty() -> None:
    angle = 2 * np.pi * np.arange(400) / 9
    values = np.stack([np.sin(angle), 3 * np.cos(angle)], 1)
    train, validation = Windows(values, (0, 300), 18, 5), Windows(values, (300, 400), 18, 5)
    assert forecast_errors(fit_linear(train, validation), validation)[0] < 1e-3
    noise = np.random.default_rng(0).normal(size=(60, 1))
    train, validation = Windows(noise, (0, 40), 18, 5), Windows(noise, (40, 60), 18, 5)
    mild, strong = (forecast_errors(fit_linear(train, validation, (p,)), validation)[0] for p in (1e-4, 1.0))
    assert strong < mild  # 18 weights from 18 windows of noise
    assert forecast_errors(fit_linear(train, validation, (1e-4, 1.0)), validation)[0] == strong


def test_samples_are_standardised_windows(data: Path) -> None:
    made = task(data)
    past, future = made.sample(3, None)
    assert (past.shape, future.shape, past.dtype) == ((12, 2), (5, 2), torch.float32)
    values = made.scale.apply(made.series.values)
    np.testing.assert_allclose(torch.cat([past, future]), values[3:20], rtol=1e-6)
    batch = made.collate([made.sample(i, None) for i in range(4)])
    assert batch[0].shape == (4, 12, 2)
    assert made.describe(3) == f"the window of {data} that begins in row 5"


def test_training_beats_naive_and_the_file_comes_back(data: Path, tmp_path: Path) -> None:
    made = task(data, drop_rate=0.0)
    model = made.create_model()
    before = made.errors(model, "test")["mse"]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    batch = made.collate([made.sample(i, None) for i in range(len(made))])
    model.train()
    for _ in range(40):
        optimizer.zero_grad()
        made.loss(model, batch).backward()
        optimizer.step()
    after = made.errors(model, "test")
    assert after["mse"] < 0.3 * before
    assert model.training
    assert made.evaluate(model, torch.device("cpu")) == made.errors(model, "val")

    made.save(model, tmp_path / "tsf.safetensors")
    again = mm.create_model("ffnet_tsf", checkpoint=tmp_path / "tsf.safetensors")
    metrics = evaluate_series(again, data)
    assert metrics.mse == pytest.approx(after["mse"], rel=1e-6)
    assert metrics.season == 1
    assert metrics.count == len(made.windows["test"])
    assert metrics.mse < metrics.naive_mse
    assert metrics.linear_mse < metrics.naive_mse


def test_the_network_as_a_function_of_arrays(data: Path) -> None:
    model = task(data).create_model().train()
    past = np.random.default_rng(0).normal(size=(3, 12, 2)).astype(np.float32)
    expected = model.eval()(torch.from_numpy(past)).detach().numpy()
    assert np.array_equal(network_forecaster(model.train())(past), expected)
    assert model.training


class Tomorrow(nn.Module):
    """Forecasts ten times the deviation of the window's last row."""

    lookback, horizon, channels = 4, 3, 2

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(10.0))
        self.about: dict[str, object] = {"columns": ["sine", "cosine"], "mean": [100.0, 50.0], "deviation": [2.0, 5.0]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x[:, -1:].repeat(1, 3, 1)


def test_a_forecast_is_in_the_units_of_the_file(data: Path, tmp_path: Path) -> None:
    model = Tomorrow()
    result = forecast(model, data)
    last = np.array([float(cell) for cell in data.read_text().splitlines()[-1].split(",")[1:]])
    expected = np.array([100, 50]) + 10 * (last - [100, 50])
    np.testing.assert_allclose(result.values, np.tile(expected, (3, 1)), rtol=1e-5)
    assert result.to_dict()["times"] == [f"2020-01-09T{hour:02}:00:00" for hour in (8, 9, 10)]
    assert len(result.truth) == 0
    assert json.loads(json.dumps(result.to_dict()))["values"]["sine"] == pytest.approx([expected[0]] * 3, rel=1e-5)

    known = forecast(model, data, start=198)
    assert len(known.truth) == 2
    assert np.array_equal(known.truth[-1], last)
    table, plot = known.save(tmp_path, "out")
    rows = list(csv.reader(table.read_text().splitlines()))
    assert rows[0] == ["date", "sine", "cosine"]
    assert len(rows) == 4
    assert [float(cell) for cell in rows[1][1:]] == known.values[0].tolist()
    assert [row[0] for row in rows[1:]] == [f"2020-01-09 {hour:02}:00:00" for hour in (6, 7, 8)]
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (np.arange("2019-06", "2019-12", dtype="M8[M]"), ["2019-12-01T00:00:00", "2020-01-01T00:00:00"]),
        (np.datetime64("2020-01-01") + np.arange(6) * np.timedelta64(250, "ms"),
         ["2020-01-01T00:00:01.500000", "2020-01-01T00:00:01.750000", "2020-01-01T00:00:02"]),
    ],
)  # fmt: skip
def test_months_and_fractions_of_seconds(times: np.ndarray, expected: list[str], tmp_path: Path) -> None:
    lines = [f"{time},{i},{i * i}" for i, time in enumerate(times.astype("M8[ms]"))]
    (tmp_path / "a.csv").write_text("\n".join(["date,sine,cosine", *lines]))
    result = forecast(Tomorrow(), tmp_path / "a.csv")
    assert result.to_dict()["times"][: len(expected)] == expected
    assert read_series(result.save(tmp_path, "out")[0]).times.tolist() == result.times.tolist()


def test_a_trained_network_is_measured_on_what_it_was_not_trained_on(data: Path, tmp_path: Path) -> None:
    """How the series is cut and which column tells the time is kept with the weights."""
    lines = data.read_text().splitlines()
    text = "\n".join(f"{'number' if i == 0 else i * i},{line}" for i, line in enumerate(lines))
    other = tmp_path / "ETTh1.csv"  # by its name it would be cut into months
    other.write_text(text.replace("date", "when"))
    made = task(other, split="ratio", time_column="when")
    made.save(made.create_model(), tmp_path / "a.safetensors")
    model = mm.create_model("ffnet_tsf", checkpoint=tmp_path / "a.safetensors").eval()
    for part in ("train", "val", "test"):
        found = evaluate_series(model, other, part)
        assert found.count == len(made.windows[part])
        assert {"mse": found.mse, "mae": found.mae} == pytest.approx(made.errors(model, part))
    assert forecast(model, other).columns == ("number", "sine", "cosine")
    with pytest.raises(MetamixerError, match="the split into 12, 4 and 4 months needs 14400"):
        evaluate_series(model, other, split="ett_hour")
    by_name = task(data)
    by_name.save(by_name.create_model(), tmp_path / "b.safetensors")
    model = mm.create_model("ffnet_tsf", checkpoint=tmp_path / "b.safetensors")
    assert evaluate_series(model, data.rename(other)).count == len(by_name.windows["test"])


def test_a_forecast_needs_no_more_rows_than_the_network_reads(data: Path) -> None:
    model = Tomorrow()
    model.about = model.about | {"split": "ett_hour"}
    assert forecast(model, data).values.shape == (3, 2)


def test_the_plot_shows_past_forecast_and_truth(data: Path) -> None:
    blue, dark = (0x1F, 0x6F, 0xB2), (0x33, 0x33, 0x33)

    def count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
        return int((np.abs(picture.astype(int) - colour).max(-1) < 3).sum())

    behind, inside = (np.asarray(forecast(Tomorrow(), data, start).draw()) for start in (None, 190))
    assert count(behind, blue) > 50
    assert count(inside, blue) > 50
    assert count(inside, dark) > count(behind, dark)  # the truth is known there
    assert np.asarray(forecast(Tomorrow(), data).draw(variables=1)).shape[0] < behind.shape[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("sine", "sinus"), "lacks the column 'sine'; the model was trained on sine, cosine"),
        (("date,sine,cosine", "date,cosine,sine"), "has other columns or another order"),
    ],
)
def test_series_of_other_columns(data: Path, change: tuple[str, str], message: str) -> None:
    data.write_text(data.read_text().replace(*change))
    with pytest.raises(MetamixerError, match=message):
        forecast(Tomorrow(), data)


def test_series_and_settings_that_do_not_work(data: Path, tmp_path: Path) -> None:
    with pytest.raises(MetamixerError, match="holds 200 rows; a forecast behind row 3 wants 4 before it"):
        forecast(Tomorrow(), data, start=3)
    with pytest.raises(MetamixerError, match="holds 200 rows; a forecast behind row 201"):
        forecast(Tomorrow(), data, start=201)
    short = tmp_path / "short.csv"
    short.write_text("\n".join(data.read_text().splitlines()[:4]))
    with pytest.raises(MetamixerError, match=r"short.csv holds 3 rows"):
        forecast(Tomorrow(), short)
    three = mm.create_model("ffnet_tsf", channels=3, lookback=12, horizon=5)
    with pytest.raises(MetamixerError, match="has 2 variables, the model forecasts 3"):
        evaluate_series(three, data)
    with pytest.raises(MetamixerError, match="has no window of 60 rows"):
        task(data, lookback=60, horizon=60)
    for change in ({"horizon": 0}, {"drop_rate": 1.0}):
        with pytest.raises(MetamixerError, match="must be"):
            Forecasting(data=str(data), **change)  # type: ignore[arg-type]
