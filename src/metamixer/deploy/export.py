"""Export a model to a runtime, run it there, and keep the file only if it agrees with PyTorch.

A target is one module with three functions:

- ``check()`` raises MetamixerError where its packages are missing;
- ``write(model, example, path, metadata, dynamic_batch) -> opset or None`` writes one file;
- ``load(path, threads) -> Runtime`` opens that file as a function from a float32 array to an array.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from tyro.conf import Positional, arg

from metamixer.data.files import make_folder, replace_when_done
from metamixer.data.pictures import read_picture, to_rgb
from metamixer.data.transforms import Preprocessing, evaluation_transform
from metamixer.deploy.merge import merge
from metamixer.deploy.report import TOLERANCE, ExportReport, Runtime, agreement, report_path, table
from metamixer.deploy.timing import time_interleaved, torch_threads
from metamixer.errors import MetamixerError
from metamixer.models import class_names, load_model

# Name of a target → the module that writes and runs it, and the suffix of its files.
TARGETS = {"onnx": ("metamixer.deploy.onnx", ".onnx")}

_SYNTHETIC_PICTURES = 8


def export(
    model: nn.Module | str | Path,
    target: str = "onnx",
    path: str | Path | None = None,
    image_size: int | None = None,
    *,
    pictures: Sequence[str | Path | Image.Image] = (),
    dynamic_batch: bool = False,
    repeats: int = 30,
    name: str | None = None,
) -> ExportReport:
    """Merge a model, export it, and check the export in its runtime against PyTorch.

    Args:
        model: a model in any state, which is left as it is, or a name (with ``.tag`` for particular weights), or the
            path of a checkpoint.
        target: runtime, one of :data:`TARGETS`.
        path: file to write; by default the model's name in the working folder. The report goes beside it as JSON.
        image_size: side of the input in pixels; by default the model's own. Exports have a fixed size.
        pictures: photographs (paths or PIL pictures) to compare on; by default eight synthetic ones.
        dynamic_batch: accept any number of pictures at once instead of one.
        repeats: rounds of timing with one thread and one picture; 0 to leave the timing out.
        name: what report and file call the model; by default its architecture, with the tag if the name had one.

    Raises MetamixerError for an unknown target, missing packages, a place that cannot be written, and for an export
    whose logits differ from PyTorch's by more than 1e-3 of the largest; then there is no file.
    """
    module = target_module(target)
    module.check()
    if not isinstance(model, nn.Module):
        model, name = _load(model, name)
    name = name or model_name(model)
    path = Path(path if path is not None else f"{name}{TARGETS[target][1]}")
    inputs = _inputs(model, image_size, pictures)
    size = inputs.shape[-1]

    merged = merge(model).cpu()
    reference = _logits(merged, inputs)
    unmerged = agreement(_logits_of_copy(model, inputs), reference)
    if unmerged.max_relative > TOLERANCE:
        raise MetamixerError(f"merging {name} changes its logits by {unmerged.max_relative:.1e} of the largest")

    with replace_when_done(path) as temporary:
        opset = module.write(merged, inputs[:1], temporary, _metadata(model, name, size), dynamic_batch)
        runtime: Runtime = module.load(temporary, threads=1)
        batches = [inputs.numpy()] if dynamic_batch else [inputs[i : i + 1].numpy() for i in range(len(inputs))]
        agrees = agreement(reference, np.concatenate([runtime(batch) for batch in batches]))
        if agrees.max_relative > TOLERANCE:
            raise MetamixerError(
                f"the {target} export of {name} differs from PyTorch by {agrees.max_relative:.1e} of the largest logit "
                f"(at most {TOLERANCE:g} is accepted) and was not kept"
            )
        torch_ms, runtime_ms = _latencies(merged, runtime, inputs[:1], repeats) if repeats else (None, None)
        size_bytes = temporary.stat().st_size
    report = ExportReport(
        target=target,
        path=str(path),
        model=name,
        image_size=size,
        size_bytes=size_bytes,
        count=len(inputs),
        max_abs_difference=agrees.max_abs,
        max_relative_difference=agrees.max_relative,
        top1_agreement=agrees.top1,
        parameters_before=count_parameters(model),
        parameters_after=count_parameters(merged),
        merge_difference=unmerged.max_relative,
        opset=opset,
        latency_torch_ms=torch_ms,
        latency_runtime_ms=runtime_ms,
    )
    report.save(report_path(path))
    return report


def export_command(
    model: Positional[Annotated[str, arg(metavar="MODEL")]],
    *,
    to: str = "onnx",
    out: Path = Path("exported"),
    image_size: int | None = None,
) -> None:
    """Export a model and check it against PyTorch.

    Args:
        model: a model's name, ``name.tag`` for particular weights, or the path of a checkpoint.
        to: targets, separated by commas.
        out: folder for the artefacts and their reports.
        image_size: side of the input in pixels; the model's own by default.
    """
    targets = [name.strip() for name in to.split(",") if name.strip()]
    for target in targets:
        target_module(target).check()  # before any work
    if not targets:
        raise MetamixerError(f"name a target; known: {', '.join(TARGETS)}")
    folder = make_folder(out)
    loaded, name = _load(model)
    reports = [
        export(loaded, target, folder / f"{name}{TARGETS[target][1]}", image_size, name=name) for target in targets
    ]
    console = Console()
    console.print(table(reports))
    for report in reports:
        console.print(f"{report.path} and {report_path(report.path)}", soft_wrap=True)


def target_module(target: str) -> Any:
    """The module of a target. Raises MetamixerError, naming the known ones, for an unknown target."""
    if target not in TARGETS:
        raise MetamixerError(f"unknown export target {target!r}; known: {', '.join(TARGETS)}")
    return import_module(TARGETS[target][0])


def _load(model: str | Path, name: str | None = None) -> tuple[nn.Module, str]:
    """A model by name or checkpoint, and what to call it."""
    loaded = load_model(model)
    return loaded, name or (model_name(loaded) if Path(model).is_file() else str(model))


def model_name(model: nn.Module) -> str:
    """Architecture of a timm model, else the name of its class."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return cfg.get("architecture") or type(model).__name__.lower()


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _inputs(model: nn.Module, image_size: int | None, pictures: Sequence[str | Path | Image.Image]) -> Tensor:
    """``N × C × S × S`` normalised float32: the given pictures, or smooth synthetic ones with some noise."""
    cfg = getattr(model, "pretrained_cfg", None)
    if cfg is None:
        if image_size is None or pictures:
            raise MetamixerError("a model without a timm pretrained_cfg needs image_size and takes no pictures")
        return _synthetic(getattr(model, "in_chans", 3), image_size)
    preprocessing = Preprocessing.of(cfg, image_size)
    channels = getattr(model, "in_chans", cfg["input_size"][0])
    if not pictures:
        return _synthetic(channels, preprocessing.image_size)
    if channels != 3:
        raise MetamixerError(f"{model_name(model)} takes {channels} channels, pictures have 3")
    transform = evaluation_transform(preprocessing)
    opened = [to_rgb(p) if isinstance(p, Image.Image) else read_picture(p) for p in pictures]
    return preprocessing.normalise(torch.stack([transform(picture) for picture in opened]))


def _synthetic(channels: int, size: int) -> Tensor:
    """Blurred noise over several scales, the same on every call, with about the statistics of normalised pictures."""
    generator = torch.Generator().manual_seed(0)
    result = torch.zeros(_SYNTHETIC_PICTURES, channels, size, size)
    for cells in (2, 4, 8, 16):
        noise = torch.randn(_SYNTHETIC_PICTURES, channels, cells, cells, generator=generator)
        result += nn.functional.interpolate(noise, size=(size, size), mode="bilinear", align_corners=False)
    return result + 0.1 * torch.randn(result.shape, generator=generator)


@torch.no_grad()
def _logits(model: nn.Module, inputs: Tensor) -> np.ndarray:
    """Outputs one picture at a time, on the CPU."""
    return torch.cat([model(inputs[i : i + 1]) for i in range(len(inputs))]).numpy()


def _logits_of_copy(model: nn.Module, inputs: Tensor) -> np.ndarray:
    """The unmerged model's outputs in evaluation mode on the CPU; the model itself keeps its mode and device."""
    return _logits(deepcopy(model).cpu().eval(), inputs)


@torch.inference_mode()
def _latencies(model: nn.Module, runtime: Runtime, example: Tensor, repeats: int) -> tuple[float, float]:
    array = example.numpy()
    with torch_threads(1):
        timings = time_interleaved({"torch": lambda: model(example), "runtime": lambda: runtime(array)}, repeats)
    return timings["torch"].median_ms, timings["runtime"].median_ms


def _metadata(model: nn.Module, name: str, image_size: int) -> dict[str, str]:
    """What a user of the file must know, as text: architecture, classes, preprocessing."""
    metadata = {"producer": "metamixer", "architecture": name, "image_size": str(image_size)}
    cfg = getattr(model, "pretrained_cfg", None)
    if cfg is not None:
        metadata["preprocessing"] = json.dumps(asdict(Preprocessing.of(cfg, image_size)))
        names = class_names(model)
        if names is not None:
            metadata["classes"] = json.dumps(list(names))
    return metadata
