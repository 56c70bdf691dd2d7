"""What a run tells: a progress bar, ``metrics.csv``, TensorBoard events, and trackers by flag."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from metamixer.data.tables import write_records
from metamixer.errors import MetamixerError
from metamixer.printing import Bar, note
from metamixer.tasks.sharing import all_or_none
from metamixer.train.events import Events
from metamixer.train.run import Row, Run

STEPS_BETWEEN_EVENTS = 10


class Records:
    """The records of one run; silent where ``active`` is false, as in all processes but the first.

    Args:
        folder: the run's.
        steps: of the whole run.
        first_step: 0, or where a resumed run goes on.
        config: the run's settings, for the trackers.
        trackers: packages with the functions ``init``, ``log`` and ``finish``: trackio, wandb.
        active: whether anything is shown and written.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        first_step: int = 0,
        config: Mapping[str, Any] | None = None,
        trackers: Sequence[str] = (),
        active: bool = True,
    ) -> None:
        self.folder = folder
        self.active = active
        self.modules = [_module(name) for name in trackers] if active else []
        self.bar = Bar(total=steps, done=first_step, active=active, stays=True, stream="stdout")
        if active:
            self.events = Events(folder / "tensorboard", first_step + 1 if first_step else 0)
            for module in self.modules:
                module.init(project="metamixer", name=folder.name, config=dict(config or {}))

    @classmethod
    def of(cls, run: Run) -> Records:
        """Those of a run, kept by its first process. All of them call it, and it fails in all or none."""
        config = run.config
        active = run.accelerator.is_main_process
        with all_or_none():
            return cls(run.folder, run.steps, run.progress.step, config.to_dict(), config.log, active)

    def step(self, title: str, step: int, losses: Row, lr: float, speed: float, memory: float) -> None:
        """A step of the optimiser is done: its losses, samples per second, memory in GiB."""
        if not self.active:
            return
        total = sum(losses.values())
        shown = f"loss {total:.3f}  lr {lr:.2e}  {speed:.0f} samples/s  {memory:.1f} GiB"
        self.bar.update(step, title, shown)
        if step % STEPS_BETWEEN_EVENTS == 0:
            row = {"train/loss": total, "train/lr": lr, "train/samples_per_second": speed, "train/memory_gib": memory}
            if len(losses) > 1:
                row |= {f"train/{name}": loss for name, loss in losses.items()}
            self._log(row, step)

    def epoch(self, step: int, rows: Sequence[Row]) -> None:
        """An epoch is done; the last row is its own."""
        if not self.active:
            return
        write_metrics(self.folder / "metrics.csv", rows)
        self._log({f"epoch/{name}": value for name, value in rows[-1].items()}, step)

    def tell(self, row: Row) -> None:
        """Print an epoch's metrics; the last of what it does, as the place that this goes to may be full."""
        if self.active:
            self.bar.say("  ".join(f"{name} {value:.5g}" for name, value in row.items()))

    def notes(self, sentences: Sequence[str]) -> None:
        """What the task has to say at the end."""
        for sentence in sentences if self.active else ():
            note(sentence)

    def _log(self, row: Row, step: int) -> None:
        self.events.add(row, step)
        for module in self.modules:
            module.log(row, step=step)

    @contextmanager
    def open(self) -> Iterator[Records]:
        """Show the progress bar inside the block, and close all files after it."""
        try:
            with self.bar:
                yield self
        finally:
            if self.active:
                self.events.close()
                for module in self.modules:
                    module.finish()


def write_metrics(path: Path, rows: Sequence[Row]) -> None:
    """A CSV table with a column for every name in any row."""
    write_records(
        path,
        ({name: round(value, 6) if math.isfinite(value) else value for name, value in row.items()} for row in rows),
    )


def memory_in_use(device: torch.device) -> float:
    """The most that was allocated on a GPU so far, or the most that the process has held of main memory, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _module(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError:
        raise MetamixerError(f"--log {name} needs a package that is missing: pip install {name}") from None
