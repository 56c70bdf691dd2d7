"""The training loop, for every task and any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from metamixer.errors import MetamixerError
from metamixer.tasks.sharing import all_or_none
from metamixer.train import distributed
from metamixer.train.config import TrainConfig
from metamixer.train.interruption import StoppedInsideError, watch_signals
from metamixer.train.records import Records
from metamixer.train.run import Run
from metamixer.train.watch import Step, Watch


@dataclass(frozen=True)
class TrainResult:
    """The best validation result, its epoch (from 1), and where the weights are.

    Attributes:
        metric: name of the entry of ``metrics`` that decides which epoch is best.
        metrics: all of the task's metrics after the best epoch.
    """

    metric: str
    metrics: dict[str, float]
    epoch: int
    best: Path
    last: Path

    @property
    def value(self) -> float:
        """The deciding metric."""
        return self.metrics[self.metric]


def train(config: TrainConfig, on_step: Callable[[Step], None] | None = None) -> TrainResult:
    """Train as ``config`` says.

    The run's folder gets ``config.json`` and ``environment.json`` (which repeat the run), ``metrics.csv`` (a row per
    epoch), ``tensorboard/``, ``best.safetensors`` and ``last.safetensors`` (averaged weights and what prediction
    needs), and ``checkpoints/`` to resume from.

    Args:
        config: all settings.
        on_step: called with every step's number and losses, in order, one step late.

    Raises MetamixerError for data, models, checkpoints or folders that do not fit, for a sample that cannot be read,
    and where the loss is no longer finite; TrainingInterruptedError after SIGTERM or Ctrl-C, once the state is saved.
    """
    with distributed.told_of_lost_processes(), ExitStack() as opened:
        run = Run(config, distributed.start(config), opened)
        at = run.progress
        with watch_signals() as interruption, Records.of(run).open() as records:
            watch = Watch(run, records, interruption, on_step)
            while at.epoch < config.epochs:
                train_epoch(run, watch)
                finish_epoch(run, watch)
            records.notes(run.notes())
    best, last = run.folder / "best.safetensors", run.folder / "last.safetensors"
    return TrainResult(run.task.metric, at.best, at.best_epoch, best, last)


def train_epoch(run: Run, watch: Watch) -> None:
    """What is left of an epoch: each batch forth and back, and a step of the optimiser."""
    config, accelerator, model, optimizer, at = run.config, run.accelerator, run.model, run.optimizer, run.progress
    model.train()
    watch.restart_clock()
    batches = run.batches()
    while True:
        try:
            parts = next(batches, None)
        except MetamixerError as error:  # a sample that cannot be read, or the end of who reads them
            if accelerator.num_processes > 1:  # the others are in their next step
                raise
            watch.save_and_end(error)
        if parts is None:
            break
        losses: dict[str, Tensor] = {}
        for i, part in enumerate(parts, 1):
            with nullcontext() if i == len(parts) else accelerator.no_sync(model):
                with accelerator.autocast():
                    loss = run.task.loss(model, run.to_device(part.data))
                named = loss if isinstance(loss, dict) else {"loss": loss}
                watch.check_names(named)
                accelerator.backward(sum(named.values()) / len(parts))
            for name, value in named.items():
                losses[name] = losses.get(name, 0) + value.detach() / len(parts)
        norm = run.clip_gradients()
        optimizer.step()
        optimizer.zero_grad()
        at.step, at.batch = at.step + 1, at.batch + 1
        run.scheduler.step_update(at.step)
        if run.ema:
            run.ema.update(run.plain, step=at.step)
        watch.done(losses, norm, parts)
        if watch.wants_to_end or (config.save_every and at.step % config.save_every == 0):
            watch.catch_up()
            run.save()
            watch.end_if_asked()
    watch.catch_up()


def finish_epoch(run: Run, watch: Watch) -> None:
    """Validate, and write what the epoch has brought."""
    at, task = run.progress, run.task
    run.require_finite()
    weights = run.weights()
    metrics = validate(run, watch, weights)
    at.rows.append(
        {
            "epoch": at.epoch + 1,
            "step": at.step,
            "lr": max(group["lr"] for group in run.optimizer.param_groups),
            "train_loss": at.loss_sum / at.seen,
            **{f"val_{name}" if name == "loss" else name: value for name, value in metrics.items()},
            "images_per_second": at.seen / at.seconds,
            "seconds": at.seconds,
        }
    )
    old, new = at.best.get(task.metric, math.nan), metrics[task.metric]
    better = math.isnan(old) or (new > old if task.greater_is_better else new < old)
    if better:
        at.best, at.best_epoch = metrics, at.epoch + 1
    with all_or_none():
        if run.accelerator.is_main_process:
            task.save(weights, run.folder / "last.safetensors")
            if better:
                task.save(weights, run.folder / "best.safetensors")
    at.epoch, at.batch, at.seen, at.loss_sum, at.seconds = at.epoch + 1, 0, 0, 0.0, 0.0
    with all_or_none():
        watch.records.epoch(at.step, at.rows)
    run.save()
    watch.records.tell(at.rows[-1])
    watch.agree()
    if watch.wants_to_end:
        watch.end_if_asked()


def validate(run: Run, watch: Watch, weights: nn.Module) -> dict[str, float]:
    """The task's metrics. What ends it, a signal or a sample that cannot be read, finds the epoch's steps saved.

    A signal ends it at once in a run of one process; several would wait for each other.
    """
    alone = run.accelerator.num_processes == 1
    try:
        with watch.interruption.ends() if alone else nullcontext():
            return run.task.evaluate(weights, run.accelerator.device)
    except StoppedInsideError:
        run.save()
        watch.agree()
        watch.end_if_asked(" in its validation")
        raise
    except MetamixerError as error:
        watch.save_and_end(error, " in its validation")
