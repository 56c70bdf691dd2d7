"""timm's optimisers and schedules by name."""

from __future__ import annotations

import difflib
from typing import Any

from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import SGD, Adam, AdamW

from metamixer.errors import MetamixerError
from metamixer.tasks.task import key_values
from metamixer.train.config import TrainConfig


def create_optimizer(model: nn.Module, config: TrainConfig) -> Any:
    """timm's optimiser: no weight decay on norms, biases and what the model's ``no_weight_decay`` names.

    PyTorch's Adam, AdamW and SGD update all weights in one kernel; ``fused=False`` in ``opt_args`` undoes that.

    Raises MetamixerError for an unknown name, arguments that it does not take, and a model that tells no layers where
    ``layer_decay`` asks for them.
    """
    known = list_optimizers()
    if config.opt.lower() not in known:
        near = difflib.get_close_matches(config.opt, known, 1)
        raise MetamixerError(f"unknown optimiser {config.opt!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if config.layer_decay and not hasattr(model, "group_matcher"):
        raise MetamixerError(f"{type(model).__name__} does not tell its layers, so --layer-decay does not work for it")
    arguments = key_values(config.opt_args)
    if get_optimizer_info(config.opt.lower()).opt_class in (Adam, AdamW, SGD) and "foreach" not in arguments:
        arguments.setdefault("fused", True)
    try:
        return create_optimizer_v2(
            model,
            opt=config.opt,
            lr=config.lr,
            weight_decay=config.weight_decay,
            layer_decay=config.layer_decay or None,
            **arguments,
        )
    except (TypeError, ValueError) as error:
        raise MetamixerError(f"the optimiser {config.opt} refuses its arguments ({error})") from None


def create_schedule(optimizer: Any, config: TrainConfig, steps_per_epoch: float) -> Scheduler:
    """timm's schedule, a function of the step; by default from and to a hundredth of the peak learning rate.

    Raises MetamixerError where timm refuses the settings, such as more epochs of warm-up than there are or an argument
    that it does not know.
    """
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=config.sched,
            num_epochs=config.epochs - config.cooldown_epochs,
            warmup_epochs=config.warmup_epochs,  # fractions of an epoch work too
            warmup_lr=config.lr / 100 if config.warmup_lr is None else config.warmup_lr,
            min_lr=config.lr / 100 if config.min_lr is None else config.min_lr,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
            **key_values(config.sched_args),
        )
    except (TypeError, ValueError) as error:
        raise MetamixerError(f"the schedule {config.sched} does not fit ({error})") from None
    return scheduler
