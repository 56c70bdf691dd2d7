"""Latency of models side by side: every model in every runtime, in turns, in one process."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from tyro.conf import Positional, arg

import metamixer.backbones  # noqa: F401  registers with timm
from metamixer.bench.machine import Machine, this_machine
from metamixer.bench.macs import count_macs
from metamixer.data.files import replace_when_done
from metamixer.deploy.export import TARGETS, count_parameters, target_module
from metamixer.deploy.merge import merge
from metamixer.deploy.timing import time_interleaved, torch_threads
from metamixer.errors import MetamixerError

WARMUP = 5


@dataclass(frozen=True)
class LatencyRow:
    """One model in one runtime.

    Args:
        model: its name.
        runtime: ``"torch"`` (eager) or a target of :func:`metamixer.export`.
        image_size: side of the pictures.
        batch: pictures per call.
        threads: threads within an operator.
        parameters: after merging for inference.
        macs: multiply-accumulates of one picture, transforms included.
        median_ms, low, high: milliseconds of one call: median and quartiles.
        repeats: calls measured.
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


def benchmark(
    models: Sequence[str],
    runtimes: Sequence[str] = ("torch", "onnx"),
    threads: int = 1,
    batch: int = 1,
    image_size: int | None = None,
    repeats: int = 50,
) -> list[LatencyRow]:
    """Time models merged for inference, with random weights, on the CPU.

    Args:
        models: names of ours or of timm's.
        runtimes: ``"torch"`` and targets of :func:`metamixer.export`.
        threads: threads within an operator.
        batch: pictures per call.
        image_size: side of the pictures; each model's own by default.
        repeats: rounds, each of which calls every model once in every runtime.

    Raises MetamixerError for an unknown model or runtime, a missing package, or numbers below 1.
    """
    if not models:
        raise MetamixerError("name at least one model to time")
    for name, value in (("threads", threads), ("batch", batch), ("repeats", repeats), ("image_size", image_size)):
        if value is not None and value < 1:
            raise MetamixerError(f"{name} must be at least 1, not {value}")
    for name in models:
        if not timm.is_model(name):
            raise MetamixerError(f"unknown model {name!r}; neither metamixer nor timm has it")
    for runtime in runtimes:
        if runtime not in ("torch", *TARGETS):
            raise MetamixerError(f"unknown runtime {runtime!r}; known: torch, {', '.join(TARGETS)}")
        if runtime != "torch":
            target_module(runtime).check()

    functions: dict[tuple[str, str], Callable[[], object]] = {}
    facts = {}
    with TemporaryDirectory() as folder, torch_threads(threads), torch.no_grad():
        for name in dict.fromkeys(models):  # each once
            model = merge(timm.create_model(name))
            cfg: Any = model.pretrained_cfg
            channels, _, own_size = cfg["input_size"]
            size = image_size or own_size
            pictures = torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(0))
            facts[name] = (size, count_parameters(model), count_macs(model, size, channels))
            for runtime in runtimes:
                functions[name, runtime] = _prepare(model, pictures, runtime, Path(folder), threads)
        timings = time_interleaved(functions, repeats, WARMUP)
        functions.clear()  # closes the sessions before their files go
    rows = []
    for (name, runtime), timing in timings.items():
        size, parameters, macs = facts[name]
        rows.append(
            LatencyRow(name, runtime, size, batch, threads, parameters, macs, repeats=repeats, **asdict(timing))
        )
    return rows


def _prepare(model: nn.Module, pictures: Tensor, runtime: str, folder: Path, threads: int) -> Callable[[], object]:
    """A function without arguments that runs the merged model once on the pictures."""
    if runtime == "torch":
        return lambda: model(pictures)
    module = target_module(runtime)
    path = folder / f"{len(list(folder.iterdir()))}{TARGETS[runtime][1]}"
    module.write(model, pictures, path)
    run, array = module.load(path, threads), pictures.numpy()
    return lambda: run(array)


def bench_command(
    models: Positional[Annotated[tuple[str, ...], arg(metavar="MODEL")]],
    *,
    against: tuple[str, ...] = (),
    runtimes: str = "torch,onnx",
    threads: int = 1,
    batch: int = 1,
    image_size: int | None = None,
    repeats: int = 50,
    out: Path | None = None,
) -> None:
    """Time models side by side on the CPU.

    Args:
        models: models to time.
        against: other models of timm to time in the same run, for comparison.
        runtimes: torch, onnx, or both, separated by commas.
        threads: threads within an operator.
        batch: pictures per call.
        image_size: side of the pictures in pixels; each model's own by default.
        repeats: measured calls per model and runtime.
        out: a .csv or .json file to write.
    """
    if out is not None and out.suffix not in (".csv", ".json"):
        raise MetamixerError(f"{out}: results are written as .csv or .json")
    if out is not None and not out.parent.is_dir():
        raise MetamixerError(f"{out.parent}: no such folder")
    chosen = [name.strip() for name in runtimes.split(",") if name.strip()]
    rows = benchmark([*models, *against], chosen, threads, batch, image_size, repeats)
    machine = this_machine()
    console = Console()
    console.print(latency_table(rows))
    console.print(str(machine), style="dim", highlight=False)
    if out is not None:
        save_rows(rows, machine, out)


def save_rows(rows: Sequence[LatencyRow], machine: Machine, path: Path) -> None:
    """Write rows as ``.csv`` (rows alone) or ``.json`` (with the machine)."""
    with replace_when_done(path) as temporary:
        if path.suffix == ".json":
            content = {"machine": asdict(machine), "rows": [asdict(row) for row in rows]}
            temporary.write_text(json.dumps(content, indent=2) + "\n")
            return
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, asdict(rows[0]))
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)


def latency_table(rows: Sequence[LatencyRow]) -> Table:
    """The rows as a table for the terminal."""
    first = rows[0]
    noun = "picture" if first.batch == 1 else "pictures"
    title = f"Milliseconds for {first.batch} {noun}, threads: {first.threads}, median of {first.repeats} (quartiles)"
    result = Table(title=title, title_justify="left")
    for heading in ("model", "size", "parameters", "MACs", "runtime", "median", "quartiles"):
        left = heading in ("model", "runtime")
        result.add_column(heading, justify="left" if left else "right", overflow="fold")
    for row in rows:
        result.add_row(
            row.model,
            f"{row.image_size}",
            f"{row.parameters / 1e6:.2f} M",
            f"{row.macs / 1e6:,.0f} M",
            row.runtime,
            f"{row.median_ms:.2f}",
            f"{row.low:.2f}–{row.high:.2f}",
        )
    return result
