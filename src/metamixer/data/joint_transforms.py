"""Pictures changed together with their boxes, instance masks or class maps; batches of pictures of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tf

from metamixer.data.annotations.class_maps import VOID

Augmentation = Literal["none", "flip", "multiscale", "crop", "jitter", "ssd"]
"""How training pictures with objects vary. All but "none" mirror half of them.

- "multiscale": the shorter side is drawn from 0.6 to 1 of the picture size (of 800: 480, 512 … 800);
- "crop": that, and half of the pictures are cropped before (DETR, arXiv 2005.12872);
- "jitter": scaled by 0.5 to 1.5 and cropped to a square;
- "ssd": colours, zooming out and crops that keep some object (arXiv 1512.02325).
"""
DIVISOR = 32  # sides of batches are multiples of it, so that every stage halves them evenly
SCALE_STEPS = 11  # from 0.6 to 1


def fitted_size(size: tuple[int, int], shorter: int, longest: float | None) -> tuple[int, int]:
    """Height and width of a picture whose shorter side becomes ``shorter``, but whose longer side stays within
    ``longest`` times that; None stretches it to a square. Proportions are kept up to rounding."""
    if longest is None:
        return shorter, shorter
    scale = min(shorter / min(size), longest * shorter / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def augment_objects(
    picture: Tensor,
    boxes: Tensor,
    labels: Tensor,
    masks: Tensor | None,
    *,
    shorter: int,
    longest: float | None,
    augmentation: Augmentation,
    fill: Sequence[int],
) -> dict[str, Tensor]:
    """A training sample: uint8 ``picture`` ``3 × H × W`` and the objects left in it.

    Args:
        picture: uint8 ``3 × H × W``.
        boxes: ``N × 4``, left, top, right, bottom in pixels.
        labels: ``N``.
        masks: ``N × H × W``, uint8.
        shorter, longest: see :func:`fitted_size`.
        augmentation: see :data:`Augmentation`.
        fill: colour of what is added around a picture, 0…255.

    Random choices come from torch's global generator.
    """
    size = (picture.shape[-2], picture.shape[-1])
    sample: dict[str, Any] = {
        "picture": tv_tensors.Image(picture),
        "boxes": tv_tensors.BoundingBoxes(boxes.reshape(-1, 4), format="XYXY", canvas_size=size),
        "labels": labels,
    }
    if masks is not None:
        sample["masks"] = tv_tensors.Mask(masks)
    steps: list[Any] = []
    if augmentation == "ssd":
        colour = {type_: tuple(fill) if type_ is tv_tensors.Image else 0 for type_ in (tv_tensors.Image, "others")}
        steps += [v2.RandomPhotometricDistort(), v2.RandomZoomOut(fill=colour), v2.RandomIoUCrop()]
    if augmentation != "none":
        steps.append(v2.RandomHorizontalFlip())
    sample = v2.Compose(steps)(sample) if steps else sample
    if augmentation == "crop" and torch.rand(()) < 0.5:
        sample = _resized(sample, shorter * (0.5 + 0.125 * int(torch.randint(3, ()))), longest)
        sample = _random_crop(sample, round(shorter * 0.48), round(shorter * 0.75))
    if augmentation in ("multiscale", "crop"):
        step = int(torch.randint(SCALE_STEPS, ())) / (SCALE_STEPS - 1)
        sample = _resized(sample, shorter * (0.6 + 0.4 * step), longest)
    elif augmentation == "jitter":
        sample = _resized(sample, shorter * (0.5 + float(torch.rand(()))), longest)
        sample = _random_crop(sample, shorter, shorter)
    if augmentation not in ("multiscale", "crop", "jitter") or longest is None:
        sample = _resized(sample, shorter, longest)
    sample = v2.ClampBoundingBoxes()(sample)
    tensors = [name for name in ("labels", "masks") if name in sample]
    sample = v2.SanitizeBoundingBoxes(min_size=1, labels_getter=lambda s: [s[name] for name in tensors])(sample)
    plain = {name: value.as_subclass(Tensor) for name, value in sample.items()}
    plain["size"] = torch.tensor(plain["picture"].shape[-2:])
    return plain


def augment_class_map(
    picture: Tensor,
    labels: Tensor,
    *,
    shorter: int,
    longest: float,
    crop: int,
    scale: tuple[float, float],
    colours: bool,
    flip: bool,
    fill: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """A crop ``3 × crop × crop`` of a resized picture, and its class map ``crop × crop``, both uint8.

    The steps of mmsegmentation: a scale between both numbers; the crop, which avoids that one class fills more than
    three quarters of it; mirrored half of the time; brightness, contrast, saturation and hue. What lies outside the
    picture has the colour ``fill`` and is void. Random choices come from torch's global generator.
    """
    low, high = scale
    factor = low + (high - low) * float(torch.rand(()))
    height, width = fitted_size((picture.shape[-2], picture.shape[-1]), round(shorter * factor), longest)
    picture = tf.resize(picture, [height, width], antialias=True)
    labels = tf.resize(labels[None], [height, width], InterpolationMode.NEAREST_EXACT)[0]
    missing = [0, 0, max(0, crop - width), max(0, crop - height)]
    if any(missing):
        picture = tf.pad(picture, missing, fill=list(map(float, fill)))
        labels = tf.pad(labels[None], missing, fill=VOID)[0]
    for _ in range(10):
        top = int(torch.randint(picture.shape[-2] - crop + 1, ()))
        left = int(torch.randint(picture.shape[-1] - crop + 1, ()))
        part = labels[top : top + crop, left : left + crop]
        counts = torch.bincount(part[part != VOID].flatten())
        if (counts > 0).sum() > 1 and counts.max() < 0.75 * counts.sum():
            break
    picture = picture[:, top : top + crop, left : left + crop]
    if flip and torch.rand(()) < 0.5:
        picture, part = picture.flip(-1), part.flip(-1)
    if colours:
        picture = v2.RandomPhotometricDistort(p=0.5)(tv_tensors.Image(picture)).as_subclass(Tensor)
    return picture.contiguous(), part.contiguous()


def padded_size(size: Sequence[int], divisor: int = DIVISOR) -> tuple[int, int]:
    """Height and width of a picture that is padded by itself, to multiples of ``divisor``; a batch may be larger."""
    height, width = (math.ceil(int(side) / divisor) * divisor for side in size)
    return height, width


def pad_together(pictures: Sequence[Tensor], fill: Sequence[int], divisor: int = DIVISOR) -> Tensor:
    """Pictures ``3 × H × W`` as one batch, padded at the right and the bottom to multiples of ``divisor``."""
    height, width = padded_size([max(p.shape[i] for p in pictures) for i in (-2, -1)], divisor)
    colour = torch.tensor(fill, dtype=pictures[0].dtype)
    batch = colour[None, :, None, None].repeat(len(pictures), 1, height, width)
    for place, picture in zip(batch, pictures, strict=True):
        place[:, : picture.shape[-2], : picture.shape[-1]] = picture
    return batch


def pad_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """``N × H × W`` masks with zeros at the right and the bottom, up to ``size``."""
    padded = masks.new_zeros(len(masks), *size)
    padded[:, : masks.shape[1], : masks.shape[2]] = masks
    return padded


def _resized(sample: dict[str, Any], shorter: float, longest: float | None) -> dict[str, Any]:
    size = sample["picture"].shape[-2:]
    return v2.Resize(list(fitted_size((size[0], size[1]), round(shorter), longest)), antialias=True)(sample)


def _random_crop(sample: dict[str, Any], smallest: int, largest: int) -> dict[str, Any]:
    height, width = sample["picture"].shape[-2:]
    sides = [min(side, int(torch.randint(smallest, largest + 1, ()))) for side in (height, width)]
    top, left = (int(torch.randint(side - part + 1, ())) for side, part in zip((height, width), sides, strict=True))
    return {name: value if name == "labels" else tf.crop(value, top, left, *sides) for name, value in sample.items()}
