"""PyTorch as its users run it, eagerly, in the form of a target of ``metamixer.deploy.targets``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from metamixer.deploy.report import Runtime
from metamixer.deploy.settings import PLAIN, Settings
from metamixer.deploy.targets import Target
from metamixer.deploy.torch import runtime_of

EAGER = Target("metamixer.bench.eager", ".pt", "PyTorch (eager)", None)
RUNS_ON = ("torch", "timm", "metamixer.deploy.export")  # the last holds all that a pickled network may be


def check() -> None:
    """PyTorch is always there."""


def write(model: nn.Module, example: Tensor, path: Path, settings: Settings = PLAIN) -> str:
    """Write the module itself, for the process that times it and for nothing else."""
    torch.save(model, path)
    return "pickled module"


def load(path: str | Path, threads: int = 1) -> Runtime:
    """The module as a function from float32 ``B × C × H × W`` to its outputs. Opens files of this program alone."""
    torch.set_num_threads(threads)
    return runtime_of(torch.load(path, weights_only=False))
