"""Run by test_resume.py: a training run that is killed over and over, and the same run in peace.

Every attempt is a fork of this process, which has imported everything and trained nothing; so starting anew costs
little. Arguments: the task, the folder of data, the folder for both runs, how many kills, the workers, the seed of the
kills' moments.
"""

from __future__ import annotations

import os
import random
import runpy
import signal
import sys
import time
from pathlib import Path

import torch

import metamixer as mm
from metamixer.data import files
from metamixer.train import Step


def attempt(settings: mm.TrainConfig, die_after_steps: int = 0, delay: float = 0.0, die_in_save: int = 0) -> bool:
    """Train in a child process; whether it got to the end. It kills itself if told to."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    torch.set_num_threads(1)
    begun = 0
    fsync = os.fsync

    def dying_fsync(descriptor: int) -> None:
        nonlocal die_in_save
        die_in_save -= 1
        if die_in_save == 0:  # the file is written, not yet renamed; or renamed, the folder not yet synced
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    def on_step(step: Step) -> None:
        nonlocal begun
        begun += 1
        with Path(f"{settings.out}.losses").open("a") as file:
            file.write(f"{step.number} {sum(step.losses.values()).hex()}\n")
        if begun == die_after_steps:
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, delay)

    files.os.fsync = dying_fsync  # type: ignore[attr-defined]
    try:
        mm.train(settings, on_step)
        sys.stdout.flush()
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def main(name: str, data: Path, out: Path, kills: int, workers: int, seed: int) -> None:
    config = runpy.run_path(str(Path(__file__).with_name("every_task.py")))["config"]
    peace, killed_run = (
        config(name, data, out / run, resume="auto", epochs=kills, workers=workers) for run in ("peace", "killed")
    )
    assert attempt(peace)
    moments = random.Random(seed)
    started = time.perf_counter()
    killed = 0
    for i in range(kills):
        if i % 2:
            killed += not attempt(killed_run, die_in_save=moments.randint(1, 12))
        else:
            # The signal comes between two operations of Python, wherever that is by then.
            steps, delay = moments.randint(1, 3), moments.uniform(1e-6, 0.2)
            killed += not attempt(killed_run, die_after_steps=steps, delay=delay)
    assert attempt(killed_run)
    print(f"{killed} kills in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:]))
