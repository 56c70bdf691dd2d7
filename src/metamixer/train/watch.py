"""Every step's losses, read one step late: their mean, their end in NaN, and whether anyone wants to stop."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metamixer.errors import MetamixerError
from metamixer.train.interruption import Interruption, TrainingInterruptedError
from metamixer.train.loader import Batch
from metamixer.train.records import Records, memory_in_use
from metamixer.train.run import Run


class Step(NamedTuple):
    """A step of the optimiser: its number from 1, and the named losses, means over its samples on all processes."""

    number: int
    losses: dict[str, float]


class _Pending(NamedTuple):
    number: int
    names: Sequence[str]
    told: Tensor  # the losses and the wish to stop, averaged over the processes
    indices: Sequence[int]
    samples: int  # on all processes
    lr: float


class Watch:
    """Looks at what the steps of a run tell.

    Losses are averaged over the processes, so that all know the same and end together. They are read when the next step
    has been handed to the device: waiting for each would leave a GPU idle between steps.
    """

    def __init__(
        self, run: Run, records: Records, interruption: Interruption, on_step: Callable[[Step], None] | None
    ) -> None:
        self.run = run
        self.records = records
        self.interruption = interruption
        self.on_step = on_step
        self.stop = False
        self.pending: _Pending | None = None
        self.clock = time.perf_counter()

    def restart_clock(self) -> None:
        """Time from here on belongs to the next step."""
        self.clock = time.perf_counter()

    def done(self, losses: Mapping[str, Tensor], parts: Sequence[Batch]) -> None:
        """A step is under way; look at the one before."""
        self.catch_up()
        accelerator = self.run.accelerator
        values = torch.stack([loss.float() for loss in losses.values()])
        told = torch.cat([values, values.new_full((1,), float(self.interruption.signal is not None))])
        indices = [index for part in parts for index in part.indices]
        self.pending = _Pending(
            self.run.progress.step,
            list(losses),
            accelerator.reduce(told, "mean"),
            indices,
            len(indices) * accelerator.num_processes,
            max(group["lr"] for group in self.run.optimizer.param_groups),
        )

    def catch_up(self) -> None:
        """Look at the step that is under way. Raises MetamixerError where its loss is not finite."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        *values, stop = pending.told.tolist()
        total = sum(values)
        if not math.isfinite(total):
            raise MetamixerError(self._complaint(pending, total))
        self.stop = self.stop or stop > 0
        at, now = self.run.progress, time.perf_counter()
        at.seen += pending.samples
        at.loss_sum += total * pending.samples
        at.seconds += now - self.clock
        self.clock = now
        step = Step(pending.number, dict(zip(pending.names, values, strict=True)))
        title = f"epoch {at.epoch + 1}/{self.run.config.epochs}"
        memory = memory_in_use(self.run.accelerator.device)
        self.records.step(title, step.number, step.losses, pending.lr, at.seen / at.seconds, memory)
        if self.on_step:
            self.on_step(step)

    def stop_if_asked(self) -> None:
        """Raises TrainingInterruptedError after a signal to any of the processes; the caller has saved the run."""
        if self.stop:
            number = self.interruption.signal or signal.SIGTERM
            raise TrainingInterruptedError(
                f"{signal.Signals(number).name} ended the run after step {self.run.progress.step}; its checkpoint is"
                f" {self.run.last_checkpoint()}, and --resume auto goes on from it",
                exit_code=128 + number,
            )

    def _complaint(self, step: _Pending, loss: float) -> str:
        shown = ", ".join(self.run.task.describe(index) for index in step.indices[:8])
        more = f" and {len(step.indices) - 8} more" if len(step.indices) > 8 else ""
        good = self.run.last_checkpoint()
        where = f"the last good checkpoint is {good}" if good else "no checkpoint was written before"
        return f"the loss became {loss} in step {step.number}, on {shown}{more}; {where}; lower --lr"
