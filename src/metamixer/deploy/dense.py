"""Detectors and segmenters in ONNX: their raw outputs by name, or the final boxes, compared with PyTorch on pictures.

What cannot be in a graph, or is better left out of it, is ``postprocess``: it makes results of the file's outputs as
it does of :meth:`~metamixer.heads.base.DenseModel.forward_raw`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tf

from metamixer.data.joint_transforms import DIVISOR
from metamixer.data.transforms import Preprocessing
from metamixer.deploy.artefact import artefact, size_in_bytes
from metamixer.deploy.graph import WithPreprocessing
from metamixer.deploy.merge import merge
from metamixer.deploy.pictures import Picture, open_all, photographs, pictures_in
from metamixer.deploy.report import HALF_TOLERANCE, TOLERANCE, Agreement, Array, ExportReport, report_path
from metamixer.deploy.runtime_process import RuntimeProcess
from metamixer.deploy.settings import Precision, Settings
from metamixer.deploy.targets import Target, convert
from metamixer.deploy.timing import milliseconds, take_turns, torch_threads
from metamixer.errors import MetamixerError
from metamixer.heads.base import DenseModel, Size
from metamixer.heads.boxes import decode_deltas, has_area
from metamixer.heads.retinanet import STRIDES, RetinaNet
from metamixer.heads.ssdlite import SSDLite
from metamixer.models import class_names
from metamixer.tasks.dense import load_dense_model

TARGET = Target("metamixer.deploy.dense_onnx", ".onnx", "ONNX Runtime", "deploy")
CHECKED = 8  # pictures that an export is compared on, unless the user names others: these networks are large
SAME_BOX = {"fp32": 0.1, "fp16": 2.0}  # pixels by which a box may move and still be the same
SAME_SHARE = {"fp32": 0.99, "fp16": 0.9}  # of boxes that must be found again: a score next to a threshold may pass it

DIFFERENT = Agreement(float("inf"), float("inf"), float("nan"))

_PYRAMID = tuple(range(5))
#: Names of the raw outputs, in the order of ``forward_raw``; an auxiliary head may be missing.
OUTPUTS = {
    "semantic_fpn": ("logits",),
    "ffnet_seg": ("logits",),
    "upernet": ("logits", "auxiliary_logits"),
    "deeplabv3": ("logits", "resized_logits", "auxiliary_logits"),
    "pspnet": ("logits", "resized_logits", "auxiliary_logits"),
    "retinanet": tuple(f"{kind}_{i}" for kind in ("logits", "deltas") for i in _PYRAMID),
    "ssdlite": ("logits", "deltas", "anchors", "boxes"),
    "mask_rcnn": tuple(f"{kind}_{i}" for kind in ("map", "objectness", "deltas") for i in _PYRAMID),
    "cascade_mask_rcnn": tuple(f"{kind}_{i}" for kind in ("map", "objectness", "deltas") for i in _PYRAMID),
}


class Selection(NamedTuple):
    """Overlap, score threshold and limit of a non-maximum suppression."""

    overlap: float
    score_threshold: float
    limit: int


class RawOutputs(nn.Module):
    """``forward_raw`` of a model, behind ``first`` (the normalisation, or nothing)."""

    selection: Selection | None = None

    def __init__(self, model: DenseModel, first: nn.Module) -> None:
        super().__init__()
        self.first, self.model = first, model
        self.names = OUTPUTS[model.pretrained_cfg["architecture"]]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.model.forward_raw(self.first(x))


class Candidates(nn.Module):
    """What a detector chooses among: ``boxes`` ``1 × N × 4`` in pixels of the input and ``scores`` ``1 × classes × N``.

    A score is 0 where the post-processing looks no further: below the best candidates of its level (RetinaNet) or class
    (SSDLite), or where the box has no area.
    """

    names = ("boxes", "scores")

    def __init__(self, model: DenseModel, first: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, (RetinaNet, SSDLite)):
            raise MetamixerError(
                f"{model.pretrained_cfg['architecture']} cannot choose boxes inside the graph: retinanet and ssdlite "
                "can, others are exported without nms"
            )
        self.first, self.model = first, model
        self.selection: Selection | None = Selection(model.overlap, model.score_threshold, model.limit)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size = (x.shape[-2], x.shape[-1])
        raw = self.model.forward_raw(self.first(x))
        if isinstance(self.model, RetinaNet):
            boxes, scores = _retinanet_candidates(self.model, raw, size)
        else:
            boxes, scores = _ssdlite_candidates(self.model, raw, size)
        return boxes[None], scores[None]


def _retinanet_candidates(model: RetinaNet, raw: Sequence[Tensor], size: Size) -> tuple[Tensor, Tensor]:
    levels = len(STRIDES)
    boxes, scores = [], []
    for around, logits, deltas in zip(model.anchors(raw), raw[:levels], raw[levels:], strict=True):
        moved = decode_deltas(around, deltas[0].permute(1, 2, 0).reshape(-1, 4), size)
        score = logits[0].permute(1, 2, 0).reshape(-1, model.num_classes).sigmoid()
        worst = score.flatten().topk(min(model.candidates, score.numel())).values[-1]
        boxes.append(moved)
        scores.append(score * (score >= worst) * has_area(moved)[:, None])
    return torch.cat(boxes), torch.cat(scores).T


def _ssdlite_candidates(model: SSDLite, raw: Sequence[Tensor], size: Size) -> tuple[Tensor, Tensor]:
    height, width = size
    score = raw[0][0].softmax(-1)[:, 1:].T
    worst = score.topk(min(model.candidates, score.shape[1]), dim=1).values[:, -1:]
    return raw[3][0] * raw[3].new_tensor([width, height, width, height]), score * (score >= worst)


def export_dense(
    model: DenseModel | str | Path,
    path: str | Path | None = None,
    image_size: int | Size | None = None,
    *,
    nms: bool = False,
    weights: Precision = "fp32",
    dynamic_batch: bool = False,
    normalise: bool = False,
    pictures: str | Path | Sequence[Picture] = (),
    repeats: int = 10,
    name: str | None = None,
) -> ExportReport:
    """Merge a detector or segmenter, write it as ONNX, and check every output against PyTorch.

    Args:
        model: of :func:`metamixer.build`, in any state, left as it is; or the path of a checkpoint of ours.
        path: file to write; by default the model's name in the working folder. The report goes beside it as JSON.
        image_size: height and width of the input in pixels, or the side of a square. By default the model's shorter
            side and four thirds of it, rounded up to multiples of 32; a square where the model stretches pictures.
        nms: choose among the boxes inside the graph, which then gives ``boxes`` ``K × 4`` (left, top, right, bottom in
            pixels of the input), ``scores`` ``K`` and ``labels`` ``K``, the surest first; for RetinaNet and SSDLite.
            Without it the outputs are those of ``forward_raw``, named as in :data:`OUTPUTS`.
        weights: ``"fp32"``, or ``"fp16"`` for weights stored in half precision.
        dynamic_batch: accept any number of pictures at once; not with ``nms``.
        normalise: build the normalisation into the graph, which then takes float32 pictures between 0 and 255.
        pictures: photographs to compare on, paths or PIL pictures, or a folder of them; by default photographs that
            installed packages bring along. :func:`fit_picture` lays them into the input.
        repeats: rounds of timing with one thread and one picture; 0 to leave the timing out.
        name: what report and file call the model.

    The report's differences are those of the worst output, as a share of that output's largest magnitude; with ``nms``
    those of the scores of boxes that are the same. It names no first class: its ``top1_agreement`` is NaN.

    Raises MetamixerError for missing packages, options that do not go together, pictures that cannot be read, a place
    that cannot be written, and an export that does not agree: by more than 1e-3 in float32, 3e-2 with half-precision
    weights. Then there is no file.
    """
    module = TARGET.implementation()
    module.check()
    if weights not in SAME_BOX:
        raise MetamixerError(f"detectors and segmenters are exported in fp32 or fp16, not in {weights}")
    if nms and dynamic_batch:
        raise MetamixerError("a graph that chooses among boxes takes one picture: leave out nms or dynamic_batch")
    if not isinstance(model, DenseModel):
        model = _load(model)
    backbone = model._model_args["backbone"]
    name = name or f"{model.pretrained_cfg['architecture']}_{backbone}"
    path = Path(path if path is not None else f"{name}{TARGET.suffix}")
    size = input_size(model, image_size)
    fitted = [fit_picture(model, picture, size, normalise)[0] for picture in _opened(pictures)]

    merged = _graph(merge(model).cpu(), nms, normalise)
    changed = compare(
        _run(_graph(deepcopy(model).cpu().eval(), False, normalise), fitted[0]),
        _run(_graph(merged.model, False, normalise), fitted[0]),
    )
    if changed.max_relative > TOLERANCE:
        raise MetamixerError(f"merging {name} changes its outputs by {changed.max_relative:.1e} of the largest")

    settings = Settings(weights, _metadata(model, backbone, size, nms, normalise), dynamic_batch)
    torch_ms, runtime_ms = None, None
    with artefact(path) as temporary:
        written = convert(TARGET, merged, fitted[0], temporary, settings, name)
        with RuntimeProcess(TARGET, temporary) as runtime:
            run: Any = runtime
            if nms:
                found = [_compare_boxes(_chosen(merged, x, size), run(x.numpy()), weights) for x in fitted]
            else:
                found = [compare(_run(merged, x), run(x.numpy())) for x in fitted]
            worst = found[0]
            for other in found[1:]:
                worst = worst.worse(other)
            limit = TOLERANCE if weights == "fp32" else HALF_TOLERANCE
            if not worst.max_relative <= limit:
                raise MetamixerError(
                    f"the ONNX export of {name} differs from PyTorch by {worst.max_relative:.1e} of the largest value "
                    f"(at most {limit:g} is accepted) and was not kept"
                )
            if repeats:
                torch_ms, runtime_ms = _latencies(merged, runtime, fitted[0], repeats)
            load_ms = runtime.load_ms
        size_bytes = size_in_bytes(temporary)
    report = ExportReport(
        target="onnx",
        path=str(path),
        model=name,
        image_size=min(size),
        weights=weights,
        format=written,
        ran=True,
        size_bytes=size_bytes,
        count=len(fitted),
        checked_sizes=sorted(set(size)),
        max_abs_difference=worst.max_abs,
        max_relative_difference=worst.max_relative,
        top1_agreement=float("nan"),
        parameters_before=sum(p.numel() for p in model.parameters()),
        parameters_after=sum(p.numel() for p in merged.parameters()),
        merge_difference=changed.max_relative,
        load_ms=load_ms,
        latency_torch_ms=torch_ms,
        latency_runtime_ms=runtime_ms,
    )
    report.save(report_path(path))
    return report


def input_size(model: DenseModel, image_size: int | Size | None = None) -> Size:
    """Height and width of an exported graph's input; see :func:`export_dense`.

    Raises MetamixerError for sides below 32, or that are no multiples of 32 where the model needs them.
    """
    if image_size is None:
        side = model.pretrained_cfg["input_size"][-1]
        size = (side, side if model.longest is None else side * 4 / 3)
        height, width = (math.ceil(length / DIVISOR) * DIVISOR for length in size)
        return height, width
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    divisor = 1 if model.longest is None else DIVISOR
    if min(height, width) < DIVISOR or height % divisor or width % divisor:
        multiples = "" if divisor == 1 else f" and multiples of {DIVISOR}"
        raise MetamixerError(f"image_size must be {DIVISOR} or more{multiples}, not {height} × {width}")
    return height, width


def fit_picture(model: DenseModel, picture: Image.Image, size: Size, normalise: bool = False) -> tuple[Tensor, Size]:
    """A picture as an exported graph takes it, ``1 × 3 × H × W`` float32, and the height and width that it fills.

    It is resized to fit into ``size`` and padded at the right and the bottom, or stretched where the model wants that.
    ``model.postprocess(raw, [fitted], padded=size, originals=[(height, width)])`` makes results of what the file says.

    Args:
        model: whose preprocessing is followed.
        picture: RGB, of any size.
        size: height and width of the graph's input.
        normalise: the graph normalises, and is given values from 0 to 255.
    """
    fitted = size
    if model.longest is not None:
        scale = min(size[0] / picture.height, size[1] / picture.width)
        fitted = (max(1, round(picture.height * scale)), max(1, round(picture.width * scale)))
    pixels = tf.resize(torch.from_numpy(np.array(picture)).permute(2, 0, 1), list(fitted), antialias=True)
    preprocessing = Preprocessing.of(model.pretrained_cfg)
    fill = torch.tensor([round(255 * value) for value in preprocessing.mean], dtype=torch.uint8)
    canvas = fill[None, :, None, None].repeat(1, 1, *size)
    canvas[0, :, : fitted[0], : fitted[1]] = pixels
    return (canvas.float() if normalise else preprocessing.normalise(canvas)), fitted


def compare(reference: Sequence[Array], outputs: Sequence[Array]) -> Agreement:
    """The largest differences of any output, each as a share of that output's largest magnitude.

    A shape that differs, a missing output or a value that is not finite counts as an infinite difference.
    """
    if len(reference) != len(outputs):
        return DIFFERENT
    worst = Agreement(0.0, 0.0, float("nan"))
    for expected, got in zip(reference, outputs, strict=True):
        if expected.shape != got.shape or not np.isfinite(got).all():
            return DIFFERENT
        largest = float(np.abs(expected).max(initial=0.0))
        difference = float(np.abs(expected - got).max(initial=0.0))
        worst = worst.worse(Agreement(difference, difference / largest if largest else difference, float("nan")))
    return worst


def _compare_boxes(reference: Sequence[Array], outputs: Sequence[Array], weights: Precision) -> Agreement:
    """Differences of scores of boxes that both have; infinite where too few are the same.

    Both are boxes ``K × 4``, scores ``K`` and labels ``K``. Near ties may change their order.
    """
    boxes, scores, labels = reference
    got_boxes, got_scores, got_labels = outputs
    if not len(boxes) and not len(got_boxes):
        return Agreement(0.0, 0.0, float("nan"))
    if not len(boxes) or not len(got_boxes):
        return DIFFERENT
    distance = np.abs(boxes[:, None] - got_boxes[None]).max(-1) + np.where(labels[:, None] == got_labels, 0, np.inf)
    nearest = distance.argmin(1)
    same = distance[np.arange(len(boxes)), nearest] <= SAME_BOX[weights]
    again = (distance.min(0) <= SAME_BOX[weights]).mean()
    if min(same.mean(), again) < SAME_SHARE[weights]:
        return DIFFERENT
    difference = float(np.abs(scores - got_scores[nearest])[same].max())
    return Agreement(difference, difference / float(scores.max()), float("nan"))


def _graph(model: nn.Module, nms: bool, normalise: bool) -> RawOutputs | Candidates:
    assert isinstance(model, DenseModel)
    preprocessing = Preprocessing.of(model.pretrained_cfg)
    mean, std = preprocessing.mean, preprocessing.std
    first = WithPreprocessing(nn.Identity(), mean, std, softmax=False) if normalise else nn.Identity()
    return (Candidates if nms else RawOutputs)(model, first).eval()


@torch.inference_mode()
def _run(graph: nn.Module, x: Tensor) -> list[Array]:
    return [output.numpy() for output in graph(x)]


@torch.inference_mode()
def _chosen(graph: Any, x: Tensor, size: Size) -> list[Array]:
    """Boxes, scores and labels by the model's own post-processing."""
    [found] = graph.model.postprocess(graph.model.forward_raw(graph.first(x)), [size])
    return [found.boxes.numpy(), found.scores.numpy(), found.labels.numpy()]


@torch.inference_mode()
def _latencies(graph: nn.Module, runtime: RuntimeProcess, x: Tensor, repeats: int) -> tuple[float, float]:
    """Median milliseconds of PyTorch and of the runtime, in turns."""
    with torch_threads(1):
        ours = partial(milliseconds, partial(graph, x))
        timings = take_turns({"torch": ours, "runtime": runtime.time_again}, repeats)
    return timings["torch"].median_ms, timings["runtime"].median_ms


def _metadata(model: DenseModel, backbone: str, size: Size, nms: bool, normalise: bool) -> dict[str, str]:
    metadata = {
        "producer": "metamixer",
        "architecture": model.pretrained_cfg["architecture"],
        "backbone": backbone,
        "image_size": f"{size[0]} x {size[1]}",
        "input": "RGB, 0 to 255" if normalise else "normalised",
        "output": "boxes in pixels of the input, scores, labels" if nms else "raw",
        "preprocessing": json.dumps(asdict(Preprocessing.of(model.pretrained_cfg))),
    }
    names = class_names(model)
    return metadata if names is None else metadata | {"classes": json.dumps(names)}


def _load(path: str | Path) -> DenseModel:
    model = load_dense_model(path)
    if model is None:
        raise MetamixerError(f"{path} holds no detector or segmenter of ours")
    return model


def _opened(pictures: str | Path | Sequence[Picture]) -> list[Image.Image]:
    if isinstance(pictures, (str, Path)):
        pictures = pictures_in(pictures, CHECKED)
    return open_all(pictures) if pictures else photographs(CHECKED)
