"""Recipes for forecasting: the released settings (scripts of ysj9909/FFNet), one per data set.

``--horizon`` changes the horizon.

The release trains for up to 100 epochs at a learning rate that falls by a tenth an epoch from the fourth on, and stops
when validation has not improved for a while. The learning rates of all its epochs sum up to about 13 of the first; a
cosine over 26 epochs, which has the same sum, stands for that here, and the epoch with the least validation error is
kept as there. Reported are means over the horizons 96, 192, 336 and 720 of MSE / MAE on standardised values.
"""

from __future__ import annotations

from metamixer.tasks.forecasting import Forecasting
from metamixer.train.config import TrainConfig
from metamixer.train.recipes.registry import recipe


def _released(task: Forecasting, batch_size: int, lr: float = 1e-4) -> TrainConfig:
    """Adam without weight decay, warm-up, clipping or averaging."""
    return TrainConfig(
        task,
        epochs=26,
        batch_size=batch_size,
        lr=lr,
        opt="adam",
        weight_decay=0.0,
        warmup_epochs=0.0,
        clip_grad=0.0,
        ema_decay=0.0,
        channels_last=False,
        workers=0,
    )


@recipe
def etth1() -> TrainConfig:
    """ETTh1, hourly, 7 variables.

    Source: scripts/ETTh1.sh, the same for all horizons. Reported: 0.376 / 0.390 over all four ETT data sets. At horizon
    96 seasonal naive (a day) has 0.512 / 0.433 and a linear model 0.383 / 0.392 on the test part.
    Command: ``metamixer train etth1 --data ETTh1.csv --horizon 96``; 26 epochs take some minutes on two cores.
    """
    return _released(Forecasting(ffn_ratio=2, drop_rate=0.7), batch_size=512)


@recipe
def etth2() -> TrainConfig:
    """ETTh2, hourly, 7 variables.

    Source: scripts/ETTh2.sh; at horizon 720 ``--drop-rate 0.85 --head-drop-rate 0.5``. Reported: 0.376 / 0.390 over all
    four ETT data sets. At horizon 96 seasonal naive (a day) has 0.391 / 0.380 and a linear model 0.289 / 0.338.
    Command: ``metamixer train etth2 --data ETTh2.csv --horizon 96``.
    """
    return _released(Forecasting(ffn_ratio=8, drop_rate=0.8), batch_size=512)


@recipe
def ettm1() -> TrainConfig:
    """ETTm1, every quarter of an hour, 7 variables.

    Source: scripts/ETTm1.sh; above horizon 96 ``--head-drop-rate 0.1``. Reported: 0.376 / 0.390 over all four ETT data
    sets. Command: ``metamixer train ettm1 --data ETTm1.csv --horizon 96``.
    """
    return _released(Forecasting(ffn_ratio=12, drop_rate=0.6), batch_size=2048)


@recipe
def ettm2() -> TrainConfig:
    """ETTm2, every quarter of an hour, 7 variables.

    Source: scripts/ETTm2.sh; at horizon 336 ``--drop-rate 0.7``, at 720 ``--head-drop-rate 0.1``. Reported: 0.376 /
    0.390 over all four ETT data sets. Command: ``metamixer train ettm2 --data ETTm2.csv --horizon 96``.
    """
    return _released(Forecasting(ffn_ratio=12, drop_rate=0.6, head_drop_rate=0.2), batch_size=2048)


@recipe
def weather() -> TrainConfig:
    """Weather, every ten minutes, 21 variables.

    Source: scripts/weather.sh; from horizon 336 on ``--batch-size 512``. Reported: 0.244 / 0.274.
    Command: ``metamixer train weather --data weather.csv --horizon 96``.
    """
    return _released(Forecasting(ffn_ratio=12, drop_rate=0.6), batch_size=256)


@recipe
def electricity() -> TrainConfig:
    """Electricity (ECL), hourly, 321 variables.

    Source: scripts/ECL.sh. Reported: 0.184 / 0.278.
    Command: ``metamixer train electricity --data electricity.csv --horizon 96``; wants a GPU.
    """
    return _released(Forecasting(ffn_ratio=12, drop_rate=0.9), batch_size=128)


@recipe
def traffic() -> TrainConfig:
    """Traffic, hourly, 862 variables.

    Source: scripts/traffic.sh. Reported: 0.517 / 0.338.
    Command: ``metamixer train traffic --data traffic.csv --horizon 96``; wants a GPU.
    """
    return _released(Forecasting(ffn_ratio=12, drop_rate=0.9), batch_size=128, lr=5e-5)


@recipe
def exchange() -> TrainConfig:
    """Exchange rates, daily, 8 variables.

    The release has no script for it; these are the settings of ETTh1. Reported: 0.343 / 0.392. At horizon 96 the last
    value has 0.081 / 0.196, seasonal naive (a week) 0.086 / 0.205 and a linear model 0.083 / 0.198.
    Command: ``metamixer train exchange --data exchange_rate.csv --horizon 96``.
    """
    return _released(Forecasting(ffn_ratio=2, drop_rate=0.7), batch_size=512)


@recipe
def illness() -> TrainConfig:
    """National illness (ILI), weekly, 7 variables, 36 weeks read and 24 forecast.

    The paper does not report it; the settings are those of ETTh1 with a batch that suits 617 training windows.
    Command: ``metamixer train illness --data national_illness.csv``.
    """
    return _released(Forecasting(lookback=36, horizon=24, ffn_ratio=2, drop_rate=0.7), batch_size=32)
