"""Training: one loop for all tasks."""

from metamixer.train.config import TrainConfig
from metamixer.train.loop import TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "train"]
