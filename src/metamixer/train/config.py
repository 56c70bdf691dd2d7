"""Everything that decides a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainConfig:
    """A training run of a classifier on folders of pictures.

    Args:
        model: a model's name, such as ``affnet_nano``; ``name.tag`` or ``name`` with ``pretrained`` starts from weights.
        data: folder with ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg`` (``validation`` or ``test`` also serve).
        out: folder for checkpoints, metrics and the configuration.
        epochs: passes over the training pictures.
        batch_size: pictures per step.
        lr: peak learning rate.
        warmup_epochs: epochs in which the learning rate rises.
        weight_decay: decay of all weights but norms and biases.
        opt: an optimiser of timm, by name.
        sched: a schedule of timm, by name.
        smoothing: label smoothing.
        image_size: side of the pictures; the model's own by default.
        progressive_from: side at the first epoch, growing in steps of 16 to ``image_size`` (None: no growth).
        crop_scale: share of the picture's area that random crops keep.
        ema_decay: decay of the averaged weights that are validated and saved; 0 for none.
        clip_grad: largest gradient norm; 0 for no limit.
        drop_path_rate: stochastic depth.
        pretrained: start from the model's default weights.
        checkpoint: start from this file.
        workers: processes that read pictures; by default from the machine.
        seed: of weights, order and augmentation.
        mixed_precision: "bf16" or "fp16" where the hardware is faster in it.
    """

    model: str
    data: str
    out: str = "runs/train"
    epochs: int = 20
    batch_size: int = 128
    lr: float = 2e-3
    warmup_epochs: float = 1.0
    weight_decay: float = 0.05
    opt: str = "adamw"
    sched: str = "cosine"
    smoothing: float = 0.1
    image_size: int | None = None
    progressive_from: int | None = None
    crop_scale: tuple[float, float] = (0.35, 1.0)
    ema_decay: float = 0.998
    clip_grad: float = 1.0
    drop_path_rate: float = 0.0
    pretrained: bool = False
    checkpoint: str | None = None
    workers: int | None = None
    seed: int = 0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
