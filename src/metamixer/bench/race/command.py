"""The verb ``metamixer race``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import OmitArgPrefixes, Suppress, arg

from metamixer.bench.race.grid import MIXERS, race
from metamixer.bench.race.report import standings_table
from metamixer.bench.race.task import RaceTask
from metamixer.limits import Count, Seed, Threads, checked
from metamixer.printing import complain, say
from metamixer.train.config import TrainConfig
from metamixer.train.interruption import TrainingInterruptedError


@dataclass(frozen=True)
class _Training(TrainConfig):
    """The settings of every training.

    Args:
        out: the race's folder.
        seed: the first of the seeds: of weights, order and augmentation.
    """

    out: str | None = "runs/race"
    # What a race decides by itself is no flag.
    overwrite: Suppress[bool] = False
    resume: Suppress[str | None] = None
    allow_changes: Suppress[bool] = False
    seed: Seed = 0


_TRAINING = _Training(RaceTask(data=tyro.MISSING))


def race_command(arguments: Sequence[str]) -> int:
    """Race mixers: ``metamixer race --data DIR --mixers aff,additive --epochs 10 --seeds 3``."""

    @checked
    def command(
        mixers: Annotated[
            tuple[str, ...],
            arg(help="who races, with commas between; options are written as dsm:dynamic=False:bands=7."),
        ] = (",".join(MIXERS),),
        seeds: Annotated[Count, arg(help="trainings of every mixer; their seeds count from --seed.")] = 3,
        same_parameters: Annotated[
            bool, arg(help="widen the FFNs so that all networks have as many parameters as the largest.")
        ] = False,
        threads: Annotated[Threads, arg(help="threads of the latencies.")] = 1,
        rounds: Annotated[Count, arg(help="rounds of the latencies.")] = 50,
        training: OmitArgPrefixes[_Training] = _TRAINING,
    ) -> int:
        try:
            result = race(training, mixers, seeds, same_parameters=same_parameters, threads=threads, rounds=rounds)
        except TrainingInterruptedError as interrupted:
            complain(interrupted)
            return interrupted.exit_code
        standings_table(result).show()
        say(f"report: {Path(training.folder, 'report.html')}")
        return 0

    return tyro.cli(
        command,
        prog="metamixer race",
        args=list(arguments),
        description="Train one backbone with one mixer after another and compare them.\n\nEvery training has the same"
        " data, in the same order, and the same settings, which are those of `metamixer train`. Finished trainings are"
        " not run again: the same command goes on after a kill, and takes more mixers or seeds.",
    )
