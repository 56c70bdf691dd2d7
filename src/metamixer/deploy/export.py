"""Export a model to a runtime, run it there, and keep the artefact only if it agrees with PyTorch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from tyro.conf import Positional, arg

from metamixer.data.files import make_folder
from metamixer.data.transforms import Preprocessing, evaluation_transform
from metamixer.deploy.artefact import artefact, size_in_bytes
from metamixer.deploy.dense import export_dense
from metamixer.deploy.graph import WithPreprocessing
from metamixer.deploy.merge import merge
from metamixer.deploy.other_inputs import other_source
from metamixer.deploy.pictures import CHECKED, Picture, open_all, photographs, pictures_in, synthetic
from metamixer.deploy.quiet import quiet
from metamixer.deploy.report import (
    TOLERANCE,
    Agreement,
    ExportReport,
    agreement,
    complaint,
    report_path,
    table,
)
from metamixer.deploy.runtime_process import RuntimeProcess
from metamixer.deploy.settings import PRECISIONS, Precision, Settings
from metamixer.deploy.targets import TARGETS, convert, target_module
from metamixer.deploy.timing import milliseconds, take_turns, torch_threads
from metamixer.errors import MetamixerError
from metamixer.heads.base import DenseModel
from metamixer.models import class_names
from metamixer.tasks.dense import load_any_model

__all__ = ["TARGETS", "count_parameters", "export", "export_command", "target_module"]

_CALIBRATION = 128  # pictures that int8 learns its ranges from, at most
_OTHER_SIZES = 8  # pictures that a range of sizes is checked on at each size but the first
_MERGE_CHECK = 8  # pictures that merging is checked on
_SMALLEST = 33  # torch.export takes a last map of one pixel for a constant of the program
_NOT_RUN = Agreement(float("nan"), float("nan"), float("nan"))


def export(
    model: nn.Module | str | Path,
    target: str = "onnx",
    path: str | Path | None = None,
    image_size: int | None = None,
    *,
    weights: Precision = "fp32",
    sizes: tuple[int, int] | None = None,
    dynamic_batch: bool = False,
    normalise: bool = False,
    softmax: bool = False,
    pictures: str | Path | Sequence[Picture] = (),
    calibration: str | Path | Sequence[Picture] = (),
    repeats: int = 30,
    name: str | None = None,
) -> ExportReport:
    """Merge a model, export it, and check the export in its runtime against PyTorch.

    Args:
        model: a model in any state, which is left as it is, or a name (with ``.tag`` for particular weights), or the
            path of a checkpoint.
        target: runtime, one of :data:`TARGETS`.
        path: artefact to write; by default the model's name in the working folder. The report goes beside it as JSON.
        image_size: side of the input in pixels; by default the model's own, 64 for super-resolution.
        weights: ``"fp32"``, ``"fp16"`` or ``"int8"``; what the last two mean for a runtime, its module says.
        sizes: smallest and largest side that the artefact shall take, in place of one size.
        dynamic_batch: accept any number of pictures at once instead of one.
        normalise: build the normalisation into the graph, which then takes float32 pictures between 0 and 255.
        softmax: give probabilities instead of logits.
        pictures: photographs to compare on, paths or PIL pictures, or a folder of them, of which 50 are taken; by
            default photographs that installed packages bring along.
        calibration: likewise, the pictures that int8 learns its ranges from.
        repeats: rounds of timing with one thread and one picture; 0 to leave the timing out.
        name: what report and file call the model; by default its architecture, with the tag if the name had one.

    Raises MetamixerError for an unknown target, missing packages, options that a target does not know, pictures that
    cannot be read, a place that cannot be written, a runtime that fails, and for an export that does not agree: in
    float32 one whose logits differ from PyTorch's by more than 1e-3 of the largest. Then there is no artefact.
    """
    module = target_module(target)
    module.check()
    settings = Settings(weights=weights, dynamic_batch=dynamic_batch, sizes=sizes)
    _check_options(target, settings, image_size, calibration)
    if not isinstance(model, nn.Module):
        model, name = _load(model, name)
    if isinstance(model, DenseModel):
        if target != "onnx" or sizes or softmax:
            raise MetamixerError("detectors and segmenters are exported to onnx alone, in one size, without softmax")
        return export_dense(
            model, path, image_size, weights=weights, dynamic_batch=dynamic_batch, normalise=normalise,
            pictures=pictures, repeats=repeats, name=name,
        )  # fmt: skip
    name = name or model_name(model)
    path = Path(path if path is not None else f"{name}{TARGETS[target].suffix}")
    if getattr(module, "WHOLE", False):
        normalise = softmax = True
    source = other_source(model, name, normalise or softmax, weights == "int8") or _Source(
        model, name, normalise, softmax
    )
    inputs = source.inputs(_first_size(source, image_size, sizes), pictures, CHECKED)
    size = source.size(inputs)
    more = {s: source.inputs(s, pictures, _OTHER_SIZES) for s in _sizes_between(sizes) if s != size}
    if weights == "int8":
        calibrating = source.inputs(size, calibration, _CALIBRATION)
        settings = Settings(**{**vars(settings), "calibration": calibrating.numpy()})

    merged = source.wrap(merge(model).cpu())
    reference = _outputs(merged, inputs)
    unmerged = agreement(
        _outputs(source.wrap(deepcopy(model).cpu().eval()), inputs[:_MERGE_CHECK]), reference[:_MERGE_CHECK]
    )
    if unmerged.max_relative > TOLERANCE:
        raise MetamixerError(f"merging {name} changes its logits by {unmerged.max_relative:.1e} of the largest")

    settings = Settings(**{**vars(settings), "metadata": source.metadata(size, sizes), "output": source.output})
    found, load_ms, torch_ms, runtime_ms = _NOT_RUN, None, None, None
    with artefact(path) as temporary:
        written = convert(TARGETS[target], merged, inputs[:1], temporary, settings, name)
        ran = getattr(module, "RUNS_HERE", True)
        if ran:
            with RuntimeProcess(TARGETS[target], temporary) as runtime:
                load_ms = runtime.load_ms
                found = agreement(reference, _outputs(runtime, inputs, dynamic_batch))
                for other in more.values():
                    found = found.worse(agreement(_outputs(merged, other), _outputs(runtime, other, dynamic_batch)))
                wrong = complaint(found, weights)
                if wrong:
                    where = _divergence(module, merged, inputs[:1], temporary, settings)
                    raise MetamixerError(f"the {target} export of {name} {wrong}{where} and was not kept")
                if repeats:
                    torch_ms, runtime_ms = _latencies(merged, runtime, inputs[:1], repeats)
        size_bytes = size_in_bytes(temporary)
    report = ExportReport(
        target=target,
        path=str(path),
        model=name,
        image_size=size,
        weights=weights,
        format=written,
        ran=ran,
        size_bytes=size_bytes,
        count=len(inputs) + sum(map(len, more.values())),
        checked_sizes=sorted({size, *more}),
        max_abs_difference=found.max_abs,
        max_relative_difference=found.max_relative,
        top1_agreement=found.top1 if source.classifies else float("nan"),
        parameters_before=count_parameters(model),
        parameters_after=count_parameters(merged),
        merge_difference=unmerged.max_relative,
        load_ms=load_ms,
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
    sizes: tuple[int, int] | None = None,
    dynamic_batch: bool = False,
    normalise: bool = False,
    softmax: bool = False,
    weights: Precision = "fp32",
    pictures: Path | None = None,
    calibration: Path | None = None,
) -> None:
    """Export a model and check it against PyTorch.

    Args:
        model: a model's name, ``name.tag`` for particular weights, or the path of a checkpoint.
        to: targets, separated by commas, or all: those whose packages are installed.
        out: folder for the artefacts and their reports.
        image_size: side of the input in pixels; the model's own by default.
        sizes: smallest and largest side that the artefact shall take, in place of one size.
        dynamic_batch: accept any number of pictures at once.
        normalise: build the normalisation into the graph, which then takes pictures between 0 and 255.
        softmax: give probabilities instead of logits.
        weights: number format of the weights; int8 needs --calibration.
        pictures: folder of pictures to compare on; photographs from installed packages by default.
        calibration: folder of pictures that int8 learns its ranges from.
    """
    every = to.strip() == "all"
    targets = list(TARGETS) if every else [name.strip() for name in to.split(",") if name.strip()]
    if not targets:
        raise MetamixerError(f"name a target; known: {', '.join(TARGETS)}")
    left_out: dict[str, str] = {}
    for target in targets:  # before any work
        try:
            target_module(target).check()
            _check_options(target, Settings(weights, {}, dynamic_batch, sizes), image_size, calibration or ())
        except MetamixerError as error:
            if not every:
                raise
            left_out[target] = str(error)
    folder = make_folder(out)
    loaded, name = _load(model)
    kind = "" if weights == "fp32" else f"-{weights}"
    console, reports, failed = Console(), [], {}
    for target in targets:
        if target in left_out:
            continue
        try:
            with console.status(f"Exporting to {TARGETS[target].runtime} …"):
                report = export(
                    loaded, target, folder / f"{name}{kind}{TARGETS[target].suffix}", image_size, weights=weights,
                    sizes=sizes, dynamic_batch=dynamic_batch, normalise=normalise, softmax=softmax,
                    pictures=pictures or (), calibration=calibration or (), name=name,
                )  # fmt: skip
        except MetamixerError as error:
            if len(targets) == 1:
                raise
            failed[target] = str(error)  # the others may still work
        else:
            reports.append(report)
    if reports:
        console.print(table(reports))
    for report in reports:
        console.print(f"{report.path} and {report_path(report.path)}: {report.format}", soft_wrap=True, highlight=False)
    for target, reason in left_out.items():
        console.print(f"{target} was left out: {reason}", soft_wrap=True, highlight=False, markup=False)
    if failed:
        reasons = "; ".join(f"{target}: {reason}" for target, reason in failed.items())
        raise MetamixerError(f"{len(failed)} of {len(failed) + len(reports)} exports failed: {reasons}")
    if not reports:
        raise MetamixerError("no target could be tried; the reasons are above")


def model_name(model: nn.Module) -> str:
    """Architecture of one of our networks or a timm model, else the name of its class."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    made_by: Any = getattr(model, "made_by", None)  # of the networks that timm does not know
    return cfg.get("architecture") or (made_by[0] if made_by else type(model).__name__.lower())


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class _Source:
    """A model to be exported: what goes in, how the graph begins and ends, and what its user must know."""

    classifies = True

    def __init__(self, model: nn.Module, name: str, normalise: bool, softmax: bool) -> None:
        self.model = model
        self.name = name
        self.normalise = normalise
        self.softmax = softmax
        self.output = "probabilities" if softmax else "logits"
        self.cfg = getattr(model, "pretrained_cfg", None)
        self.channels = getattr(model, "in_chans", self.cfg["input_size"][0] if self.cfg else 3)
        if normalise and (self.cfg is None or self.channels != len(self.cfg["mean"])):
            raise MetamixerError(f"{name} does not say how its pictures are normalised")

    def wrap(self, model: nn.Module) -> nn.Module:
        if not (self.normalise or self.softmax):
            return model
        mean, std = (self.cfg["mean"], self.cfg["std"]) if self.normalise and self.cfg else (None, None)
        return WithPreprocessing(model, mean, std, self.softmax).eval()

    def inputs(self, size: int | None, pictures: str | Path | Sequence[Picture], most: int) -> Tensor:
        """``N × C × S × S`` float32 as the graph takes them: the given pictures, else photographs, else noise."""
        if isinstance(pictures, (str, Path)):
            pictures = pictures_in(pictures, most)
        if self.cfg is None:
            if size is None or pictures:
                raise MetamixerError("a model without a timm pretrained_cfg needs image_size and takes no pictures")
            return synthetic(self.channels, size)
        preprocessing = Preprocessing.of(self.cfg, size)
        if self.channels != 3:
            if pictures:
                raise MetamixerError(f"{self.name} takes {self.channels} channels, pictures have 3")
            return synthetic(self.channels, preprocessing.image_size)
        transform = evaluation_transform(preprocessing)
        opened = open_all(pictures) if pictures else photographs(most)
        pixels = torch.stack([transform(picture) for picture in opened])
        return pixels.float() if self.normalise else preprocessing.normalise(pixels)

    def size(self, inputs: Tensor) -> int:
        """Side of the pictures."""
        return inputs.shape[-1]

    def metadata(self, size: int, sizes: tuple[int, int] | None) -> dict[str, str]:
        """As text: architecture, classes, preprocessing, what goes in and what comes out."""
        metadata = {
            "producer": "metamixer",
            "architecture": self.name,
            "image_size": str(size) if sizes is None else f"{sizes[0]}-{sizes[1]}",
            "input": "RGB, 0 to 255" if self.normalise else "normalised",
            "output": self.output,
        }
        if self.cfg is not None:
            metadata["preprocessing"] = json.dumps(asdict(Preprocessing.of(self.cfg, size)))
            names = class_names(self.model)
            if names is not None:
                metadata["classes"] = json.dumps(names)
                metadata["class_names"] = json.dumps(class_names(self.model, readable=True))
        return metadata


def _load(model: str | Path, name: str | None = None) -> tuple[nn.Module, str]:
    """A model by name or checkpoint, and what to call it."""
    loaded = load_any_model(model)
    return loaded, name or (model_name(loaded) if Path(model).is_file() else str(model))


def _check_options(
    target: str, settings: Settings, image_size: int | None, calibration: str | Path | Sequence[Picture]
) -> None:
    if settings.weights not in PRECISIONS:
        raise MetamixerError(f"unknown weights {settings.weights!r}; known: {', '.join(PRECISIONS)}")
    asked: set[str] = {settings.weights}
    asked |= {name for name in ("sizes", "dynamic_batch") if getattr(settings, name)}
    for name, reason in target_module(target).REFUSES.items():
        if name in asked:
            raise MetamixerError(f"{target} exports know no {name.replace('_', ' ')}: {reason}")
    if settings.weights == "int8" and not calibration:
        raise MetamixerError("int8 learns its ranges from pictures; name a folder of them with calibration")
    if settings.sizes is not None:
        low, high = settings.sizes
        if not _SMALLEST <= low < high:
            raise MetamixerError(f"sizes must rise and start at {_SMALLEST} pixels or more, not {low} to {high}")
        if image_size is not None and not low <= image_size <= high:
            raise MetamixerError(f"image_size {image_size} is outside the sizes {low} to {high}")
    elif image_size is not None and image_size < 1:
        raise MetamixerError(f"image_size must be at least 1, not {image_size}")


def _first_size(source: Any, image_size: int | None, sizes: tuple[int, int] | None) -> int | None:
    """The size that is timed and compared on all pictures; None for the model's own."""
    if image_size is not None or sizes is None:
        return image_size
    own = source.cfg["input_size"][-1] if source.cfg else sizes[0]
    return min(max(own, sizes[0]), sizes[1])


def _sizes_between(sizes: tuple[int, int] | None) -> list[int]:
    """Both ends and three sizes between them, odd ones among them."""
    if sizes is None:
        return []
    low, high = sizes
    between = [low + (high - low) * quarter // 4 for quarter in (1, 2, 3)]
    return sorted({low, high, *(min(size | 1, high) for size in between)})


@torch.no_grad()
def _outputs(model: Any, inputs: Tensor, together: bool = False) -> np.ndarray:
    """Outputs of PyTorch or of a runtime on the CPU, for all pictures together or one at a time."""
    batches = [inputs] if together else list(inputs.split(1))
    if isinstance(model, nn.Module):
        return torch.cat([model(batch) for batch in batches]).numpy()
    return np.concatenate([model(batch.numpy()) for batch in batches])


@torch.inference_mode()
def _latencies(model: nn.Module, runtime: RuntimeProcess, example: Tensor, repeats: int) -> tuple[float, float]:
    """Median milliseconds of PyTorch and of the runtime, in turns."""
    runtime(example.numpy())
    with torch_threads(1):
        ours = partial(milliseconds, partial(model, example))
        timings = take_turns({"torch": ours, "runtime": runtime.time_again}, repeats)
    return timings["torch"].median_ms, timings["runtime"].median_ms


def _divergence(module: Any, model: nn.Module, example: Tensor, path: Path, settings: Settings) -> str:
    """Where an export of full precision first leaves PyTorch, as part of a sentence, where the runtime allows."""
    if settings.weights == "int8" or not hasattr(module, "first_divergence"):
        return ""
    with quiet():
        layer = module.first_divergence(model, example, path, settings, TOLERANCE)
    return f", first in {layer}" if layer else ""
