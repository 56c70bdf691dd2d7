"""Detectors and segmenters, where they are exported: their raw outputs by name, or the final boxes.

What cannot be in a graph, or is better left out of it, is ``postprocess``: it makes results of an artefact's outputs as
it does of :meth:`~metamixer.heads.base.DenseModel.forward_raw`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tf

from metamixer.data.joint_transforms import DIVISOR
from metamixer.data.transforms import Preprocessing
from metamixer.deploy.graph import WithPreprocessing
from metamixer.deploy.pictures import Picture, open_given
from metamixer.deploy.report import Agreement, different
from metamixer.deploy.settings import Precision, Selection
from metamixer.deploy.source import Answer, Source, uniform
from metamixer.errors import MetamixerError
from metamixer.heads.base import DenseModel, SegmentationModel, Size
from metamixer.heads.boxes import decode_deltas, has_area
from metamixer.heads.retinanet import STRIDES, RetinaNet
from metamixer.heads.ssdlite import SSDLite
from metamixer.models import class_names

SAME_BOX = {"fp32": 0.1, "fp16": 2.0}  # pixels by which a box may move and still be the same
SAME_SHARE = {"fp32": 0.99, "fp16": 0.9}  # of boxes that must be found again: a score next to a threshold may pass it

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


class RawOutputs(nn.Module):
    """``forward_raw`` of a model, behind ``first`` (the normalisation, or nothing)."""

    def __init__(self, model: DenseModel, first: nn.Module) -> None:
        super().__init__()
        self.first, self.model = first, model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.model.forward_raw(self.first(x))


class Candidates(nn.Module):
    """What a detector chooses among: ``boxes`` ``1 × N × 4`` in pixels of the input and ``scores`` ``1 × classes × N``.

    A score is 0 where the post-processing looks no further: below the best candidates of its level (RetinaNet) or class
    (SSDLite), or where the box has no area.

    Args:
        raw: of a RetinaNet or an SSDLite.
    """

    def __init__(self, raw: RawOutputs) -> None:
        super().__init__()
        self.raw = raw

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size = (x.shape[-2], x.shape[-1])
        raw, model = self.raw(x), self.raw.model
        if isinstance(model, RetinaNet):
            boxes, scores = _retinanet_candidates(model, raw, size)
        else:
            assert isinstance(model, SSDLite)
            boxes, scores = _ssdlite_candidates(model, raw, size)
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


class DenseSource(Source):
    """Photographs for a detector or segmenter.

    Args:
        model: of :func:`metamixer.build`.
        name: as of :class:`~metamixer.deploy.source.Source`.
        normalise: build the normalisation into the graph.
        nms: choose among the boxes inside the graph; its outputs are then ``boxes`` ``K × 4`` (left, top, right, bottom
            in pixels of the input), ``scores`` ``K`` and ``labels`` ``K``, the surest first.

    Raises MetamixerError for ``nms`` with heads that cannot.
    """

    checked = 8  # these networks are large
    rectangles = True
    refuses: ClassVar[Mapping[str, str]] = {
        "sizes": "its graph holds one size",
        "features": "export its backbone with it",
        "softmax": "its post-processing makes probabilities of what it gives",
        "int8": "what eight bits cost is judged by first classes, and it names none",
    }
    model: DenseModel

    def __init__(self, model: DenseModel, name: str, normalise: bool = False, nms: bool = False) -> None:
        super().__init__(model, name)
        self.normalise = normalise
        self.head: str = model.pretrained_cfg["architecture"]
        self.outputs = OUTPUTS[self.head]
        if isinstance(model, SegmentationModel) and model.aux_head is None:
            self.outputs = tuple(output for output in self.outputs if output != "auxiliary_logits")
        if nms:
            if not isinstance(model, (RetinaNet, SSDLite)):
                raise MetamixerError(
                    f"{self.head} cannot choose boxes inside the graph: retinanet and ssdlite can, others are exported "
                    "without nms"
                )
            self.outputs = ("boxes", "scores", "labels")
            self.selection = Selection(model.overlap, model.score_threshold, model.limit)

    def graph(self, model: nn.Module) -> nn.Module:
        assert isinstance(model, DenseModel)
        preprocessing = Preprocessing.of(model.pretrained_cfg)
        mean, std = preprocessing.mean, preprocessing.std
        first = WithPreprocessing(nn.Identity(), mean, std, softmax=False) if self.normalise else nn.Identity()
        return RawOutputs(model, first).eval()

    def written(self, graph: nn.Module) -> nn.Module:
        if self.selection is None:
            return graph
        assert isinstance(graph, RawOutputs)
        return Candidates(graph).eval()

    def inputs(self, size: int | Size | None, pictures: str | Path | Sequence[Picture], most: int) -> Tensor:
        """``N × 3 × H × W``: the given pictures, else photographs, laid into the input by :func:`fit_picture`."""
        opened = open_given(pictures, most)
        whole = input_size(self.model, size)
        return torch.cat([fit_picture(self.model, picture, whole, self.normalise)[0] for picture in opened])

    def example(self, batch: int, size: int | None) -> Tensor:
        return uniform(batch, 3, *input_size(self.model, size))

    def metadata(self, inputs: Tensor, sizes: tuple[int, int] | None) -> dict[str, str]:
        height, width = inputs.shape[-2:]
        metadata = {
            "producer": "metamixer",
            "architecture": self.head,
            "backbone": self.model.arguments["backbone"],
            "image_size": f"{height} x {width}",
            "input": "RGB, 0 to 255" if self.normalise else "normalised",
            "output": "boxes in pixels of the input, scores, labels" if self.selection else ", ".join(self.outputs),
            "preprocessing": json.dumps(asdict(Preprocessing.of(self.model.pretrained_cfg))),
        }
        names = class_names(self.model)
        return metadata if names is None else metadata | {"classes": json.dumps(names)}

    @torch.inference_mode()
    def expected(self, graph: nn.Module, inputs: Tensor) -> Answer:
        """The raw outputs; with a selection boxes, scores and labels by the model's own post-processing."""
        if self.selection is None:
            return super().expected(graph, inputs)
        assert isinstance(graph, RawOutputs)
        height, width = inputs.shape[-2:]
        [found] = graph.model.postprocess(graph(inputs), [(height, width)])
        return [found.boxes.numpy(), found.scores.numpy(), found.labels.numpy()]

    def agreement(self, expected: Sequence[Answer], answers: Sequence[Answer], weights: Precision) -> Agreement:
        """Of raw outputs as of any; with a selection the worst picture's, by the scores of boxes that are the same."""
        if self.selection is None:
            return super().agreement(expected, answers, weights)
        first, *others = (compare_boxes(mine, its, weights) for mine, its in zip(expected, answers, strict=True))
        for other in others:
            first = first.worse(other)
        return first


def default_name(model: DenseModel) -> str:
    """Head and backbone: what an export is called unless the user says otherwise."""
    return f"{model.pretrained_cfg['architecture']}_{model.arguments['backbone']}"


def input_size(model: DenseModel, image_size: int | Size | None = None) -> Size:
    """Height and width of an exported graph's input, in pixels.

    By default the model's shorter side and four thirds of it, rounded up to multiples of 32; a square where one side is
    asked for, or where the model stretches pictures.

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


def compare_boxes(reference: Answer, outputs: Answer, weights: Precision) -> Agreement:
    """Differences of scores of boxes that both have; infinite where too few are the same.

    Both are boxes ``K × 4``, scores ``K`` and labels ``K``. Near ties may change their order.
    """
    boxes, scores, labels = reference
    got_boxes, got_scores, got_labels = outputs
    for name, values in (("boxes", got_boxes), ("scores", got_scores)):
        if not np.isfinite(values).all():
            return different(f"gives values that are not finite in {name}")
    if not len(boxes) and not len(got_boxes):
        return Agreement(0.0, 0.0, float("nan"))
    if not len(boxes) or not len(got_boxes):
        return different(f"finds {len(got_boxes)} boxes in a picture in which PyTorch finds {len(boxes)}")
    distance = np.abs(boxes[:, None] - got_boxes[None]).max(-1) + np.where(labels[:, None] == got_labels, 0, np.inf)
    nearest = distance.argmin(1)
    same = distance[np.arange(len(boxes)), nearest] <= SAME_BOX[weights]
    again = (distance.min(0) <= SAME_BOX[weights]).mean()
    if min(same.mean(), again) < SAME_SHARE[weights]:
        return different(
            f"finds {same.mean():.0%} of PyTorch's boxes in a picture, and {again:.0%} of its own are PyTorch's "
            f"(at least {SAME_SHARE[weights]:.0%} must be the same)"
        )
    difference = float(np.abs(scores - got_scores[nearest])[same].max())
    return Agreement(difference, difference / float(scores.max()), float("nan"))
