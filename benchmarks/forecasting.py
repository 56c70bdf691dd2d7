"""How well does the forecasting network forecast, beside a linear model and seasonal naive? Several seeds, test parts.

    python benchmarks/forecasting.py --data FOLDER --runs etth1:96 etth1:336 etth2:96 etth2:336 exchange:96 --seeds 3

FOLDER holds ETTh1.csv, ETTh2.csv, exchange_rate.csv … (or ``.csv.gz``). Every run trains its recipe with every seed,
takes the epoch with the least validation error and measures it on the test part: standardised values, every window.
Appends to ``forecasting.csv`` and writes ``forecasting.md`` beside this file after every run, and leaves out what the
CSV already has, so that it can be interrupted; with ``--seeds 0`` it writes the table alone.
"""

from __future__ import annotations

import csv
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from metamixer.bench.machine import this_machine
from metamixer.networks import FFNetTSF, create_network
from metamixer.tasks.forecasting import evaluate_series
from metamixer.train import train
from metamixer.train.recipes import get_recipe

FILES = {
    "etth1": "ETTh1",
    "etth2": "ETTh2",
    "ettm1": "ETTm1",
    "ettm2": "ETTm2",
    "exchange": "exchange_rate",
    "illness": "national_illness",
}
# The paper's means over four horizons (arXiv 2406.02021); all four ETT data sets have one.
REPORTED = {"etth1": "0.376 / 0.390", "etth2": "0.376 / 0.390", "exchange": "0.343 / 0.392"}
RESULTS = Path(__file__).with_suffix(".csv")


def main(
    data: Path,
    runs: tuple[str, ...] = ("etth1:96", "etth1:336", "etth2:96", "etth2:336", "exchange:96"),
    seeds: int = 3,
    epochs: int | None = None,
    threads: int | None = None,
) -> None:
    """Train, measure, write.

    Args:
        data: folder of the CSV files.
        runs: recipe and horizon.
        seeds: 0, 1, 2 …
        epochs: instead of the recipe's; 1 tries the script out.
        threads: that PyTorch computes with; its own choice by default.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    for run in runs:
        name, horizon = run.split(":")
        file = next(path for end in (".csv", ".csv.gz") if (path := data / (FILES[name] + end)).exists())
        for seed in range(seeds):
            config = get_recipe(name)
            task = replace(config.task, data=str(file), horizon=int(horizon))
            config = replace(config, task=task, seed=seed, epochs=epochs or config.epochs)
            about = {"recipe": name, "horizon": horizon, "seed": str(seed), "epochs": str(config.epochs)}
            if any(about.items() <= row.items() for row in _rows()):
                continue
            with tempfile.TemporaryDirectory() as folder:
                result = train(replace(config, out=folder, overwrite=True))
                model = create_network("ffnet_tsf", checkpoint=result.best)
            assert isinstance(model, FFNetTSF)
            _append(about | {"best_epoch": str(result.epoch)} | asdict(evaluate_series(model, file)))
            _write_table()
    _write_table()


def _rows() -> list[dict[str, str]]:
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def _append(row: dict[str, object]) -> None:
    begins = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if begins:
            writer.writeheader()
        writer.writerow(row)


def _write_table() -> None:
    rows = _rows()
    lines = [
        "# Forecasting",
        "",
        "MSE / MAE on the standardised test part, every window; lookback 96. The network: mean (and deviation of",
        "the MSE) over seeds, the epoch of least validation error. Linear: NLinear by ridge regression. Naive: one",
        "day, week or value ago. Reported: the paper's mean over the horizons 96, 192, 336 and 720 (ETT: over four",
        "data sets).",
        f"{this_machine()}.",
        "",
        "| recipe | horizon | windows | seeds | network | linear | naive | reported |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((row["recipe"], row["horizon"], row["epochs"]) for row in rows):
        own = [row for row in rows if (row["recipe"], row["horizon"], row["epochs"]) == key]
        mse, mae = (np.array([float(row[metric]) for row in own]) for metric in ("mse", "mae"))
        first = own[0]
        deviation = f" (± {mse.std():.3f})" if len(own) > 1 else ""
        lines.append(
            f"| {key[0]} | {key[1]} | {first['count']} | {len(own)}"
            f" | {mse.mean():.3f} / {mae.mean():.3f}{deviation}"
            f" | {float(first['linear_mse']):.3f} / {float(first['linear_mae']):.3f}"
            f" | {float(first['naive_mse']):.3f} / {float(first['naive_mae']):.3f} | {REPORTED.get(key[0], '–')} |"
        )
    lines += ["", "Made by `python benchmarks/forecasting.py --data …`; single runs in `forecasting.csv`."]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
