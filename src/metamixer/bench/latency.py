"""Latency of models side by side: every model in every runtime, each pair in a process of its own, in turns."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TypeVar

import timm
from torch import Tensor, nn

from metamixer.bench.eager import EAGER
from metamixer.bench.machine import Machine, this_machine
from metamixer.bench.macs import count_macs_of
from metamixer.bench.published_top1 import published_top1
from metamixer.deploy.artefact import scratch_folder
from metamixer.deploy.export import count_parameters, source_of
from metamixer.deploy.merge import merge
from metamixer.deploy.report import as_list
from metamixer.deploy.runtime_process import RuntimeProcess
from metamixer.deploy.settings import Settings
from metamixer.deploy.source import Source, answer_of
from metamixer.deploy.targets import TARGETS, Target, convert
from metamixer.deploy.timing import take_turns
from metamixer.errors import MetamixerError
from metamixer.finite import check_outputs, first_strange
from metamixer.heads.build import HEADS, build
from metamixer.limits import BatchSize, Count, Threads, checked
from metamixer.models import check_tag
from metamixer.networks import NETWORKS, create_network
from metamixer.tasks.dense import load_any_model

WARMUP = 5
Answer = TypeVar("Answer")
# A web page times its model itself, in the browser that opens it; PyTorch's exported program is no faster than eager;
# ExecuTorch's other delegates run on devices alone.
_NOT_TIMED = ("torch", "web", "executorch_coreml", "executorch_vulkan")
RUNTIMES: dict[str, Target] = {
    "torch": EAGER,
    **{name: target for name, target in TARGETS.items() if name not in _NOT_TIMED},
}


@dataclass(frozen=True)
class LatencyRow:
    """One model in one runtime.

    Args:
        model: its name.
        runtime: ``"torch"`` (eager) or a target of :func:`metamixer.export`.
        image_size: side of the pictures, the shorter one; rows of a window to forecast from, points of a cloud.
        batch: pictures per call.
        threads: threads within an operator.
        parameters: after merging for inference.
        macs: multiply-accumulates of one picture, transforms included.
        median_ms, low, high: milliseconds of one call: median and quartiles.
        repeats: calls measured.
        memory_mb: megabytes that loading and running took at most, on top of a process that has imported the runtime;
            None where the system does not tell (all but Linux).
        top1: ImageNet top-1 in percent that is published for the model's weights at this size; None where none is.
    """

    model: str
    runtime: str
    image_size: int
    batch: int
    threads: int
    parameters: int
    macs: int
    median_ms: float
    low: float
    high: float
    repeats: int
    memory_mb: float | None
    top1: float | None


@dataclass(frozen=True)
class LatencyReport:
    """What :func:`benchmark` found.

    Args:
        rows: one per model and runtime, in the order in which they were named.
        failed: why a pair (model, runtime) has no row.
        machine: what it was measured on.
        load: processes that wanted to run on average in the minute before, None where the system does not tell.
    """

    rows: list[LatencyRow]
    failed: dict[tuple[str, str], str]
    machine: Machine
    load: float | None


@dataclass(frozen=True)
class _Facts:
    """What is the same for a model in every runtime."""

    image_size: int
    parameters: int
    macs: int
    top1: float | None


@checked
def benchmark(
    models: Sequence[str],
    runtimes: Sequence[str] = ("torch", "onnx"),
    threads: Threads = 1,
    batch: BatchSize = 1,
    image_size: Count | None = None,
    repeats: Count = 50,
) -> LatencyReport:
    """Time models merged for inference, with random weights, on the CPU.

    Each pair of model and runtime has a process of its own, pinned to as many cores as it has threads (on Linux). All
    are loaded before the first is timed; then they take turns, and of two calls in a turn the second counts: the first
    finds its neighbours' data in the caches, and their threads awake.

    Args:
        models: names of ours or of timm's; those for super-resolution, forecasting and point clouds too, the last in
            ``"torch"`` alone; heads of dense prediction, on the backbones of their papers, up to their raw outputs;
            paths of checkpoints.
        runtimes: of :data:`RUNTIMES`.
        threads: threads within an operator.
        batch: pictures per call.
        image_size: side of the pictures; each model's own by default.
        repeats: rounds, each of which times every model once in every runtime.

    Raises MetamixerError for an unknown model or runtime, a missing package, a size that a model does not take, numbers
    below 1, more threads than cores, and weights or outputs that are not finite. A pair that cannot be exported or
    fails in its process is in ``failed``.
    """
    _check(models, runtimes, threads, batch)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    facts: dict[str, _Facts] = {}
    processes: dict[tuple[str, str], RuntimeProcess] = {}
    failed: dict[tuple[str, str], str] = {}
    with scratch_folder() as folder, ExitStack() as running:
        for name in dict.fromkeys(models):  # each once
            network = _create(name)
            source = source_of(network, name)
            source.require_room(image_size, batch, batch)
            model, inputs = source.graph(merge(network)), source.example(batch, image_size)
            settings = Settings(outputs=source.outputs, input_name=source.input_name)
            facts[name] = _facts(source, model, inputs)
            for runtime in dict.fromkeys(runtimes):
                target = RUNTIMES[runtime]
                path = Path(folder, f"{len(processes) + len(failed)}{target.suffix}")
                try:
                    convert(target, model, inputs, path, settings, name)
                    process = running.enter_context(RuntimeProcess(target, path, threads, pinned=True))
                    output = first_strange(as_list(process(inputs.numpy())), source.outputs)
                    if output is not None:
                        raise MetamixerError(f"{name} gives values that are not finite in {output}")
                except (MetamixerError, OSError) as error:
                    failed[name, runtime] = str(error)
                else:
                    processes[name, runtime] = process
        clocks = {pair: partial(_clock, pair, failed, process) for pair, process in processes.items()}
        timings = take_turns(clocks, repeats, WARMUP)
        memory = {pair: _attempt(pair, failed, process.peak_memory) for pair, process in processes.items()}
    rows = []
    for (name, runtime), timing in timings.items():
        if (name, runtime) in failed:
            continue
        taken = memory[name, runtime]
        rows.append(
            LatencyRow(
                model=name,
                runtime=runtime,
                batch=batch,
                threads=threads,
                repeats=repeats,
                memory_mb=None if taken is None else taken / 1e6,
                **asdict(facts[name]),
                **asdict(timing),
            )
        )
    return LatencyReport(rows, failed, this_machine(), load)


def _check(models: Sequence[str], runtimes: Sequence[str], threads: int, batch: int) -> None:
    for noun, names in (("model", models), ("runtime", runtimes)):
        if not names:
            raise MetamixerError(f"name at least one {noun}")
    cores = this_machine().cores
    if threads > cores:
        raise MetamixerError(f"{threads} threads cannot be timed on the {cores} cores that this process may use")
    for name in models:
        if not (name in NETWORKS or name in HEADS or timm.is_model(name) or os.path.isfile(name)):
            known = [*timm.list_models(), *NETWORKS, *HEADS]
            hint = _did_you_mean(name, known, "neither metamixer nor timm has it, and there is no such checkpoint")
            raise MetamixerError(f"unknown model {name!r}; {hint}")
        if timm.is_model(name) and not os.path.isfile(name):
            check_tag(name)
    for runtime in runtimes:
        if runtime not in RUNTIMES:
            hint = _did_you_mean(runtime, RUNTIMES, f"known: {', '.join(RUNTIMES)}")
            raise MetamixerError(f"unknown runtime {runtime!r}; {hint}")
        module = RUNTIMES[runtime].implementation()
        module.check()
        if not getattr(module, "RUNS_HERE", True):
            raise MetamixerError(f"{RUNTIMES[runtime].runtime} does not run on this machine's system")
        if batch > 1 and getattr(module, "ONE_PICTURE", False):
            raise MetamixerError(f"{RUNTIMES[runtime].runtime} takes one picture at a time; leave batch at 1")


def _did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    near = get_close_matches(name, list(known), 1)
    return f"did you mean {near[0]!r}?" if near else otherwise


def _create(name: str) -> nn.Module:
    if os.path.isfile(name):
        return load_any_model(name)
    if name in NETWORKS:
        return create_network(name)
    return build(name) if name in HEADS else timm.create_model(name)


def _facts(source: Source, model: nn.Module, inputs: Tensor) -> _Facts:
    with source.first_call(inputs):
        macs = count_macs_of(model, inputs[:1])
        check_outputs(answer_of(model, inputs[:1]), model, source.name, source.outputs)
    size = source.side(inputs)
    return _Facts(size, count_parameters(model), macs, published_top1(source.name, size))


def _attempt(pair: tuple[str, str], failed: dict[tuple[str, str], str], ask: Callable[[], Answer]) -> Answer | None:
    """What a pair's process answers; None from the call on that fails, and the reason in ``failed``."""
    if pair not in failed:
        try:
            return ask()
        except MetamixerError as error:
            failed[pair] = str(error)
    return None


def _clock(pair: tuple[str, str], failed: dict[tuple[str, str], str], process: RuntimeProcess) -> float:
    return _attempt(pair, failed, process.time_second_call) or math.nan  # a failed pair is left out at the end
