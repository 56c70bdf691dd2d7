"""From a picture of any size to objects or a class map in its own pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tf

from metamixer.data.joint_transforms import DIVISOR, fitted_size, pad_together
from metamixer.data.transforms import Preprocessing
from metamixer.errors import MetamixerError
from metamixer.heads.base import DenseModel, Detections, SegmentationModel, Size, resize
from metamixer.limits import Scale, Side, check_settings
from metamixer.models import class_names
from metamixer.tasks.evaluation_mode import evaluation_mode
from metamixer.tasks.results import Result

T = TypeVar("T")


@dataclass(frozen=True)
class SegmentationInference:
    """How a class map is made of a picture.

    Args:
        window: side of square windows that slide over the resized picture; None for the whole picture at once.
        stride: pixels between windows; two thirds of the window by default.
        scales: sizes, as multiples of the model's, whose probabilities are averaged.
        mirror: average over the mirrored picture too.

    Raises MetamixerError for numbers out of their range.
    """

    window: Side | None = None
    stride: Side | None = None
    scales: tuple[Scale, ...] = (1.0,)
    mirror: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
        if self.window is not None and self.window < DIVISOR:
            raise MetamixerError(f"window must be {DIVISOR} or more")
        if self.stride is not None and (self.window is None or self.stride > self.window):
            raise MetamixerError("stride must be 1 or more, and a window's side at most")
        if not self.scales:
            raise MetamixerError("scales must be one number or more")


class Prepared(NamedTuple):
    """A picture, and the views of it that a network is shown: uint8 ``3 × h × w`` each, still without padding.

    Preparing takes no network, so that threads can do it while the network is at work.
    """

    picture: Image.Image
    views: list[Tensor]

    @property
    def size(self) -> Size:
        """Height and width of the picture."""
        return self.picture.height, self.picture.width


def prepare_to_detect(model: DenseModel, picture: Image.Image, image_size: int | None = None) -> Prepared:
    """What :func:`detect` shows the network."""
    return Prepared(picture, [_fitted(model, picture, image_size)])


def prepare_to_segment(
    model: SegmentationModel,
    picture: Image.Image,
    image_size: int | None = None,
    how: SegmentationInference | None = None,
) -> Prepared:
    """What :func:`segment` shows the network: a view for each scale."""
    side = image_size or model.pretrained_cfg["input_size"][-1]
    scales = (how or SegmentationInference()).scales
    return Prepared(picture, [_fitted(model, picture, round(side * scale), divisor=DIVISOR) for scale in scales])


def detect(model: DenseModel, picture: Image.Image, image_size: int | None = None) -> Result:
    """Objects of a picture, all that the model's own threshold lets through.

    ``image_size`` is the shorter side in pixels at which the network sees it (of SSDLite both); the model's by default.
    """
    return detect_prepared(model, prepare_to_detect(model, picture, image_size))


@torch.inference_mode()
def detect_prepared(model: DenseModel, prepared: Prepared) -> Result:
    """:func:`detect` of a picture that is prepared."""
    size, (pixels,) = prepared.size, prepared.views
    fitted = (pixels.shape[-2], pixels.shape[-1])
    with evaluation_mode(model):
        batch = pad_together([pixels], fill_colour(model), 1 if model.longest is None else DIVISOR)
        raw = model(normalised(model, batch))
        padded = (batch.shape[-2], batch.shape[-1])
        found = model.postprocess(raw, [fitted], padded=padded, originals=[size])[0]
    if not isinstance(found, Detections):
        raise MetamixerError("this model finds no objects")
    names = class_names(model)
    return Result(
        size,
        found.labels.cpu().numpy(),
        found.scores.float().clamp(0, 1).cpu().numpy(),
        found.boxes.float().cpu().numpy(),
        None if found.masks is None else found.masks.cpu().numpy(),
        classes=None if names is None else tuple(names),
        picture=prepared.picture,
    )


def segment(
    model: SegmentationModel,
    picture: Image.Image,
    image_size: int | None = None,
    how: SegmentationInference | None = None,
) -> Result:
    """The class of every pixel; ``image_size`` is the shorter side at which the network sees it, the model's own by
    default."""
    return segment_prepared(model, prepare_to_segment(model, picture, image_size, how), how)


@torch.inference_mode()
def segment_prepared(model: SegmentationModel, prepared: Prepared, how: SegmentationInference | None = None) -> Result:
    """:func:`segment` of a picture that is prepared for the same ``how``."""
    with evaluation_mode(model):
        scores = _scores(model, prepared, how or SegmentationInference())
    names = class_names(model)
    found = scores.argmax(0).to(torch.uint8).cpu().numpy()
    classes = None if names is None else tuple(names)
    return Result(prepared.size, class_map=found, classes=classes, picture=prepared.picture)


def class_scores(
    model: SegmentationModel, picture: Image.Image, image_size: int | None, how: SegmentationInference
) -> Tensor:
    """``classes × H × W`` scores at the picture's own size: logits, or the sum of several views' probabilities."""
    return _scores(model, prepare_to_segment(model, picture, image_size, how), how)


def _scores(model: SegmentationModel, prepared: Prepared, how: SegmentationInference) -> Tensor:
    views = []
    for pixels in prepared.views:
        x = normalised(model, pixels[None])
        views.append(_logits(model, x, how))
        if how.mirror:
            views.append(_logits(model, x.flip(-1), how).flip(-1))
    size = prepared.size
    if len(views) == 1:
        return resize(views[0], size, model.align_corners)[0]
    total = torch.zeros(1, model.num_classes, *size, device=views[0].device)
    for view in views:
        total += resize(view, size, model.align_corners).softmax(1)
    return total[0]


def _logits(model: SegmentationModel, x: Tensor, how: SegmentationInference) -> Tensor:
    """``1 × classes × H × W`` at the input's size; where windows overlap, the mean of what they say."""
    height, width = x.shape[-2:]
    if how.window is None:
        return resize(model(x)[0].float(), (height, width), model.align_corners)
    side, stride = how.window, how.stride or max(1, round(how.window * 2 / 3))
    total = x.new_zeros(1, model.num_classes, height, width)
    count = x.new_zeros(1, 1, height, width)
    for top in _starts(height, side, stride):
        for left in _starts(width, side, stride):
            part = x[..., top : top + side, left : left + side]
            place = (..., slice(top, top + part.shape[-2]), slice(left, left + part.shape[-1]))
            total[place] += resize(model(part)[0].float(), part.shape[-2:], model.align_corners)
            count[place] += 1
    return total / count


def _starts(length: int, side: int, stride: int) -> list[int]:
    """Where windows begin so that they cover ``length``; the last one ends with it."""
    last = max(0, length - side)
    return [*range(0, last, stride), last]


def normalised(model: nn.Module, pictures: Tensor) -> Tensor:
    """uint8 ``B × 3 × H × W`` as the model wants them, on its device."""
    preprocessing = Preprocessing.of(model.pretrained_cfg)
    return preprocessing.normalise(pictures.to(next(model.parameters()).device))


def fill_colour(model: nn.Module) -> tuple[int, ...]:
    """The colour, 0…255, that normalisation makes nearly zero."""
    return tuple(round(255 * value) for value in Preprocessing.of(model.pretrained_cfg).mean)


def read_ahead(read: Callable[[int], T], indices: Sequence[int], workers: int | None) -> Iterator[T]:
    """``read`` of every index in turn, some of them in threads while the first are in use (0: none)."""
    if workers == 0:
        yield from map(read, indices)
        return
    threads = workers or 2
    with ThreadPoolExecutor(threads) as pool:
        numbers = iter(indices)
        waiting = [pool.submit(read, i) for i in islice(numbers, 2 * threads)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(read, i) for i in islice(numbers, 1)]


def _fitted(model: DenseModel, picture: Image.Image, image_size: int | None, divisor: int | None = None) -> Tensor:
    """uint8 ``3 × h × w`` at the size that the network sees, with ``divisor`` rounded to multiples of it."""
    side = image_size or model.pretrained_cfg["input_size"][-1]
    size = fitted_size((picture.height, picture.width), side, model.longest)
    if divisor is not None:
        height, width = (max(divisor, round(length / divisor) * divisor) for length in size)
        size = (height, width)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return tf.resize(pixels, list(size), antialias=True)
