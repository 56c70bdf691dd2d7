"""Every step's losses, read one step late: their mean, their end in NaN, and whether anyone wants to stop."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from metamixer.errors import MetamixerError
from metamixer.tasks.sharing import from_all
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
    told: Tensor  # the losses, the wish to stop and a fault in their names, averaged over the processes
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
        self.stop = self.ended = False
        self.pending: _Pending | None = None
        self.clock = time.perf_counter()
        self.names: tuple[str, ...] = ()
        self.other_names: tuple[str, ...] = ()

    def restart_clock(self) -> None:
        """Time from here on belongs to the next step."""
        self.clock = time.perf_counter()

    def check_names(self, names: Iterable[str]) -> None:
        """Note where the parts of a loss are not those of the first batch; the processes would add up unlike things.

        Raises MetamixerError, in all processes, where already the first batches differ. A later one is told with its
        step, so that no process waits for another.
        """
        names = tuple(names)
        if not self.names:
            self.names = names
            for others in from_all(names):
                if set(others) != set(names):
                    raise MetamixerError(self._other_names(others, "another process"))
        elif set(names) != set(self.names):
            self.other_names = names

    def done(self, losses: Mapping[str, Tensor], norm: Tensor, parts: Sequence[Batch]) -> None:
        """A step is under way, with gradients of this norm; look at the one before."""
        self.catch_up()
        accelerator = self.run.accelerator
        missing = torch.zeros_like(next(iter(losses.values())))  # only where the names differ, which the flag tells
        values = torch.stack([losses.get(name, missing).float() for name in self.names])
        flags = (self.interruption.signal is not None, bool(self.other_names), bool(self.run.loader.ended))
        told = torch.cat([values, norm.reshape(1), *(values.new_full((1,), float(flag)) for flag in flags)])
        indices = [index for part in parts for index in part.indices]
        self.pending = _Pending(
            self.run.progress.step,
            accelerator.reduce(told, "mean"),
            indices,
            len(indices) * accelerator.num_processes,
            max(group["lr"] for group in self.run.optimizer.param_groups),
        )

    def catch_up(self) -> None:
        """Look at the step that is under way.

        Raises MetamixerError where its loss or its gradients are not finite, or where the loss has other parts than
        before on any process.
        """
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        *values, norm, stop, fault, ended = pending.told.tolist()
        if fault:
            raise MetamixerError(self._other_names(self.other_names, f"step {pending.number}"))
        total = sum(values)
        if not math.isfinite(total):
            raise MetamixerError(self._complaint(pending, f"the loss became {total}"))
        if not math.isfinite(norm):
            raise MetamixerError(self._complaint(pending, f"the gradients became {norm} (the loss was {total:.4g})"))
        self.stop = self.stop or stop > 0
        self.ended = self.ended or ended > 0
        at, now = self.run.progress, time.perf_counter()
        at.seen += pending.samples
        at.loss_sum += total * pending.samples
        at.seconds += now - self.clock
        self.clock = now
        step = Step(pending.number, dict(zip(self.names, values, strict=True)))
        title = f"epoch {at.epoch + 1}/{self.run.config.epochs}"
        memory = memory_in_use(self.run.accelerator.device)
        self.records.step(title, step.number, step.losses, pending.lr, at.seen / at.seconds, memory)
        if self.on_step:
            self.on_step(step)

    def agree(self) -> None:
        """At the end of an epoch: what any process has to tell is known to all. All of them call it."""
        told = from_all((self.interruption.signal is not None, bool(self.run.loader.ended)))
        self.stop = self.stop or any(stop for stop, _ in told)
        self.ended = self.ended or any(ended for _, ended in told)

    @property
    def wants_to_end(self) -> bool:
        """Whether a signal came to any of the processes, or one of them can read no more."""
        return self.stop or self.ended

    def end_if_asked(self, inside: str = "") -> None:
        """Raises TrainingInterruptedError after a signal to any of the processes, MetamixerError where one of them can
        read no more. The caller has saved the run.

        Args:
            inside: what was under way, if not a step.
        """
        at, config = self.run.progress, self.run.config
        saved = f"its checkpoint is {self.run.newest}, and --resume auto goes on from it"
        if at.epoch == config.epochs:
            saved = f"it was complete, and all of it is saved in {self.run.folder}"
        if self.stop:
            number = self.interruption.signal or signal.SIGTERM
            raise TrainingInterruptedError(
                f"{signal.Signals(number).name} ended the run{inside} after step {at.step}; {saved}",
                exit_code=128 + number,
            )
        if self.ended:
            said = self.run.loader.ended or "on another process a process that reads samples has died"
            raise MetamixerError(f"{said}; that ended the run after step {at.step}; {saved}")

    def save_and_end(self, error: MetamixerError, inside: str = "") -> NoReturn:
        """Save what the steps before an error have brought, and raise it, saying so."""
        self.catch_up()
        at = self.run.progress
        if at.step == 0:
            raise error
        self.run.save()
        raise MetamixerError(
            f"{error}; that ended the run{inside} after step {at.step}; its checkpoint is {self.run.newest},"
            " and --resume auto goes on from it"
        ) from None

    def _other_names(self, found: Sequence[str], where: str) -> str:
        names, others = (", ".join(sorted(parts)) for parts in (self.names, found))
        said = f"has the parts {others} in {where}" if others else f"has other parts on another process in {where}"
        return f"the loss {said}, not {names} as in the first batch; Task.loss must name the same parts for every batch"

    def _complaint(self, step: _Pending, what: str) -> str:
        shown = ", ".join(self.run.task.describe(index) for index in step.indices[:8])
        more = f" and {len(step.indices) - 8} more" if len(step.indices) > 8 else ""
        return f"{what} in step {step.number}, on {shown}{more}; {self.run.last_good()}; lower --lr"
