"""Training: one loop for all tasks. ``mm.train(config)`` calls this package, which is callable for that."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

from metamixer.train.config import TrainConfig
from metamixer.train.loop import TrainResult, train
from metamixer.train.watch import Step

__all__ = ["Step", "TrainConfig", "TrainResult", "train"]


class _CallablePackage(ModuleType):
    """Python binds ``metamixer.train`` to this package once it is imported; the public name is a function's."""

    def __call__(self, config: TrainConfig, on_step: Callable[[Step], None] | None = None) -> TrainResult:
        return train(config, on_step)


sys.modules[__name__].__class__ = _CallablePackage
