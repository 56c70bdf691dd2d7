"""One process or many: DDP by Accelerate, FSDP by PyTorch itself (which then also works on CPUs)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import nn

from metamixer.errors import MetamixerError
from metamixer.train.config import TrainConfig


def start(config: TrainConfig) -> Accelerator:
    """Accelerate in the process group that ``torchrun`` or ``accelerate launch`` made, if one did."""
    # Accelerate keeps the first precision for the whole process; a second run here may ask for another.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
    except ValueError as error:  # this hardware has not got it
        raise MetamixerError(f"--mixed-precision {config.mixed_precision} does not work here ({error})") from None
    if config.fsdp and accelerator.num_processes == 1:
        raise MetamixerError("--fsdp needs several processes; start the command with torchrun")
    if config.sync_bn and accelerator.device.type == "cpu":
        raise MetamixerError("--sync-bn needs GPUs: PyTorch has no synchronised batch norm for CPUs")
    return accelerator


def wrap(model: nn.Module, config: TrainConfig, accelerator: Accelerator) -> nn.Module:
    """The model, trained by all processes together: inside DDP, or split in place by FSDP."""
    if config.sync_bn and accelerator.num_processes > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if not config.fsdp:
        return accelerator.prepare_model(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for stage in getattr(model, "stages", ()):  # of which one at a time is whole
        fully_shard(stage, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def whole_state(model: nn.Module) -> dict[str, Any]:
    """The weights of a model that FSDP has split, whole on every process."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    return get_model_state_dict(model, options=_whole())


def whole_optimizer_state(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """The optimiser's state of such a model, by the names of the weights, whole on every process."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return get_optimizer_state_dict(model, optimizer.optimizer, options=_whole())


def load_optimizer_state(model: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    """The inverse of :func:`whole_optimizer_state`, for a model that is split or not."""
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    set_optimizer_state_dict(model, optimizer.optimizer, state, options=_whole())


def load_whole_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """The inverse of :func:`whole_state`."""
    from torch.distributed.checkpoint.state_dict import set_model_state_dict

    set_model_state_dict(model, dict(state), options=_whole())


def _whole() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True)


def equalise_buffers(model: nn.Module) -> None:
    """Give every process the first one's buffers, such as the statistics of batch norms."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
