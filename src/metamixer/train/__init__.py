"""Training: one loop for all tasks. ``mm.train(config)`` calls this package, which is callable for that."""

from __future__ import annotations

import sys
from types import ModuleType

from metamixer.train.config import TrainConfig
from metamixer.train.loop import TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "train"]


class _CallablePackage(ModuleType):
    """Python binds ``metamixer.train`` to this package once it is imported; the public name is a function's."""

    def __call__(self, config: TrainConfig) -> TrainResult:
        return train(config)


sys.modules[__name__].__class__ = _CallablePackage
