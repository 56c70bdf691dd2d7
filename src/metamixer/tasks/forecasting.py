"""Forecasting: tables of numbers over time, mean squared error, MSE and MAE on standardised values, plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.data.files import replace_when_done
from metamixer.data.tables import write_table
from metamixer.data.time_series import (
    Part,
    Series,
    Split,
    Standardisation,
    Windows,
    read_series,
    split_rows,
    usual_split,
    windows_of,
)
from metamixer.errors import MetamixerError
from metamixer.limits import Count, Depth, Kernel, Ratio, ShareBelowOne, Width, check_settings
from metamixer.networks import FFNetTSF, about, create_network, save_network
from metamixer.ops.allocator import keep_freed_memory
from metamixer.printing import as_utf8
from metamixer.tasks.evaluation_mode import evaluation_mode
from metamixer.tasks.figure_picture import figure_picture
from metamixer.tasks.sharing import in_order, shared
from metamixer.tasks.task import Task

#: From ``n × lookback × variables`` to ``n × horizon × variables``, standardised.
Forecaster = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass
class Forecasting(Task):
    """The next values of a series of several variables.

    Args:
        model: ``ffnet_tsf``.
        data: a CSV file (or ``.csv.gz``) with a column of times and numbers in all others.
        time_column: name of the column of times; by default the one named date, time …, else the first.
        split: how training, validation and test part are cut (:func:`metamixer.data.time_series.split_rows`).
        lookback: rows read.
        horizon: rows forecast.
        ffn_ratio: hidden width of the channel mixers, as a multiple of ``dim``.
        dim: features per patch.
        depth: blocks.
        patch: rows in a patch.
        stride: rows between the beginnings of two patches.
        kernel_size: of the convolutions along the patches.
        small_kernel: beside the large one in the channel mixers.
        drop_rate: dropout inside the channel mixers.
        head_drop_rate: dropout on the forecast.
        checkpoint: weights to start from.

    All variables are standardised by their mean and deviation over the training part.
    """

    model: str = "ffnet_tsf"
    data: str = ""
    time_column: str | None = None
    split: Split = "auto"
    lookback: Count = 96
    horizon: Count = 96
    ffn_ratio: Ratio = 2
    dim: Width = 64
    depth: Depth = 1
    patch: Kernel = 4
    stride: Kernel = 2
    kernel_size: Kernel = 51
    small_kernel: Kernel = 5
    drop_rate: ShareBelowOne = 0.7
    head_drop_rate: ShareBelowOne = 0.0
    checkpoint: str | None = None

    metric = "mse"
    greater_is_better = False

    def __post_init__(self) -> None:
        check_settings(self)

    def open(self) -> None:
        if not torch.accelerator.is_available():
            keep_freed_memory()  # a third of a training step's time
        self.series = read_series(self.data, self.time_column)
        rows = split_rows(self.series, self.split)
        self.scale = Standardisation.of(self.series, rows["train"])
        self.windows = windows_of(self.series, self.scale, rows, self.lookback, self.horizon)

    def create_model(self) -> FFNetTSF:
        model = create_network(
            self.model,
            self.checkpoint,
            channels=len(self.series.columns),
            lookback=self.lookback,
            horizon=self.horizon,
            ffn_ratio=self.ffn_ratio,
            dim=self.dim,
            depth=self.depth,
            patch=self.patch,
            stride=self.stride,
            kernel_size=self.kernel_size,
            small_kernel=self.small_kernel,
            drop_rate=self.drop_rate,
            head_drop_rate=self.head_drop_rate,
        )
        assert isinstance(model, FFNetTSF)
        return model

    def __len__(self) -> int:
        return len(self.windows["train"])

    def sample(self, index: int, size: int | None) -> tuple[Tensor, Tensor]:
        """``lookback × variables`` and ``horizon × variables``, standardised."""
        past, future = self.windows["train"][index]
        return torch.from_numpy(past), torch.from_numpy(future)

    def describe(self, index: int) -> str:
        return f"the window of {self.data} that begins in row {index + 2}"

    def collate(self, samples: Sequence[Any]) -> tuple[Tensor, Tensor]:
        past, future = zip(*samples, strict=True)
        return torch.stack(past), torch.stack(future)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        past, future = batch
        return F.mse_loss(model(past).float(), future)

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """MSE and MAE on the validation part."""
        return self.errors(model, "val", share=True)

    def errors(self, model: nn.Module, part: Part, share: bool = False) -> dict[str, float]:
        """``mse`` and ``mae`` on every window of a part, ``test`` for what the literature reports.

        With ``share`` the processes of a distributed run, all of which call this, forecast a part of them each.
        """
        mse, mae = forecast_errors(network_forecaster(model), self.windows[part], share=share)
        return {"mse": mse, "mae": mae}

    def save(self, model: nn.Module, path: Path) -> None:
        facts = {
            "split": usual_split(self.series) if self.split == "auto" else self.split,
            "time_column": self.time_column,
            "columns": list(self.series.columns),
            "mean": self.scale.mean.tolist(),
            "deviation": self.scale.deviation.tolist(),
        }
        save_network(model, path, facts)


# --- Errors and baselines --------------------------------------------------------------------------------------------


def forecast_errors(
    forecaster: Forecaster, windows: Windows, batch_size: int = 512, share: bool = False
) -> tuple[float, float]:
    """MSE and MAE over every window, every step of the horizon and every variable, none left out.

    With ``share`` the processes of a distributed run take batches in turn.
    """

    def errors(batches: range) -> list[tuple[float, float, int]]:
        """Sums of squared and absolute errors, and how many numbers, of each batch."""
        sums = []
        for start in (batch * batch_size for batch in batches):
            past, future = windows.stacked(start, start + batch_size)
            error = forecaster(past).astype(np.float64) - future
            sums.append((float((error**2).sum()), float(np.abs(error).sum()), error.size))
        return sums

    batches = -(-len(windows) // batch_size)
    squared, absolute, counts = zip(*in_order(shared(batches, errors, share)), strict=True)
    return sum(squared) / sum(counts), sum(absolute) / sum(counts)


def network_forecaster(model: nn.Module) -> Forecaster:
    """A network as a function of arrays, in evaluation mode, on its device; it is left in the mode it was in."""
    device = next(model.parameters()).device

    def run(past: NDArray[np.float32]) -> NDArray[np.float32]:
        with evaluation_mode(model), torch.inference_mode():
            return model(torch.from_numpy(np.ascontiguousarray(past)).to(device)).float().cpu().numpy()

    return run


def seasonal_naive(season: int, horizon: int) -> Forecaster:
    """What was one season ago comes again; a season of 1 repeats the last value."""
    places = np.arange(horizon) % season - season
    return lambda past: past[:, places]


def season_of(series: Series, lookback: int) -> int:
    """Rows in a day for steps below a day, in a week for days, in a year for weeks and months.

    1, which repeats the last value, for other steps, and where the season is longer than the lookback.
    """
    day, week = np.timedelta64(1, "D"), np.timedelta64(7, "D")
    step = series.step
    if step < day:
        season = round(day / step)
    elif step == day:
        season = 7
    elif step == week:
        season = 52
    else:
        season = 12 if 28 * day <= step <= 31 * day else 1
    return season if season <= lookback else 1


def fit_linear(train: Windows, validation: Windows, penalties: Sequence[float] = (1e-4, 1e-2, 1.0)) -> Forecaster:
    """Ridge regression from the lookback to the horizon, one for all variables, of values less the window's last one.

    That is NLinear (arXiv 2205.13504) solved in closed form. The penalty, as a multiple of the mean squared input, is
    the one with the least validation error.
    """
    lookback, horizon = train.lookback, train.horizon
    gram, target = np.zeros((lookback + 1, lookback + 1)), np.zeros((lookback + 1, horizon))
    for start in range(0, len(train), 1024):
        past, future = train.stacked(start, start + 1024)
        last = past[:, -1:]
        x, y = ((part - last).transpose(0, 2, 1).reshape(-1, part.shape[1]) for part in (past, future))
        x = np.concatenate([x, np.ones((len(x), 1), x.dtype)], axis=1).astype(np.float64)
        gram += x.T @ x
        target += x.T @ y
    ridge = np.diag([*[gram.trace() / len(gram)] * lookback, 0.0])  # the constant is free
    ridge[lookback - 1, lookback - 1] += 1.0  # the last value less itself is 0: keeps the system solvable

    def forecaster(penalty: float) -> Forecaster:
        weights = np.linalg.solve(gram + penalty * ridge, target).astype(np.float32)

        def run(past: NDArray[np.float32]) -> NDArray[np.float32]:
            last = past[:, -1:]
            changes = np.einsum("nlv,lh->nhv", past - last, weights[:-1], optimize=True)
            return last + changes + weights[-1][:, None]

        return run

    return min((forecaster(penalty) for penalty in penalties), key=lambda run: forecast_errors(run, validation)[0])


@dataclass(frozen=True)
class ForecastMetrics:
    """MSE and MAE on standardised values over ``count`` windows: the network, the linear baseline, seasonal naive."""

    mse: float
    mae: float
    linear_mse: float
    linear_mae: float
    naive_mse: float
    naive_mae: float
    season: int
    count: int


def evaluate_series(
    model: FFNetTSF,
    data: str | Path,
    part: Part = "test",
    split: Split | None = None,
    time_column: str | None = None,
) -> ForecastMetrics:
    """How well a network forecasts a part of a series, beside two baselines fitted to its training part.

    Args:
        model: the network, used on its device.
        data: the CSV file; it is standardised as in training where the model's file says how, else by its own
            training part.
        part: which windows count.
        split, time_column: as in :class:`Forecasting`; by default as the model's file says.

    Raises MetamixerError as reading does, and where the file's columns are not those of the model.
    """
    series = _series_for(model, data, time_column)
    rows = _rows_for(model, series, split)
    windows = windows_of(series, _scale_for(model, series, split), rows, model.lookback, model.horizon)
    season = season_of(series, model.lookback)
    found = [
        forecast_errors(forecaster, windows[part])
        for forecaster in (
            network_forecaster(model),
            fit_linear(windows["train"], windows["val"]),
            seasonal_naive(season, model.horizon),
        )
    ]
    return ForecastMetrics(*found[0], *found[1], *found[2], season, len(windows[part]))


def _series_for(model: FFNetTSF, data: str | Path, time_column: str | None) -> Series:
    """Read with the column of times that the model's file says, if none is told; the columns are checked."""
    facts = about(model)
    series = read_series(data, time_column or facts.get("time_column"))
    columns = facts.get("columns")
    if columns is not None and tuple(columns) != series.columns:
        missing = [name for name in columns if name not in series.columns]
        said = f"lacks the column {missing[0]!r}" if missing else "has other columns or another order"
        raise MetamixerError(f"{series.path} {said}; the model was trained on {', '.join(columns)}")
    if len(series.columns) != model.channels:
        raise MetamixerError(f"{series.path} has {len(series.columns)} variables, the model forecasts {model.channels}")
    return series


def _rows_for(model: FFNetTSF, series: Series, split: Split | None) -> dict[Part, tuple[int, int]]:
    """Cut as the model's file says, if nothing else is told: its training rows must not be tested on."""
    return split_rows(series, split or about(model).get("split", "auto"))


def _scale_for(model: FFNetTSF, series: Series, split: Split | None) -> Standardisation:
    """As the model's file says, else from the series' own training part."""
    facts = about(model)
    if "mean" in facts:
        return Standardisation(np.array(facts["mean"]), np.array(facts["deviation"]))
    return Standardisation.of(series, _rows_for(model, series, split)["train"])


# --- Results ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forecast:
    """The next values of a series, in its own units.

    Args:
        columns: names of the variables.
        times: one per step of the horizon.
        values: ``horizon × variables``.
        past_times: of the rows that were read.
        past: ``lookback × variables``.
        truth: ``known × variables``, as far as the file goes on behind the rows that were read.
        source: the file.
    """

    columns: tuple[str, ...]
    times: NDArray[np.datetime64]
    values: NDArray[np.float64]
    past_times: NDArray[np.datetime64] = field(repr=False)
    past: NDArray[np.float64] = field(repr=False)
    truth: NDArray[np.float64] = field(repr=False)
    source: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Times and values by column, ready for JSON."""
        return {
            "source": self.source and as_utf8(self.source),
            "times": [_written(time, "T") for time in self.times],
            "values": {name: self.values[:, i].tolist() for i, name in enumerate(self.columns)},
        }

    def write_csv(self, path: str | Path) -> None:
        """One row per step: its time and the forecast of every variable."""
        rows = zip(self.times, self.values.tolist(), strict=True)
        write_table(path, ["date", *self.columns], ([_written(time, " "), *row] for time, row in rows))

    def draw(self, variables: int = 7) -> Image.Image:
        """One panel for each of the first variables: the past, the forecast, and the truth where it is known."""
        from matplotlib.figure import Figure

        shown = min(variables, len(self.columns))
        figure = Figure(figsize=(10, 1.0 + 1.6 * shown), layout="constrained")
        for i, axes in enumerate(figure.subplots(shown, 1, sharex=True, squeeze=False)[:, 0]):
            axes.plot(self.past_times, self.past[:, i], color="0.6", linewidth=1, label="past")
            known = len(self.truth)
            axes.plot(self.times[:known], self.truth[:, i], color="0.2", linewidth=1, label="truth" if known else None)
            axes.plot(self.times, self.values[:, i], color="#1f6fb2", linewidth=1.6, label="forecast")
            axes.set_ylabel(self.columns[i].replace("$", r"\$"))
            axes.spines[["top", "right"]].set_visible(False)
            if i == 0:
                axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
        figure.autofmt_xdate()
        return figure_picture(figure)

    def save(self, folder: str | Path, name: str) -> list[Path]:
        """Write ``NAME.csv`` and the plot ``NAME.png`` into a folder; returns their paths."""
        table, plot = Path(folder, f"{name}.csv"), Path(folder, f"{name}.png")
        self.write_csv(table)
        with replace_when_done(plot) as temporary:
            self.draw().save(temporary, "PNG")
        return [table, plot]


def _written(time: np.datetime64, between: str) -> str:
    """ISO 8601, fractions of a second only where there are some."""
    moment: datetime = time.astype("datetime64[us]").item()
    return moment.isoformat(between)


def forecast(
    model: FFNetTSF,
    data: str | Path,
    start: int | None = None,
    time_column: str | None = None,
    split: Split | None = None,
) -> Forecast:
    """The values behind the end of a series, or behind a row in it.

    Args:
        model: the network (left in its mode, used on its device).
        data: a CSV file with the columns that the model was trained on.
        start: how many rows of the file are known; by default all. What follows is returned as the truth.
        time_column: name of the column of times; by default as the model's file says.
        split: for a model whose file does not tell how its training data were standardised.

    Raises MetamixerError as :func:`metamixer.data.time_series.read_series` does, for other columns, and for fewer rows
    than the model reads.
    """
    series = _series_for(model, data, time_column)
    known = len(series) if start is None else start
    if not model.lookback <= known <= len(series):
        raise MetamixerError(
            f"{series.path} holds {len(series)} rows; a forecast behind row {known} wants {model.lookback} before it"
        )
    scale = _scale_for(model, series, split)
    past = series.values[known - model.lookback : known]
    standardised = scale.apply(past)[None].astype(np.float32)
    values = scale.undo(network_forecaster(model)(standardised)[0].astype(np.float64))
    return Forecast(
        columns=series.columns,
        times=series.following(known - 1, model.horizon),
        values=values,
        past_times=series.times[known - model.lookback : known],
        past=past,
        truth=series.values[known : known + model.horizon],
        source=str(data),
    )
