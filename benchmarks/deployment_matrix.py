"""What works where? Every family in every runtime, in float32, float16 and int8.

    python benchmarks/deployment_matrix.py --calibration DIR --validation DIR --artefacts KEPT [--models …]
    python benchmarks/deployment_matrix.py --artefacts KEPT --latencies

Exports each model to each runtime with :func:`metamixer.export`, which runs the artefact and compares it with PyTorch,
and keeps the outcome in ``deployment_matrix.json`` beside this file: a row that is there already is not made again, so
the matrix can be made in pieces (and with ``--again`` anew). Then writes the table into ``docs/deployment.md``.
``DIR`` holds pictures in class folders, on which the shipped weights are calibrated and validated; on 50 of the
validation pictures they are compared with PyTorch. Networks without shipped weights are compared on photographs from
installed packages.

The second command times the artefacts that the first has kept, a few seconds for each, at a moment when the machine
does nothing else.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import nn

import metamixer as mm
from metamixer.bench.eager import EAGER
from metamixer.bench.machine import this_machine
from metamixer.data.files import replace_when_done
from metamixer.data.image_folder import ImageFolder
from metamixer.data.transforms import Preprocessing, evaluation_transform
from metamixer.deploy.export import export
from metamixer.deploy.report import ExportReport
from metamixer.deploy.runtime_process import RuntimeProcess
from metamixer.deploy.settings import PLAIN, PRECISIONS, Precision
from metamixer.deploy.targets import TARGETS, convert, target_module
from metamixer.deploy.timing import take_turns
from metamixer.errors import MetamixerError
from metamixer.models import load_model

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "deployment.md"
BEGIN, END = "<!-- the matrix, made by benchmarks/deployment_matrix.py -->", "<!-- the matrix ends -->"

NANO = ("affnet_nano.cifar10", "casvit_nano.cifar10", "ffnet_nano.cifar10", "dsm_nano.cifar10")
SMALLEST = ("affnet_et", "casvit_xs", "ffnet_1", "dsm_t")  # untrained: differences and times do not depend on weights
RUNTIMES = [name for name in TARGETS if name != "web"]  # which is ONNX Runtime once more


def main(
    calibration: Path | None = None,
    validation: Path | None = None,
    artefacts: Path | None = None,
    models: tuple[str, ...] = NANO + SMALLEST,
    targets: tuple[str, ...] = tuple(RUNTIMES),
    weights: tuple[Precision, ...] = PRECISIONS,
    validated: int = 1000,
    again: bool = False,
    latencies: bool = False,
    repeats: int = 20,
) -> None:
    """Make the rows that are missing, keep them, and write the table.

    Args:
        calibration: pictures for int8.
        validation: pictures in class folders, on which trained networks are compared with PyTorch, and their int8
            top-1 with that of float32.
        artefacts: folder that keeps what is exported, for --latencies.
        models: their names.
        targets: runtimes.
        weights: number formats.
        validated: how many pictures of the validation folder count, evenly spaced over all of them.
        again: make rows anew that are there already.
        latencies: make no rows, but time those whose artefact is kept.
        repeats: rounds of timing.
    """
    rows: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if artefacts is not None:
        artefacts.mkdir(parents=True, exist_ok=True)
    for name in models:
        keys = {_key(name, target, kind): (target, kind) for target in targets for kind in weights}
        if latencies:
            assert artefacts is not None, "--latencies needs --artefacts"
            _time(rows, name, keys, artefacts, repeats)
            _keep(rows)
            continue
        for key, (target, kind) in keys.items():
            trained = "." in name
            if key in rows and not again:
                continue
            if kind == "int8" and not trained and not target_module(target).REFUSES.get("int8"):
                continue  # what int8 costs can be seen with trained weights alone
            with tempfile.TemporaryDirectory() as folder:
                path = _artefact(artefacts or Path(folder), name, target, kind)
                rows[key] = _row(name, target, kind, path, calibration, validation if trained else None, validated)
            print(key, rows[key], flush=True)
            _keep(rows)
    text = PAGE.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    with replace_when_done(PAGE) as temporary:
        temporary.write_text("\n".join([before + BEGIN, *_table(rows), END]) + after)


def _key(name: str, target: str, kind: Precision) -> str:
    return f"{name} {target} {kind}"


def _artefact(folder: Path, name: str, target: str, kind: Precision) -> Path:
    return folder / f"{name}-{kind}{TARGETS[target].suffix}"


def _keep(rows: dict[str, Any]) -> None:
    with replace_when_done(RESULTS) as temporary:
        temporary.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")


@cache
def _model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return load_model(name) if "." in name else mm.create_model(name)


def _row(
    name: str,
    target: str,
    kind: Precision,
    path: Path,
    calibration: Path | None,
    validation: Path | None,
    count: int,
) -> dict[str, Any]:
    try:
        report = export(
            _model(name),
            target,
            path,
            weights=kind,
            pictures=validation or (),
            calibration=calibration or (),
            repeats=0,
            name=name,
        )
        row = {"works": True, **_facts(report)}
        if kind == "int8" and report.ran and validation is not None:
            with RuntimeProcess(TARGETS[target], path) as runtime:
                eight_bits = _top1(name, validation, count, lambda batch: runtime(batch.numpy()))
            row |= {"validated": count, "top1_float32": _top1_of_pytorch(name, validation, count)}
            row |= {"top1_int8": eight_bits}
    except MetamixerError as error:
        return {"works": False, "reason": str(error)}
    return row


def _facts(report: ExportReport) -> dict[str, Any]:
    if not report.ran:
        return {"ran": False, "size_bytes": report.size_bytes, "format": report.format}
    names = ("size_bytes", "count", "max_relative_difference", "top1_agreement", "format")
    return {"ran": True, **{name: getattr(report, name) for name in names}}


@cache
def _top1_of_pytorch(name: str, validation: Path, count: int) -> float:
    return _top1(name, validation, count, mm.merge(_model(name)))


@torch.inference_mode()
def _top1(name: str, validation: Path, count: int, run: Callable[[torch.Tensor], Any]) -> float:
    """Share of the pictures whose first class is right."""
    cfg: Any = _model(name).pretrained_cfg
    preprocessing = Preprocessing.of(cfg)
    pictures = ImageFolder(validation, evaluation_transform(preprocessing), cfg.get("label_names"))
    right = 0
    for index in np.linspace(0, len(pictures) - 1, count).round().astype(int):
        pixels, label = pictures[int(index)]
        right += int(run(preprocessing.normalise(pixels[None])).argmax()) == label
    return right / count


def _time(
    rows: dict[str, Any], name: str, keys: dict[str, tuple[str, Precision]], artefacts: Path, repeats: int
) -> None:
    """Load all artefacts of a model, and PyTorch, and time them in turns: one thread, one picture."""
    paths = {key: _artefact(artefacts, name, *of) for key, of in keys.items() if rows.get(key, {}).get("ran")}
    paths = {key: path for key, path in paths.items() if path.exists()}
    if not paths:
        return
    merged = mm.merge(_model(name))
    picture = torch.rand(1, *merged.pretrained_cfg["input_size"])
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        eager = Path(folder, "eager")
        convert(EAGER, merged, picture, eager, PLAIN, name)
        processes = {"eager": running.enter_context(RuntimeProcess(EAGER, eager, pinned=True))}
        for key, path in paths.items():
            processes[key] = running.enter_context(RuntimeProcess(TARGETS[keys[key][0]], path, pinned=True))
        for process in processes.values():
            process(picture.numpy())
        timings = take_turns({key: process.time_second_call for key, process in processes.items()}, repeats)
        for key in paths:
            rows[key] |= {"load_ms": processes[key].load_ms, "latency_runtime_ms": timings[key].median_ms}
            rows[key] |= {"latency_torch_ms": timings["eager"].median_ms}
            print(key, f"{timings[key].median_ms:.2f} ms", flush=True)


def _table(rows: dict[str, Any]) -> list[str]:
    reasons: list[str] = []
    timed = any(row.get("latency_runtime_ms") is not None for row in rows.values())
    lines = [
        f"Made on: {this_machine()}.",
        "",
        "A cell: largest difference of a logit from PyTorch in float32, as a share of the largest logit, then size.",
        "For int8: points of top-1 gained or lost on the validation pictures, then size, as a share of float32's too.",
        "Top-1 agreement on the pictures compared is 100 % where it is not named.",
        *(["Last the median latency: one picture, one thread, all artefacts of a model in turns."] if timed else []),
        "A dash: not tried; int8 is tried with trained weights alone.",
        "",
        "| model | runtime | fp32 | fp16 | int8 |",
        "|---|---|---|---|---|",
    ]
    for name in NANO + SMALLEST:
        for target in RUNTIMES:
            cells = []
            for kind in PRECISIONS:
                row = rows.get(_key(name, target, kind))
                full = rows.get(_key(name, target, "fp32"), {})
                cells.append(_cell(row, full.get("size_bytes"), reasons))
            if any(cell != "–" for cell in cells):
                lines.append(f"| {name} | {TARGETS[target].runtime} | " + " | ".join(cells) + " |")
    lines += ["", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1))]
    return lines


def _cell(row: dict[str, Any] | None, full_size: int | None, reasons: list[str]) -> str:
    if row is None:
        return "–"
    if not row["works"]:
        return f"no ({_number(row['reason'], reasons)})"
    size = f"{row['size_bytes'] / 1e6:.2f} MB"
    if not row["ran"]:
        return f"converts, {size} ({_number('not run on this machine: ' + row['format'], reasons)})"
    latency = f", {row['latency_runtime_ms']:.1f} ms" if row.get("latency_runtime_ms") else ""
    if "top1_int8" in row:
        gained = 100 * (row["top1_int8"] - row["top1_float32"])
        share = f" ({row['size_bytes'] / full_size:.0%})" if full_size else ""
        return f"{gained:+.1f} points of {row['validated']}, {size}{share}{latency}"
    agree = "" if row["top1_agreement"] == 1 else f", top-1 {row['top1_agreement']:.0%}"
    return f"{row['max_relative_difference']:.0e}{agree}, {size}{latency}"


def _number(reason: str, reasons: list[str]) -> int:
    if reason not in reasons:
        reasons.append(reason)
    return reasons.index(reason) + 1


if __name__ == "__main__":
    tyro.cli(main)
