"""Everything that decides a training run: the task, and how the loop trains it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from metamixer.tasks.task import Task, key_values, require

Schedule = Literal["cosine", "poly", "tanh", "step", "multistep", "constant", "wsd"]

#: Fields that decide where and how fast a run goes, but not what comes out of it.
NOT_PART_OF_THE_RESULT = ("out", "overwrite", "resume", "allow_changes", "save_every", "workers", "in_memory", "log")


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
    save_every: int = 0
    epochs: int = 20
    batch_size: int = 128
    accumulate: int = 1
    lr: float = 2e-3
    min_lr: float | None = None
    warmup_lr: float | None = None
    warmup_epochs: float = 1.0
    cooldown_epochs: int = 0
    weight_decay: float = 0.05
    layer_decay: float = 0.0
    opt: str = "adamw"
    opt_args: tuple[str, ...] = ()
    sched: Schedule = "cosine"
    sched_args: tuple[str, ...] = ()
    clip_grad: float = 1.0
    ema_decay: float = 0.998
    sizes: tuple[int, ...] = ()
    progressive: tuple[int, int] | None = None
    repeats: int = 1
    workers: int | None = None
    seed: int = 0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = True
    compile: bool = False
    grad_checkpointing: bool = False
    sync_bn: bool = False
    log: tuple[Literal["trackio", "wandb"], ...] = ()

    def __post_init__(self) -> None:
        require(not (self.resume and self.overwrite), "resume and overwrite exclude each other")
        require(self.epochs >= 1, "epochs must be 1 or more")
        require(self.batch_size >= 2, "batch_size must be 2 or more, since batch norm needs two pictures")
        require(self.accumulate >= 1, "accumulate must be 1 or more")
        require(self.save_every >= 0, "save_every must be 0 or more")
        require(self.lr > 0, "lr must be above 0")
        require(
            all(lr is None or lr >= 0 for lr in (self.min_lr, self.warmup_lr)), "min_lr and warmup_lr must be 0 or more"
        )
        require(self.warmup_epochs >= 0, "warmup_epochs must be 0 or more")
        require(0 <= self.cooldown_epochs < self.epochs, "cooldown_epochs must be 0 or more and fewer than epochs")
        require(self.weight_decay >= 0, "weight_decay must be 0 or more")
        require(0 <= self.layer_decay <= 1, "layer_decay must be from 0 to 1")
        schedules = get_args(Schedule)
        require(self.sched in schedules, f"sched must be one of {', '.join(schedules)}")
        key_values((*self.opt_args, *self.sched_args))
        require(self.clip_grad >= 0, "clip_grad must be 0 or more")
        require(0 <= self.ema_decay < 1, "ema_decay must be 0 or more and below 1")
        require(
            all(size >= 16 for size in (*self.sizes, *(self.progressive or ()))),
            "sizes and progressive must be 16 or more",
        )
        require(not (self.sizes and self.progressive), "sizes and progressive exclude each other")
        require(self.repeats >= 1, "repeats must be 1 or more")
        require(self.workers is None or self.workers >= 0, "workers must be 0 or more")
        require(self.seed >= 0, "seed must be 0 or more")

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
