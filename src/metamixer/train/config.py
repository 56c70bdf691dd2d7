"""Everything that decides a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from metamixer.errors import MetamixerError


class ConfigError(MetamixerError, ValueError):
    """A value out of its range; a ValueError too, so that the command line takes it for wrong usage."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run of a classifier on folders of pictures.

    Args:
        model: a model's name; ``name.tag``, or ``name`` with ``pretrained``, starts from its weights.
        data: folder with ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg`` (``validation`` or ``test`` also serve).
        out: folder for checkpoints, metrics and the configuration; ``runs/MODEL`` by default.
        overwrite: replace a run that ``out`` already holds.
        epochs: passes over the training pictures.
        batch_size: pictures per step; lowered to the training set where that is smaller.
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
        workers: processes that read pictures, 0 for none beside the loop; by default from the machine.
        seed: of weights, order and augmentation.
        mixed_precision: "bf16" or "fp16" where the hardware is faster in it.

    Raises ConfigError (a MetamixerError and a ValueError) for a value out of its range.
    """

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    data: str
    out: str | None = None
    overwrite: bool = False
    epochs: int = 20
    batch_size: int = 128
    lr: float = 2e-3
    warmup_epochs: float = 1.0
    weight_decay: float = 0.05
    opt: str = "adamw"
    sched: Literal["cosine", "poly", "tanh"] = "cosine"
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

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        sizes = [size for size in (self.image_size, self.progressive_from) if size is not None]
        _require(self.epochs >= 1, "epochs must be 1 or more")
        _require(self.batch_size >= 2, "batch_size must be 2 or more, since batch norm needs two pictures")
        _require(self.lr > 0, "lr must be above 0")
        _require(self.warmup_epochs >= 0, "warmup_epochs must be 0 or more")
        _require(self.sched in ("cosine", "poly", "tanh"), "sched must be cosine, poly or tanh")
        _require(0 <= self.smoothing < 1, "smoothing must be 0 or more and below 1")
        _require(all(size >= 16 for size in sizes), "image_size and progressive_from must be 16 or more")
        _require(0 < low <= high <= 1, "crop_scale must rise from above 0 to 1 at most")
        _require(0 <= self.ema_decay < 1, "ema_decay must be 0 or more and below 1")
        _require(self.clip_grad >= 0, "clip_grad must be 0 or more")
        _require(0 <= self.drop_path_rate < 1, "drop_path_rate must be 0 or more and below 1")
        _require(self.workers is None or self.workers >= 0, "workers must be 0 or more")


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ConfigError(sentence)
