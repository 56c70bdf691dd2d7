"""Everything that decides a training run: the task, and how the loop trains it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from metamixer.limits import (
    Count,
    CountOrNone,
    Epochs,
    NotNegative,
    Positive,
    Seed,
    Share,
    ShareBelowOne,
    Steps,
    TrainingBatch,
    TrainingSide,
    Workers,
    check_settings,
)
from metamixer.tasks.task import Task, key_values, require

Schedule = Literal["cosine", "poly", "tanh", "step", "multistep", "constant", "wsd"]

#: Fields that decide where and how fast a run goes, but not what comes out of it.
NOT_PART_OF_THE_RESULT = ("out", "overwrite", "resume", "allow_changes", "save_every", "workers", "in_memory", "log")

GONE = {"fsdp": False}
"""Settings of earlier versions, with the values that mean what is done today."""


def without_gone(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an earlier run, less those that say nothing any more."""
    return {name: value for name, value in settings.items() if name not in GONE or value != GONE[name]}


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Args:
        task: what is trained on what data.
        out: folder for checkpoints, metrics and the configuration; ``runs/`` and the task's or model's name by default.
        overwrite: replace a run that ``out`` already holds.
        resume: "auto" to go on from the last checkpoint in ``out``, if there is one, or a checkpoint's path.
        allow_changes: resume even though the configuration is not the one that the run began with.
        save_every: steps between checkpoints, beside the one after every epoch; 0 for none.
        epochs: passes over the training samples.
        batch_size: samples per step of the optimiser, over all processes and accumulated parts; lowered to the
            training set where that is smaller.
        accumulate: parts in which each process works through its share of a batch, to save memory.
        lr: peak learning rate.
        min_lr: learning rate at the end; a hundredth of the peak by default.
        warmup_lr: learning rate at the start; a hundredth of the peak by default.
        warmup_epochs: epochs in which the learning rate rises.
        cooldown_epochs: epochs at the end, at the lowest learning rate.
        weight_decay: decay of all weights but norms, biases and those that the model names.
        layer_decay: factor on the learning rate from each layer to the one before it; 0 for none.
        opt: an optimiser of timm, by name.
        opt_args: its further arguments as ``key=value``, such as ``betas=(0.9,0.95)``.
        sched: a schedule of timm, by name.
        sched_args: its further arguments as ``key=value``: ``decay_milestones=(8,11)`` in epochs and ``decay_rate=0.1``
            of "multistep", ``decay_rate=0.9`` for the power of "poly" (0.1 by timm's default).
        clip_grad: largest gradient norm; 0 for no limit.
        ema_decay: decay of the averaged weights that are validated and saved; 0 for none.
        sizes: sides in pixels of which each batch draws one (multi-scale training). A batch holds ``batch_size``
            samples at the first of them and so many at the others that memory stays level.
        progressive: sides of the first and the last epochs, growing in steps of 16 in between.
        repeats: times that a sample, augmented anew, comes in one batch (repeated augmentation); an epoch has the same
            length but fewer different samples.
        workers: processes that read samples, 0 for none beside the loop; by default from the machine.
        seed: of weights, order and augmentation.
        mixed_precision: "bf16" or "fp16" where the hardware is faster in it.
        channels_last: memory layout of pictures that convolutions prefer.
        compile: translate the model with ``torch.compile`` before training.
        grad_checkpointing: compute activations again in the backward pass instead of keeping them.
        sync_bn: batch norms take their statistics over all processes.
        log: further places that metrics go to, beside ``metrics.csv`` and TensorBoard.

    Raises SettingError (a MetamixerError and a ValueError) for a value out of its range.
    """

    task: Task
    out: str | None = None
    overwrite: bool = False
    resume: str | None = None
    allow_changes: bool = False
    save_every: Steps = 0
    epochs: Epochs = 20
    batch_size: TrainingBatch = 128
    accumulate: Count = 1
    lr: Positive = 2e-3
    min_lr: NotNegative | None = None
    warmup_lr: NotNegative | None = None
    warmup_epochs: NotNegative = 1.0
    cooldown_epochs: CountOrNone = 0
    weight_decay: NotNegative = 0.05
    layer_decay: Share = 0.0
    opt: str = "adamw"
    opt_args: tuple[str, ...] = ()
    sched: Schedule = "cosine"
    sched_args: tuple[str, ...] = ()
    clip_grad: NotNegative = 1.0
    ema_decay: ShareBelowOne = 0.998
    sizes: tuple[TrainingSide, ...] = ()
    progressive: tuple[TrainingSide, TrainingSide] | None = None
    repeats: Count = 1
    workers: Workers | None = None
    seed: Seed = 0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = True
    compile: bool = False
    grad_checkpointing: bool = False
    sync_bn: bool = False
    log: tuple[Literal["trackio", "wandb"], ...] = ()

    def __post_init__(self) -> None:
        check_settings(self)
        require(not (self.resume and self.overwrite), "resume and overwrite exclude each other")
        require(self.cooldown_epochs < self.epochs, "cooldown_epochs must be fewer than epochs")
        schedules = get_args(Schedule)
        require(self.sched in schedules, f"sched must be one of {', '.join(schedules)}")
        key_values((*self.opt_args, *self.sched_args))
        require(not (self.sizes and self.progressive), "sizes and progressive exclude each other")

    @property
    def folder(self) -> str:
        """The run's folder."""
        name = getattr(self.task, "model", None) or type(self.task).__name__.lower()
        return self.out or f"runs/{name}"

    def sizes_at(self, epoch: int) -> tuple[int | None, ...]:
        """Sides in pixels of which the batches of an epoch (from 0) draw; ``(None,)`` where the task decides."""
        if self.progressive is None:
            return self.sizes or (None,)
        first, last = self.progressive
        # The last fifth of the epochs runs at full size.
        share = 1.0 if self.epochs == 1 else min(1.0, epoch / (0.8 * (self.epochs - 1)))
        return (last if share == 1 else min(last, round((first + share * (last - first)) / 16) * 16),)

    def to_dict(self) -> dict[str, Any]:
        """All settings, ready for JSON: the task's and the loop's side by side, as on the command line."""
        fields = asdict(self)
        return {"task": type(self.task).__name__, **fields.pop("task"), **fields}

    def as_read(self) -> dict[str, Any]:
        """:meth:`to_dict` as it reads from a file, tuples being lists there; to be compared with what does."""
        settings: dict[str, Any] = json.loads(json.dumps(self.to_dict()))
        return settings
