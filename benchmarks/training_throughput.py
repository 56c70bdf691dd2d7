"""Do we train as fast as timm's own script? Same network, pictures, augmentation, optimiser and batches.

    python benchmarks/training_throughput.py --train-py CHECKOUT/train.py --data DIR

needs the ``train.py`` of a checkout of huggingface/pytorch-image-models, of timm's version. Each side runs as its users
run it, as a command of its own on the CPU, once for one epoch and once for several; the difference is what an epoch
costs, without the start: reading, training, validation and checkpoint. Neither averages weights, since timm's script
would validate two sets then. Writes ``training_throughput.md`` beside this file.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psutil
import timm
import tyro

from metamixer.bench.machine import this_machine
from metamixer.data.image_folder import ImageFolder, split_folder

# timm's script, told of our networks first.
WITH_OUR_NETWORKS = "import runpy, sys, metamixer; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"


SLICE = 0.5  # seconds that one side runs while the other waits


class Cost(NamedTuple):
    """Seconds of an epoch."""

    processor: float
    wall: float


class Case(NamedTuple):
    """What both sides train."""

    script: Path
    data: Path
    model: str
    size: int
    batch: int
    workers: int

    @property
    def pictures(self) -> ImageFolder:
        return ImageFolder(split_folder(self.data, "train"))


def main(
    train_py: Path,
    data: Path,
    models: tuple[str, ...] = ("casvit_nano", "metaformer_nano"),
    image_size: int = 64,
    batch_size: int = 32,
    epochs: int = 3,
    rounds: int = 3,
    workers: int = 1,
) -> None:
    """Time both in turns and write the table.

    Args:
        train_py: timm's training script.
        data: a folder with ``train/CLASS/*`` and ``val/CLASS/*`` (or ``test``).
        models: networks, each a row.
        image_size: side of the pictures.
        batch_size: pictures a step.
        epochs: of the longer run.
        rounds: pairs of runs; the medians count.
        workers: reading processes of each side.
    """
    rows = []
    for model in models:
        case = Case(train_py.absolute(), data.absolute(), model, image_size, batch_size, workers)
        costs = []
        for _ in range(rounds):
            costs.append(costs_of_an_epoch(case, epochs))
            print(model, costs[-1], flush=True)
        pictures = len(case.pictures) // batch_size * batch_size  # both leave out what fills no batch
        cells = [model]
        for kind in Cost._fields:
            seconds = [[getattr(cost[side], kind) for cost in costs] for side in SIDES]
            cells += [f"{pictures / statistics.median(values):.0f}" for values in seconds]
            ratios = [theirs / ours for ours, theirs in zip(*seconds, strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
        rows.append(f"| {' | '.join(cells)} |")
    settings = f"--image-size {image_size} --batch-size {batch_size} --epochs {epochs} --rounds {rounds}"
    lines = [
        "# Our training beside timm's script",
        "",
        "Pictures a second of an epoch, its validation included: of processor time (the reading processes' included,",
        f"so that a busy machine matters less), and of wall time. Median of {rounds} pairs of runs, the two of a pair",
        f"in turns of {SLICE} seconds; the ratio is the median (lowest to highest) of them, above 1 ours is faster.",
        f"What an epoch costs is what {epochs} epochs cost more than one, divided by {epochs - 1}.",
        "",
        f"{pictures} pictures of {data.name} at {image_size} pixels in batches of {batch_size}; on each side one",
        f"thread and {workers} reading process(es), AdamW, clipped gradients, label smoothing,",
        "random crops and mirroring, channels last, float32.",
        f"{this_machine()}; timm's script is that of {timm.__version__}.",
        "",
        "| model | ours, processor | timm | ratio | ours, wall | timm | ratio |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"Made by `python benchmarks/training_throughput.py --train-py train.py --data {data.name} --models"
        f" {' '.join(models)} {settings} --workers {workers}`.",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")


def our_command(case: Case, epochs: int, out: Path) -> list[str]:
    flags = (
        f"train {case.model} --epochs {epochs} --batch-size {case.batch} --image-size {case.size}"
        f" --workers {case.workers} --lr 1e-3 --crop-scale 0.35 1 --ema-decay 0"
    )
    command = Path(sys.executable).with_name("metamixer")
    return [str(command), *flags.split(), "--data", str(case.data), "--out", str(out)]


def timm_command(case: Case, epochs: int, out: Path) -> list[str]:
    """timm's words for our settings."""
    flags = (
        f"--model {case.model} --epochs {epochs} --batch-size {case.batch} --input-size 3 {case.size} {case.size}"
        f" --workers {case.workers} --lr 1e-3 --scale 0.35 1 --ratio 0.8 1.25 --train-interpolation bilinear"
        " --color-jitter 0 --smoothing 0.1 --opt adamw --weight-decay 0.05 --clip-grad 1 --warmup-epochs 0"
        " --channels-last --device cpu"
        f" --num-classes {len(case.pictures.classes)} --validation-batch-size 128 --checkpoint-hist 2"
        f" --train-split train --val-split {split_folder(case.data, 'val').name}"
    )
    command = [sys.executable, "-c", WITH_OUR_NETWORKS, str(case.script)]
    return [*command, *flags.split(), "--data-dir", str(case.data), "--output", str(out)]


def costs_of_an_epoch(case: Case, epochs: int) -> dict[str, Cost]:
    short, long = (costs_of_runs({side: partial(SIDES[side], case, count) for side in SIDES}) for count in (1, epochs))
    return {
        side: Cost(*((b - a) / (epochs - 1) for a, b in zip(short[side], long[side], strict=True))) for side in SIDES
    }


def costs_of_runs(commands: dict[str, Callable[[Path], list[str]]]) -> dict[str, Cost]:
    """Of whole commands, their reading processes included. They take turns of ``SLICE`` seconds."""
    with TemporaryDirectory() as folder, ExitStack() as files:
        running: dict[str, int] = {}
        for side, command in commands.items():
            log = files.enter_context(Path(folder, side).open("w"))
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            arguments = command(Path(folder, f"{side}_run"))
            process = subprocess.Popen(arguments, stdout=log, stderr=log, env=environment)
            tell(process.pid, signal.SIGSTOP)
            running[side] = process.pid
        costs: dict[str, Cost] = {}
        awake = dict.fromkeys(running, 0.0)
        while running:
            for side, pid in list(running.items()):
                started = time.perf_counter()
                tell(pid, signal.SIGCONT)
                time.sleep(SLICE)
                ended, status, used = os.wait4(pid, os.WNOHANG)
                if ended:
                    del running[side]
                    if status:
                        sys.exit(Path(folder, side).read_text())
                    costs[side] = Cost(used.ru_utime + used.ru_stime, awake[side] + time.perf_counter() - started)
                else:
                    tell(pid, signal.SIGSTOP)
                    awake[side] += time.perf_counter() - started
        return costs


def tell(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process and to those that read for it, whatever group they are in."""
    process = psutil.Process(pid)
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            each.send_signal(number)


SIDES = {"ours": our_command, "timm": timm_command}


if __name__ == "__main__":
    tyro.cli(main)
