"""What works where? Every family in every runtime, in float32, float16 and int8.

    python benchmarks/deployment_matrix.py --calibration DIR --validation DIR [--models affnet_nano.cifar10 …]

Exports each model to each runtime with :func:`metamixer.export`, which runs the artefact and compares it with PyTorch,
and keeps the outcome in ``deployment_matrix.json`` beside this file: a row that is there already is not made again, so
the matrix can be made in pieces (and with ``--again`` anew). Then writes the table into ``docs/deployment.md``.
``DIR`` holds pictures in class folders, on which the shipped weights are calibrated and validated; on 50 of the
validation pictures they are compared with PyTorch. Networks without shipped weights are compared on photographs from
installed packages.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import nn

import metamixer as mm
from metamixer.bench.machine import this_machine
from metamixer.data.files import replace_when_done
from metamixer.data.image_folder import ImageFolder
from metamixer.data.transforms import Preprocessing, evaluation_transform
from metamixer.deploy.export import export
from metamixer.deploy.report import ExportReport
from metamixer.deploy.runtime_process import RuntimeProcess
from metamixer.deploy.settings import PRECISIONS, Precision
from metamixer.deploy.targets import TARGETS, target_module
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
    models: tuple[str, ...] = NANO + SMALLEST,
    targets: tuple[str, ...] = tuple(RUNTIMES),
    weights: tuple[Precision, ...] = PRECISIONS,
    validated: int = 1000,
    repeats: int = 20,
    again: bool = False,
) -> None:
    """Make the rows that are missing, keep them, and write the table.

    Args:
        calibration: pictures for int8.
        validation: pictures in class folders, on which trained networks are compared with PyTorch, and their int8
            top-1 with that of float32.
        models: their names.
        targets: runtimes.
        weights: number formats.
        validated: how many pictures of the validation folder count, evenly spaced over all of them.
        repeats: rounds of timing; 0 leaves the latencies out, as on a machine that is busy.
        again: make rows anew that are there already.
    """
    rows: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in models:
        model = None
        for target in targets:
            for kind in weights:
                key = f"{name} {target} {kind}"
                if key in rows and not again:
                    continue
                trained = "." in name
                model = model or (load_model(name) if trained else mm.create_model(name))
                if kind == "int8" and not trained and not target_module(target).REFUSES.get("int8"):
                    continue  # what int8 costs can be seen with trained weights alone
                checked = validation if trained else None
                rows[key] = _row(model, name, target, kind, calibration, checked, validated, repeats)
                print(key, rows[key], flush=True)
                with replace_when_done(RESULTS) as temporary:
                    temporary.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
    text = PAGE.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    with replace_when_done(PAGE) as temporary:
        temporary.write_text("\n".join([before + BEGIN, *_table(rows), END]) + after)


def _row(
    model: nn.Module,
    name: str,
    target: str,
    kind: Precision,
    calibration: Path | None,
    validation: Path | None,
    count: int,
    repeats: int,
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}{TARGETS[target].suffix}")
        try:
            report = export(
                model,
                target,
                path,
                weights=kind,
                pictures=validation or (),
                calibration=calibration or (),
                repeats=repeats,
                name=name,
            )
        except MetamixerError as error:
            return {"works": False, "reason": str(error)}
        row = {"works": True, **_facts(report)}
        if kind == "int8" and report.ran and validation is not None:
            row |= _accuracy(model, target, path, validation, count)
        return row


def _facts(report: ExportReport) -> dict[str, Any]:
    if not report.ran:
        return {"ran": False, "size_bytes": report.size_bytes, "format": report.format}
    names = ("size_bytes", "count", "max_relative_difference", "top1_agreement", "load_ms", "format")
    latencies = ("latency_torch_ms", "latency_runtime_ms")
    return {"ran": True, **{name: getattr(report, name) for name in (*names, *latencies)}}


@torch.inference_mode()
def _accuracy(model: nn.Module, target: str, path: Path, validation: Path, count: int) -> dict[str, Any]:
    """Top-1 of merged PyTorch and of the artefact on the same pictures."""
    preprocessing = Preprocessing.of(model.pretrained_cfg)
    pictures = ImageFolder(validation, evaluation_transform(preprocessing), model.pretrained_cfg.get("label_names"))
    chosen = np.linspace(0, len(pictures) - 1, min(count, len(pictures))).round().astype(int)
    merged, right = mm.merge(model), {"float32": 0, "int8": 0}
    with RuntimeProcess(TARGETS[target], path) as runtime:
        for index in chosen:
            pixels, label = pictures[int(index)]
            batch = preprocessing.normalise(pixels[None])
            right["float32"] += int(merged(batch).argmax()) == label
            right["int8"] += int(runtime(batch.numpy()).argmax()) == label
    shares = {f"top1_{name}": number / len(chosen) for name, number in right.items()}
    return {"validated": len(chosen), **shares}


def _table(rows: dict[str, Any]) -> list[str]:
    reasons: list[str] = []
    timed = any(row.get("latency_runtime_ms") is not None for row in rows.values())
    lines = [
        f"Made on: {this_machine()}.",
        "",
        "A cell: largest difference of a logit from PyTorch in float32, as a share of the largest logit, then size.",
        "For int8: points of top-1 gained or lost on the validation pictures, size, share of the float32 ONNX file.",
        "Top-1 agreement is 100 % where it is not named.",
        "Latency where it was measured: one thread, one picture, in turns with PyTorch."
        if timed
        else "Latencies are left out (`--repeats 0`): other work was running on the machine.",
        "A dash: not tried; int8 is tried with trained weights alone.",
        "",
        "| model | runtime | fp32 | fp16 | int8 |",
        "|---|---|---|---|---|",
    ]
    for name in NANO + SMALLEST:
        for target in RUNTIMES:
            cells = []
            for kind in PRECISIONS:
                row = rows.get(f"{name} {target} {kind}")
                full = rows.get(f"{name} onnx fp32") or {}
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
    latency = "" if row["latency_runtime_ms"] is None else f", {row['latency_runtime_ms']:.1f} ms"
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
