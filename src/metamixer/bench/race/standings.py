"""The numbers of a race: each cell's, and each mixer's over its seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metamixer.bench.machine import Machine
from metamixer.bench.race.speed import Speed
from metamixer.schemas import MEASURED


@dataclass(frozen=True)
class Cell:
    """One training: a mixer and a seed.

    Attributes:
        mixer: the contender's label.
        seed: of weights, order and augmentation.
        top1, top5: validation accuracy in percent after the last epoch, not after the best: choosing the epoch on the
            validation pictures would flatter.
        images_per_second: median over the epochs of the run itself, reading included.
        curve: the run's row of metrics after every epoch.
    """

    __pydantic_config__ = MEASURED  # as it is read from a file

    mixer: str
    seed: int
    top1: float
    top5: float
    images_per_second: float
    curve: list[dict[str, float]]

    @classmethod
    def of(cls, mixer: str, seed: int, rows: Sequence[Mapping[str, float]]) -> Cell:
        """From a finished run's rows of metrics."""
        speed = statistics.median(row["images_per_second"] for row in rows)
        return cls(mixer, seed, rows[-1]["top1"], rows[-1]["top5"], speed, [dict(row) for row in rows])


@dataclass(frozen=True)
class Standing:
    """One mixer over its seeds.

    Attributes:
        mixer: the contender's label.
        seeds: how many.
        top1: mean of the validation accuracy in percent.
        top1_std: its standard deviation over the seeds (n − 1 in the denominator); None for one seed.
        behind: how far the mean lies below the first mixer's, in percentage points.
        behind_error: standard error of that difference, from the differences at equal seeds; None for one seed, and
            for the first mixer.
        speed: size and speed.
    """

    mixer: str
    seeds: int
    top1: float
    top1_std: float | None
    behind: float
    behind_error: float | None
    speed: Speed


@dataclass(frozen=True)
class RaceResult:
    """What is known of a race.

    Attributes:
        settings: of every training, by name; all but mixer and seed.
        pictures: counts of classes, of training and of validation pictures.
        machine: the one that the speeds were measured on.
        threads: of the latencies.
        cells: the finished trainings.
        standings: the mixers, the most accurate first.
    """

    settings: dict[str, Any]
    pictures: dict[str, int]
    machine: Machine
    threads: int
    cells: list[Cell]
    standings: list[Standing]


def standings(cells: Sequence[Cell], speeds: Mapping[str, Speed]) -> list[Standing]:
    """Every mixer that finished on all seeds that any did, the most accurate first."""
    seeds = sorted({cell.seed for cell in cells})
    top1 = {(cell.mixer, cell.seed): cell.top1 for cell in cells}
    values = {
        mixer: [top1[mixer, seed] for seed in seeds] for mixer in speeds if all((mixer, seed) in top1 for seed in seeds)
    }
    order = sorted(values, key=lambda mixer: -statistics.mean(values[mixer]))
    found = []
    for mixer in order:
        own, first = values[mixer], values[order[0]]
        differences = [a - b for a, b in zip(first, own, strict=True)]
        error = None
        if len(seeds) > 1 and mixer != order[0]:
            error = statistics.stdev(differences) / math.sqrt(len(seeds))
        deviation = statistics.stdev(own) if len(seeds) > 1 else None
        mean = statistics.mean(own)
        found.append(Standing(mixer, len(seeds), mean, deviation, statistics.mean(differences), error, speeds[mixer]))
    return found
