"""Export a model to a runtime, run it there, and keep the artefact only if it agrees with PyTorch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from torch import Tensor, nn
from tyro.conf import Positional, arg

from metamixer.data.files import make_folder
from metamixer.deploy.artefact import artefact, size_in_bytes
from metamixer.deploy.dense import DenseSource, default_name
from metamixer.deploy.features import FeatureMaps, FeaturesSource, indices_of
from metamixer.deploy.merge import merge
from metamixer.deploy.other_inputs import CloudSource, EnlargementSource, SeriesSource
from metamixer.deploy.pictures import Picture
from metamixer.deploy.quiet import quiet
from metamixer.deploy.report import (
    TOLERANCE,
    Agreement,
    ExportReport,
    as_list,
    complaint,
    merging_line,
    report_path,
    table,
    tolerance,
)
from metamixer.deploy.runtime_process import RuntimeProcess
from metamixer.deploy.settings import NOTHING, PRECISIONS, Options, Precision, Settings
from metamixer.deploy.source import Answer, ClassifierSource, Source, agreement_of_all, answer_of
from metamixer.deploy.targets import TARGETS, convert, target_module
from metamixer.deploy.timing import milliseconds, take_turns, torch_threads
from metamixer.errors import MetamixerError
from metamixer.finite import called
from metamixer.heads.base import DenseModel, Size
from metamixer.limits import CountOrNone, Side, checked
from metamixer.networks import FFNetPoints, FFNetSR, FFNetTSF
from metamixer.printing import notices, say, working
from metamixer.tasks.dense import load_any_model

__all__ = ["TARGETS", "count_parameters", "export", "export_command", "target_module"]

_CALIBRATION = 128  # pictures that int8 learns its ranges from, at most
_OTHER_SIZES = 8  # pictures that a range of sizes is checked on at each size but the first
_MERGE_CHECK = 2  # pictures that merging is checked on
_SMALLEST = 33  # torch.export takes a last map of one pixel for a constant of the program
_OTHER_NETWORKS: dict[type[nn.Module], type[Source]] = {
    FFNetSR: EnlargementSource,
    FFNetTSF: SeriesSource,
    FFNetPoints: CloudSource,
}
_NOT_RUN = Agreement(float("nan"), float("nan"), float("nan"))


@checked
def export(
    model: nn.Module | str | Path,
    target: str = "onnx",
    path: str | Path | None = None,
    image_size: Side | tuple[Side, Side] | None = None,
    *,
    weights: Precision = "fp32",
    sizes: tuple[Side, Side] | None = None,
    dynamic_batch: bool = False,
    normalise: bool = False,
    softmax: bool = False,
    nms: bool = False,
    features: bool = False,
    pictures: str | Path | Sequence[Picture] = (),
    calibration: str | Path | Sequence[Picture] = (),
    repeats: CountOrNone = 30,
    name: str | None = None,
) -> ExportReport:
    """Merge a model, export it, and check the export in its runtime against PyTorch.

    Args:
        model: a model in any state, which is left as it is, or a name (with ``.tag`` for particular weights), or the
            path of a checkpoint. Of a detector or segmenter what ``forward_raw`` gives is exported, by the names in
            :data:`metamixer.deploy.dense.OUTPUTS`; its ``postprocess`` makes results of that. Of one made with
            ``features_only=True``, ours or timm's, its maps are, as ``stage_0`` and on.
        target: runtime, one of :data:`TARGETS`.
        path: artefact to write; by default the model's name in the working folder. The report goes beside it as JSON.
        image_size: side of the input in pixels; by default the model's own, 64 for super-resolution. Detectors and
            segmenters also take height and width, see :func:`metamixer.deploy.dense.input_size`.
        weights: ``"fp32"``, ``"fp16"`` or ``"int8"``; what the last two mean for a runtime, its module says.
        sizes: smallest and largest side that the artefact shall take, in place of one size.
        dynamic_batch: accept any number of pictures at once instead of one.
        normalise: build the normalisation into the graph, which then takes float32 pictures between 0 and 255.
        softmax: give probabilities instead of logits.
        nms: choose among a RetinaNet's or SSDLite's boxes inside the graph, for one picture at a time.
        features: export the maps after a classifier's stages, and not the classifier.
        pictures: photographs to compare on, paths or PIL pictures, or a folder of them, of which 50 are taken (8 for
            detectors and segmenters); by default photographs that installed packages bring along, and parts of them.
        calibration: likewise, the pictures that int8 learns its ranges from.
        repeats: rounds of timing with one thread and one picture; 0 to leave the timing out.
        name: what report and file call the model; by default its architecture, with the tag if the name had one.

    Raises MetamixerError for an unknown target, missing packages, options that a target or a model does not know,
    pictures that cannot be read, a size that the model does not take, a place that cannot be written, a runtime that
    fails, weights or outputs that are not finite, and for an export that does not agree: in float32 one with an output
    that differs from PyTorch's by more than 1e-4 of its largest value (:func:`metamixer.deploy.report.agreement`). Then
    there is no artefact.
    """
    module = target_module(target)
    module.check()
    options = Options(weights, sizes, dynamic_batch, normalise, softmax, nms, features)
    _check_options(target, options, image_size, calibration)
    if not isinstance(model, nn.Module):
        model, name = _load(model, name)
    name = name or model_name(model)
    path = Path(path if path is not None else f"{name}{'-features' if features else ''}{TARGETS[target].suffix}")
    model = _maps_of(model, name, options)
    source = source_of(model, name, options, whole=getattr(module, "WHOLE", False))
    if isinstance(image_size, tuple) and not source.rectangles:
        raise MetamixerError(f"{name} takes squares: give the length of one side as image_size")
    source.require_room(image_size or (sizes and sizes[1]), source.checked, _MERGE_CHECK)
    inputs = source.inputs(_first_size(source, image_size, sizes), pictures, source.checked)
    size = source.side(inputs)
    more = {s: source.inputs(s, pictures, _OTHER_SIZES) for s in _sizes_between(sizes) if s != size}

    first = inputs[:_MERGE_CHECK]
    with source.first_call(first):
        trained = answer_of(source.graph(deepcopy(model).cpu().eval()), first)
        source.check_outputs(trained)
    graph = source.graph(merge(model).cpu())
    merged = answer_of(graph, first)
    source.check_outputs(merged)
    merging = agreement_of_all([trained], [merged], source.outputs)
    if merging.max_relative > TOLERANCE:
        raise MetamixerError(f"merging {name} changes its outputs by {merging.max_relative:.1e} of the largest")

    parameters = count_parameters(model), count_parameters(graph)
    notices.info(merging_line(name, *parameters, merging.max_relative))

    settings = Settings(
        weights=weights,
        metadata=source.metadata(inputs, sizes),
        dynamic_batch=dynamic_batch,
        sizes=sizes,
        outputs=source.outputs,
        input_name=source.input_name,
        selection=source.selection,
    )
    if weights == "int8":
        settings = replace(settings, calibration=source.inputs(size, calibration, _CALIBRATION).numpy())
    written = source.written(graph)
    found, load_ms, torch_ms, runtime_ms = _NOT_RUN, None, None, None
    with artefact(path) as temporary:
        file_format = convert(TARGETS[target], written, inputs[:1], temporary, settings, name)
        ran = getattr(module, "RUNS_HERE", True)
        if ran:
            with RuntimeProcess(TARGETS[target], temporary) as runtime:
                load_ms = runtime.load_ms
                found = _compared(source, graph, runtime, inputs, settings)
                for other in more.values():
                    found = found.worse(_compared(source, graph, runtime, other, settings))
                wrong = complaint(found, weights)
                if wrong:
                    where = _divergence(module, written, inputs[:1], temporary, settings)
                    raise MetamixerError(f"the {target} export of {name} {wrong}{where} and was not kept")
                if repeats:
                    torch_ms, runtime_ms = _latencies(source, graph, runtime, inputs[:1], repeats)
        size_bytes = size_in_bytes(temporary)
        report = ExportReport(
            target=target,
            path=str(path),
            model=name,
            image_size=size,
            weights=weights,
            format=file_format,
            ran=ran,
            size_bytes=size_bytes,
            count=len(inputs),
            checked_sizes=sorted({*inputs.shape[-2:]} if source.rectangles else {size, *more}),
            max_abs_difference=found.max_abs,
            max_relative_difference=found.max_relative,
            top1_agreement=found.top1,
            parameters_before=parameters[0],
            parameters_after=parameters[1],
            merge_difference=merging.max_relative,
            load_ms=load_ms,
            latency_torch_ms=torch_ms,
            latency_runtime_ms=runtime_ms,
        )
        report_path(temporary).write_text(report.to_json())
    return report


@checked
def export_command(
    model: Positional[Annotated[str, arg(metavar="MODEL")]],
    *,
    to: str = "onnx",
    out: Path = Path("exported"),
    image_size: Side | tuple[Side, Side] | None = None,
    sizes: tuple[Side, Side] | None = None,
    dynamic_batch: bool = False,
    normalise: bool = False,
    softmax: bool = False,
    nms: bool = False,
    features: bool = False,
    weights: Precision = "fp32",
    pictures: Path | None = None,
    calibration: Path | None = None,
) -> None:
    """Export a model and check it against PyTorch.

    Args:
        model: a model's name, ``name.tag`` for particular weights, or the path of a checkpoint.
        to: targets, separated by commas, or all: those whose packages are installed.
        out: folder for the artefacts and their reports.
        image_size: side of the input in pixels, of detectors and segmenters also height and width; the model's own by
            default.
        sizes: smallest and largest side that the artefact shall take, in place of one size.
        dynamic_batch: accept any number of pictures at once.
        normalise: build the normalisation into the graph, which then takes pictures between 0 and 255.
        softmax: give probabilities instead of logits.
        nms: choose among the boxes of a RetinaNet or SSDLite inside the graph.
        features: export the maps after a classifier's stages, and not the classifier.
        weights: number format of the weights; int8 needs --calibration.
        pictures: folder of pictures to compare on; photographs from installed packages by default.
        calibration: folder of pictures that int8 learns its ranges from.
    """
    every = to.strip() == "all"
    targets = list(TARGETS) if every else list(dict.fromkeys(name.strip() for name in to.split(",") if name.strip()))
    if not targets:
        raise MetamixerError(f"name a target; known: {', '.join(TARGETS)}")
    left_out: dict[str, str] = {}
    options = Options(weights, sizes, dynamic_batch, normalise, softmax, nms, features)
    for target in targets:  # before any work
        try:
            target_module(target).check()
            _check_options(target, options, image_size, calibration or ())
        except MetamixerError as error:
            if not every:
                raise
            left_out[target] = str(error)
    loaded, name = _load(model)
    loaded = _maps_of(loaded, name, options)
    folder = make_folder(out)
    for target in targets:
        try:
            source_of(loaded, name, options, whole=getattr(target_module(target), "WHOLE", False))
        except MetamixerError as error:
            if not every:
                raise
            left_out.setdefault(target, str(error))
    kind = ("-features" if features else "") + ("" if weights == "fp32" else f"-{weights}")
    reports, failed = [], {}
    for target in targets:
        if target in left_out:
            continue
        try:
            with working(f"Exporting to {TARGETS[target].runtime} …"):
                report = export(
                    loaded, target, folder / f"{name}{kind}{TARGETS[target].suffix}", image_size, **vars(options),
                    pictures=pictures or (), calibration=calibration or (), name=name,
                )  # fmt: skip
        except MetamixerError as error:
            if len(targets) == 1:
                raise
            failed[target] = str(error)  # the others may still work
        else:
            reports.append(report)
    if reports:
        r = reports[0]
        merged = merging_line(r.model, r.parameters_before, r.parameters_after, r.merge_difference)
        say(merged)
        table(reports).show()
    for report in reports:
        say(f"{report.path} and {report_path(report.path)}: {report.format}")
    for target, reason in left_out.items():
        say(f"{target} was left out: {reason}")
    if failed:
        reasons = "; ".join(f"{target}: {reason}" for target, reason in failed.items())
        raise MetamixerError(f"{len(failed)} of {len(failed) + len(reports)} exports failed: {reasons}")
    if not reports:
        raise MetamixerError("no target could be tried; the reasons are above")


def source_of(model: nn.Module, name: str, options: Options = NOTHING, whole: bool = False) -> Source:
    """What is to be known of a model for exporting and timing it.

    Args:
        model: any that :func:`export` takes, or one for point clouds.
        name: what messages and metadata call it.
        options: of the export.
        whole: the graph must be that of a classifier of pictures, from pixels to probabilities.

    Raises MetamixerError where the model cannot be what is asked for.
    """
    if isinstance(model, DenseModel):
        source: Source = DenseSource(model, name, options.normalise, options.nms)
    elif kind := next((kind for network, kind in _OTHER_NETWORKS.items() if isinstance(model, network)), None):
        source = kind(model, name)
    elif indices_of(model):
        source = FeaturesSource(model, name, options.normalise)
    else:
        source = ClassifierSource(model, name, options.normalise or whole, options.softmax or whole)
    if whole and not source.classifies:
        raise MetamixerError(f"the page of a web export names what a picture shows, and {name} is no classifier")
    options.refuse(name, source.refuses)
    return source


def model_name(model: nn.Module) -> str:
    """Architecture of one of our networks or a timm model, with a head before it, else the name of its class."""
    if isinstance(model, DenseModel):
        return default_name(model)
    return called(model)


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _load(model: str | Path, name: str | None = None) -> tuple[nn.Module, str]:
    """A model by name or checkpoint, and what to call it."""
    loaded = load_any_model(model)
    return loaded, name or (model_name(loaded) if os.path.isfile(model) else str(model))


def _maps_of(model: nn.Module, name: str, options: Options) -> nn.Module:
    """What gives the feature maps, where they are asked for of a model that classifies; else the model itself."""
    if not options.features or indices_of(model) or isinstance(model, (DenseModel, *_OTHER_NETWORKS)):
        return model
    return FeatureMaps(model, name)


def _check_options(
    target: str, options: Options, image_size: int | Size | None, calibration: str | Path | Sequence[Picture]
) -> None:
    if options.weights not in PRECISIONS:
        raise MetamixerError(f"unknown weights {options.weights!r}; known: {', '.join(PRECISIONS)}")
    module = target_module(target)
    options.refuse(target, module.REFUSES)
    if options.nms and not getattr(module, "SELECTS", False):
        raise MetamixerError(
            f"{target} exports know no nms: take onnx, or postprocess, which chooses among raw outputs"
        )
    if options.nms and options.dynamic_batch:
        raise MetamixerError("a graph that chooses among boxes takes one picture: leave out nms or dynamic_batch")
    if options.weights == "int8" and not calibration:
        raise MetamixerError("int8 learns its ranges from pictures; name a folder of them with calibration")
    if options.sizes is not None:
        low, high = options.sizes
        if not _SMALLEST <= low < high:
            raise MetamixerError(f"sizes must rise and start at {_SMALLEST} pixels or more, not {low} to {high}")
        if image_size is not None and not (isinstance(image_size, int) and low <= image_size <= high):
            raise MetamixerError(f"image_size {image_size} is outside the sizes {low} to {high}")
    elif image_size is not None and min(np.ravel(image_size)) < 1:
        raise MetamixerError(f"image_size must be at least 1, not {image_size}")


def _first_size(source: Source, image_size: int | Size | None, sizes: tuple[int, int] | None) -> int | Size | None:
    """The size that is timed and compared on all pictures; None for the model's own."""
    if image_size is not None or sizes is None:
        return image_size
    return min(max(source.own_size or sizes[0], sizes[0]), sizes[1])


def _sizes_between(sizes: tuple[int, int] | None) -> list[int]:
    """Both ends and three sizes between them, odd ones among them."""
    if sizes is None:
        return []
    low, high = sizes
    between = [low + (high - low) * quarter // 4 for quarter in (1, 2, 3)]
    return sorted({low, high, *(min(size | 1, high) for size in between)})


def _compared(
    source: Source, graph: nn.Module, runtime: RuntimeProcess, inputs: Tensor, settings: Settings
) -> Agreement:
    """PyTorch and the runtime on the CPU, on all inputs together or one at a time."""
    batches = [inputs] if settings.dynamic_batch else inputs.split(1)
    expected = [source.expected(graph, batch) for batch in batches]
    answers: list[Answer] = [as_list(runtime(batch.numpy())) for batch in batches]
    return source.agreement(expected, answers, settings.weights)


def _latencies(
    source: Source, graph: nn.Module, runtime: RuntimeProcess, example: Tensor, repeats: int
) -> tuple[float, float]:
    """Median milliseconds of PyTorch and of the runtime, in turns."""
    runtime(example.numpy())
    with torch_threads(1):
        ours = partial(milliseconds, partial(source.expected, graph, example))
        timings = take_turns({"torch": ours, "runtime": runtime.time_again}, repeats)
    return timings["torch"].median_ms, timings["runtime"].median_ms


def _divergence(module: Any, model: nn.Module, example: Tensor, path: Path, settings: Settings) -> str:
    """Where an export in floating point first leaves PyTorch, as part of a sentence, where the runtime allows."""
    if settings.weights == "int8" or not hasattr(module, "first_divergence"):
        return ""
    try:
        with quiet():
            layer = module.first_divergence(model, example, path, settings, tolerance(settings.weights))
    except Exception:  # the sentence that this is to be part of counts for more
        return ""
    return f", first in {layer}" if layer else ""
