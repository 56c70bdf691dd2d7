"""One process or many: DistributedDataParallel by Accelerate, with NCCL on GPUs and gloo where there are none."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from timm.layers import convert_sync_batchnorm
from torch import nn

from metamixer.errors import MetamixerError
from metamixer.tasks.sharing import processes
from metamixer.train.config import TrainConfig


def start(config: TrainConfig) -> Accelerator:
    """Accelerate in the process group that ``torchrun`` or ``accelerate launch`` asks for, if one does.

    Raises MetamixerError for a precision that this machine has not got, and where processes were started that cannot
    train together.
    """
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    # Accelerate keeps the first precision for the whole process; a second run here may ask for another.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        accelerator = Accelerator(
            # Accelerate takes the CPU for a group only if it is told so; else each process would train by itself.
            cpu=wanted > 1 and not torch.accelerator.is_available(),
            mixed_precision=config.mixed_precision,
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
    except ValueError as error:  # this hardware has not got it
        raise MetamixerError(f"--mixed-precision {config.mixed_precision} does not work here ({error})") from None
    if accelerator.num_processes < wanted:
        raise MetamixerError(
            f"{wanted} processes were started, which cannot train together on {accelerator.device.type}; start one, or"
            " set ACCELERATE_USE_CPU=true to train on the CPU"
        )
    if config.sync_bn and accelerator.num_processes > 1 and accelerator.device.type == "cpu":
        raise MetamixerError("--sync-bn needs GPUs: PyTorch has no synchronised batch norm for CPUs")
    return accelerator


def wrap(model: nn.Module, config: TrainConfig, accelerator: Accelerator) -> nn.Module:
    """The model inside DistributedDataParallel, if there are several processes."""
    if config.sync_bn and accelerator.num_processes > 1:
        model = convert_sync_batchnorm(model)  # timm's: PyTorch's drops what timm's norms do beside, their activation
    return accelerator.prepare_model(model)


@contextmanager
def told_of_lost_processes() -> Iterator[None]:
    """A MetamixerError where another process of the run is gone, in place of what gloo says of its connection.

    NCCL says nothing; ``torchrun`` ends the processes that wait.
    """
    try:
        yield
    except RuntimeError as error:
        gone = isinstance(error, torch.distributed.DistError) or re.search("gloo/transport|closed by peer", str(error))
        if processes() == 1 or not gone:
            raise
        raise MetamixerError(
            "the connection to another process of this run broke; that one says why it ended"
        ) from None


def equalise_buffers(model: nn.Module) -> None:
    """Give every process the first one's buffers, such as the statistics of batch norms."""
    if processes() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
