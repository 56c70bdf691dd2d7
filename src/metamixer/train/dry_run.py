"""What a run would take, measured on two samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from metamixer.ops import use_transform
from metamixer.train import distributed
from metamixer.train.config import TrainConfig
from metamixer.train.optim import create_optimizer
from metamixer.train.run import batch_sampler, fit_to_data, prepare_model, require_enough_a_part, to_device
from metamixer.train.sampler import Share


@dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Attributes:
        parameters: numbers in the network.
        macs: multiply–accumulates of one sample on its way to the loss, a teacher's included.
        steps: of the optimiser, in the whole run.
        samples: training samples.
        part: samples that one process works through at once.
        memory: bytes of weights, gradients, the optimiser's state, averaged weights and activations in one process.
    """

    parameters: int
    macs: int
    steps: int
    samples: int
    part: int
    memory: dict[str, int]

    @property
    def total_memory(self) -> int:
        """Bytes in one process, without the pictures, the libraries and what the allocator wastes."""
        return sum(self.memory.values())


def estimate(config: TrainConfig) -> Estimate:
    """Open the data, create the model and take one step with two samples; nothing is written.

    Raises MetamixerError as training would.
    """
    accelerator = distributed.start(config)
    task = config.task
    set_seed(config.seed)
    task.open()
    config = fit_to_data(config, len(task), accelerator.num_processes)
    model = prepare_model(task.create_model(), config).to(accelerator.device)
    share = Share(0, accelerator.num_processes, config.accumulate)
    sampler = batch_sampler(config, len(task), share)
    require_enough_a_part(task, model, sampler, config)
    size = max(config.sizes, default=config.progressive[1] if config.progressive else None)
    count = min(2, len(task))
    batch = task.collate([task.sample(index, size) for index in range(count)])
    batch = to_device(batch, accelerator.device, config.channels_last)

    model.eval()
    with torch.no_grad(), use_transform("matmul"), FlopCounterMode(display=False) as counter:
        task.loss(model, batch)
    model.train()
    weights = list(model.parameters())
    with SavedForBackward(weights) as saved, accelerator.autocast():
        loss = task.loss(model, batch)
        total = sum(loss.values()) if isinstance(loss, dict) else loss
    total.backward()  # type: ignore[union-attr]
    optimizer = create_optimizer(model, config)
    optimizer.step()
    largest = config.batch_size // (share.processes * share.parts)
    return Estimate(
        parameters=sum(weight.numel() for weight in weights),
        macs=counter.get_total_flops() // 2 // count,
        steps=sum(sampler.steps(epoch) for epoch in range(config.epochs)),
        samples=len(task),
        part=largest,
        memory={
            "weights": size_of(weights),
            "gradients": size_of(weight.grad for weight in weights if weight.grad is not None),
            "optimiser": size_of(tensors_in(optimizer.state.values())),
            "averaged weights": size_of(weights) if config.ema_decay else 0,
            "activations": saved.bytes // count * largest,
        },
    )


class SavedForBackward(AbstractContextManager["SavedForBackward"]):
    """Counts the bytes of what autograd keeps for the backward pass, other than the weights."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.seen = {weight.untyped_storage().data_ptr() for weight in weights}
        self.bytes = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor

    def __enter__(self) -> SavedForBackward:
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def tensors_in(states: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors in an optimiser's state of each weight."""
    return (value for state in states for value in state.values() if isinstance(value, Tensor))


def report(config: TrainConfig, found: Estimate) -> str:
    """The configuration and the estimate, line by line."""
    lines = [f"{name:<20}{value}" for name, value in config.to_dict().items()]
    memory = ", ".join(f"{name} {bytes_ / 2**20:.1f}" for name, bytes_ in found.memory.items() if bytes_)
    return "\n".join(
        [
            *lines,
            "",
            f"samples             {found.samples}",
            f"parameters          {found.parameters / 1e6:.3f} M",
            f"MACs per sample     {found.macs / 1e9:.3f} G",
            f"steps               {found.steps} with {found.part} samples at once in each process",
            f"memory, estimated   {found.total_memory / 2**20:.1f} MiB in each process ({memory})",
        ]
    )
