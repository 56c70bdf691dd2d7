"""The race itself: a grid of trainings, mixer × seed, that can be stopped and taken up at any time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from metamixer.bench.machine import this_machine
from metamixer.bench.race.contenders import Contender, check_backbone, contenders, entry, equal_parameters
from metamixer.bench.race.report import write_report
from metamixer.bench.race.speed import Speed, measure
from metamixer.bench.race.standings import Cell, RaceResult, standings
from metamixer.data.files import make_folder, read_regular
from metamixer.data.folder_lock import alone_in
from metamixer.data.tables import read_table
from metamixer.errors import MetamixerError
from metamixer.limits import CONFIG_BYTES, Count, Threads, checked, shortened
from metamixer.printing import say
from metamixer.schemas import MEASURED, Settings, validated
from metamixer.tasks.classification import Classification
from metamixer.train.config import NOT_PART_OF_THE_RESULT, TrainConfig, without_gone
from metamixer.train.interruption import TrainingInterruptedError
from metamixer.train.loop import train
from metamixer.train.run import write_json

T = TypeVar("T")

MIXERS = ("aff", "additive", "ffnified", "dsm", "attention", "pooling")


@checked
def race(
    training: TrainConfig,
    mixers: Sequence[str] = MIXERS,
    seeds: Count = 3,
    *,
    same_parameters: bool = False,
    threads: Threads = 1,
    rounds: Count = 50,
) -> RaceResult:
    """Train one backbone with one mixer after another, each with several seeds, and report.

    ``training.folder`` gets ``runs/MIXER/seed_N`` with each training's run folder, and after every seed
    ``report.html``, ``pareto.png``, ``curves.png``, ``standings.csv``, ``cells.csv`` and ``race.json``. Trainings that
    are finished are not run again, and one that was interrupted goes on from its last checkpoint: to go on after a
    kill, or to add mixers or seeds, call it again.

    Args:
        training: every training's settings; its task is a Classification (a :class:`RaceTask` to use fewer pictures)
            whose model is the backbone, its ``out`` the race's folder and its ``seed`` the first of the seeds.
        mixers: names, with options as ``dsm:dynamic=False``.
        seeds: trainings of every mixer.
        same_parameters: widen the FFNs so that all networks have as many parameters as the largest.
        threads: of latencies, within an operator.
        rounds: rounds of latencies.

    Raises MetamixerError for an unknown mixer, one that the backbone cannot take, a folder that holds a race with other
    settings, and all that training raises; TrainingInterruptedError after SIGTERM or Ctrl-C.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise MetamixerError("a race runs in one process: start it without torchrun")
    found = contenders(mixers)
    task = training.task
    if not isinstance(task, Classification):
        raise MetamixerError(f"only classification can race, not {type(task).__name__}")
    if training.resume or training.overwrite:
        raise MetamixerError("a race goes on by itself where it stopped: leave out resume and overwrite")
    check_backbone(task)
    task.open()
    for contender in found:  # before anything is written
        entry(task, contender)
    largest = None
    if same_parameters:
        found, largest = equal_parameters(task, found)
    folder = make_folder(training.folder)
    with alone_in(folder, "race"):
        settings = settings_of(training, largest)
        check_same(folder / "settings.json", settings)
        machine = this_machine()
        asked = {
            "settings": settings,
            "mixers": [asdict(contender) for contender in found],
            "machine": asdict(machine),
            "threads": threads,
            "rounds": rounds,
        }
        speeds = _speeds(folder / "speed.json", asked, lambda: measure(training, task, found, threads, rounds))
        write_json(folder / "settings.json", settings)
        counts = {"classes": len(task.classes), "training": len(task), "validation": len(task.validation)}

        cells: list[Cell] = []
        total = seeds * len(found)
        for seed in range(training.seed, training.seed + seeds):
            for contender in found:
                say(f"{contender.label}, seed {seed} ({len(cells) + 1} of {total})")
                cells.append(_cell(training, contender, seed, folder))
            result = RaceResult(settings, counts, machine, threads, cells, standings(cells, speeds))
            write_report(result, folder)
        return result


def settings_of(training: TrainConfig, largest: int | None) -> dict[str, Any]:
    """What all trainings share, ready for JSON; ``largest`` is the number of parameters that all are widened to."""
    shared = training.as_read()
    for name in (*NOT_PART_OF_THE_RESULT, "seed"):
        shared.pop(name, None)
    return {**shared, "same_parameters": largest}


def check_same(path: Path, settings: dict[str, Any]) -> None:
    """Raise MetamixerError, listing what differs, where the folder holds a race with other settings."""
    earlier = _read(path, Settings)
    if earlier is None:
        return
    earlier = without_gone(earlier)
    names = [name for name in dict.fromkeys((*earlier, *settings)) if earlier.get(name) != settings.get(name)]
    if names:
        listed = ", ".join(
            f"{name} (was {shortened(earlier.get(name))}, is {shortened(settings.get(name))})" for name in names
        )
        raise MetamixerError(f"{path.parent} holds a race with other settings: {listed}; choose another --out")


@dataclass(frozen=True)
class Speeds:
    """``speed.json``: what was asked for, and the speeds by label."""

    __pydantic_config__ = MEASURED

    asked: dict[str, Any]
    speeds: dict[str, Speed]


def _speeds(path: Path, asked: dict[str, Any], measured: Callable[[], dict[str, Speed]]) -> dict[str, Speed]:
    """The speeds in the file, or measured anew where it holds those of other contenders or another machine."""
    asked = json.loads(json.dumps(asked))  # as it reads from a file
    known = _read(path, Speeds)
    if known is not None and known.asked == asked:
        if missing := {contender["label"] for contender in asked["mixers"]} - known.speeds.keys():
            raise MetamixerError(f"{path} lacks the speed of {sorted(missing)[0]}; delete it to measure anew")
        return known.speeds
    say("measuring size and speed")
    speeds = measured()
    write_json(path, {"asked": asked, "speeds": {label: asdict(speed) for label, speed in speeds.items()}})
    return speeds


def _cell(training: TrainConfig, contender: Contender, seed: int, folder: Path) -> Cell:
    """Train one contender with one seed, or read what came of it before."""
    run = make_folder(folder / "runs" / contender.folder / f"seed_{seed}")
    finished = _read(run / "cell.json", Cell)
    if finished is not None:
        whole = len(finished.curve) == training.epochs and all(
            {"top1", "train_loss"} <= row.keys() for row in finished.curve
        )
        if (finished.mixer, finished.seed) != (contender.label, seed) or not whole:
            raise MetamixerError(f"{run / 'cell.json'} is of another training, or not whole; delete it to train anew")
        _delete_checkpoints(run)  # the race may have been stopped between the result and this
        return finished
    task: Any = training.task
    own = replace(task, model_args=(*task.model_args, *contender.model_args))
    try:
        train(replace(training, task=own, seed=seed, out=str(run), resume="auto"))
    except TrainingInterruptedError as interrupted:
        message = f"the race was interrupted in {contender.label}, seed {seed}; the same command goes on from there"
        raise TrainingInterruptedError(message, interrupted.exit_code) from None
    except MetamixerError as error:
        raise MetamixerError(f"{contender.label}, seed {seed}: {error}") from None
    rows = _rows(run / "metrics.csv")
    cell = Cell.of(contender.label, seed, rows)
    write_json(run / "cell.json", asdict(cell))
    _delete_checkpoints(run)
    return cell


def _delete_checkpoints(run: Path) -> None:
    """Of a finished training, which needs them no more; best and last weights stay."""
    shutil.rmtree(run / "checkpoints", ignore_errors=True)


def _rows(path: Path) -> list[dict[str, float]]:
    """The table of a finished training. Raises MetamixerError for another."""
    try:
        return [{name: float(value) for name, value in row.items()} for row in read_table(path)]
    except ValueError:
        raise MetamixerError(f"{path} is no table of metrics; delete its folder to train anew") from None


def _read(path: Path, schema: type[T]) -> T | None:
    """A JSON file of the race; None where there is none. Raises MetamixerError for one that is not of a race."""
    if not path.exists():
        return None
    try:
        return validated(schema, read_regular(path, CONFIG_BYTES, "a record of a race"), path, json=True)
    except MetamixerError as error:
        raise MetamixerError(f"{error}; delete it to measure or train anew") from None
