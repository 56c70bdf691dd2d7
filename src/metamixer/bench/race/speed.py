"""Size and speed of the contenders, measured side by side before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from metamixer.bench.macs import count_macs
from metamixer.bench.race.contenders import Contender, entry
from metamixer.deploy.artefact import scratch_folder
from metamixer.deploy.export import count_parameters, target_module
from metamixer.deploy.merge import merge
from metamixer.deploy.timing import Timing, time_interleaved, torch_threads
from metamixer.errors import MetamixerError
from metamixer.schemas import MEASURED
from metamixer.tasks.classification import Classification
from metamixer.train import distributed
from metamixer.train.config import TrainConfig
from metamixer.train.dry_run import estimate
from metamixer.train.optim import create_optimizer
from metamixer.train.run import prepare_model, to_device

WARMUP = 3
TRAINING_STEPS = 7


@dataclass(frozen=True)
class Speed:
    """Size and speed of the backbone with one mixer.

    Attributes:
        parameters: of the network that is trained.
        merged_parameters: after merging for inference.
        macs: multiply–accumulates of one picture, merged, transforms included.
        ffn_expansion: width of the FFNs where it was changed to equal the parameters.
        training_memory: estimated bytes of weights, gradients, optimiser and activations at the race's batch size.
        images_per_second: pictures per second of training steps alone: forth, back and optimiser, nothing read.
        torch: one picture in eager PyTorch, merged, on the CPU.
        onnx: the same in ONNX Runtime; None where it was not measured.
        onnx_missing: why not.
    """

    __pydantic_config__ = MEASURED  # as it is read from a file

    parameters: int
    merged_parameters: int
    macs: int
    ffn_expansion: float | None
    training_memory: int
    images_per_second: float
    torch: Timing
    onnx: Timing | None
    onnx_missing: str | None


def measure(
    training: TrainConfig, task: Classification, found: Sequence[Contender], threads: int, rounds: int
) -> dict[str, Speed]:
    """Size and speed by label.

    Latencies are those of one picture on the CPU, weights random, all contenders and both runtimes in turns. Training
    steps also take turns, on the device, with the threads and in the precision that the race trains with.

    Args:
        training: the race's settings.
        task: its task, opened.
        found: the contenders.
        threads: of latencies, within an operator.
        rounds: rounds of latencies.

    Raises MetamixerError for a contender that the backbone or the pictures' size does not fit.
    """
    entries = {contender.label: entry(task, contender) for contender in found}
    size = next(own.preprocessing.image_size for own, _ in entries.values())  # the task's, the same for all
    merged = {label: merge(model) for label, (_, model) in entries.items()}
    macs = {}
    for label, model in merged.items():
        try:
            macs[label] = count_macs(model, size)
        except (RuntimeError, ValueError) as error:
            raise MetamixerError(f"{task.model} with {label} cannot take {size} pixels: {error}") from None
    estimates = {label: estimate(replace(training, task=replace(own))) for label, (own, _) in entries.items()}
    latency, missing = latencies(merged, size, threads, rounds)
    accelerator = distributed.start(training)
    steps = {label: training_step(training, own, model, accelerator) for label, (own, model) in entries.items()}
    step_ms = time_interleaved(steps, TRAINING_STEPS, WARMUP)
    batch = min(training.batch_size, len(task))
    speeds = {}
    for contender in found:
        label = contender.label
        speeds[label] = Speed(
            parameters=estimates[label].parameters,
            merged_parameters=count_parameters(merged[label]),
            macs=macs[label],
            ffn_expansion=contender.ffn_expansion,
            training_memory=estimates[label].total_memory,
            images_per_second=1000 * batch / step_ms[label].median_ms,
            torch=latency[label, "torch"],
            onnx=latency.get((label, "onnx")),
            onnx_missing=missing.get(label),
        )
    return speeds


def training_step(
    training: TrainConfig, task: Classification, model: nn.Module, accelerator: Accelerator
) -> Callable[[], None]:
    """A function that takes one step of the optimiser on random pictures and waits for the device."""
    size, batch = task.preprocessing.image_size, min(training.batch_size, len(task))
    random = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=random)
    labels = torch.randint(len(task.classes), (batch,), generator=random)
    data = to_device((pictures, labels), accelerator.device, training.channels_last)
    model = prepare_model(model, training).to(accelerator.device).train()
    optimizer = accelerator.prepare_optimizer(create_optimizer(model, training))

    def step() -> None:
        with accelerator.autocast():
            loss = task.loss(model, data)
        accelerator.backward(sum(loss.values()) if isinstance(loss, dict) else loss)
        if training.clip_grad:
            accelerator.clip_grad_norm_(model.parameters(), training.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        if accelerator.device.type != "cpu":
            torch.accelerator.synchronize()

    return step


def latencies(
    models: Mapping[str, nn.Module], size: int, threads: int, rounds: int
) -> tuple[dict[tuple[str, str], Timing], dict[str, str]]:
    """Times by (label, runtime), and by label why ONNX Runtime has none."""
    picture = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    functions: dict[tuple[str, str], Callable[[], object]] = {}
    missing: dict[str, str] = {}
    with scratch_folder() as folder, torch_threads(threads), torch.no_grad():
        for i, (label, model) in enumerate(models.items()):
            functions[label, "torch"] = partial(model, picture)
            try:
                functions[label, "onnx"] = _in_onnx_runtime(model, picture, folder / f"{i}.onnx", threads)
            except MetamixerError as error:  # the packages are an extra
                missing[label] = str(error)
            except Exception as error:  # the exporter raises what it likes, and a mixer of a user's may not export
                missing[label] = f"its export fails ({type(error).__name__})"
        timings = time_interleaved(functions, rounds, WARMUP)
        functions.clear()  # closes the sessions before their files go
    return timings, missing


def _in_onnx_runtime(model: nn.Module, picture: torch.Tensor, path: Path, threads: int) -> Callable[[], object]:
    module = target_module("onnx")
    module.check()
    module.write(model, picture, path)
    run, array = module.load(path, threads), picture.numpy()
    return lambda: run(array)
