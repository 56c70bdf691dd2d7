"""Boxes from anchors and what a network says of them, and the choice among overlapping ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image, nms

LARGEST_GROWTH = abs(math.log(16 / 1000))
FAR = 1e6  # pixels, or shares of a picture: further out boxes need not be told apart


def decode_deltas(
    boxes: Tensor, deltas: Tensor, size: tuple[int, int] | None, stds: Sequence[float] = (1, 1, 1, 1)
) -> Tensor:
    """mmdetection's boxes: shifted by shares of their sides, sides scaled by exponentials, clipped to the picture.

    Args:
        boxes: ``… × 4`` left, top, right, bottom in pixels.
        deltas: ``… × 4`` for centre x, centre y, width and height, in units of ``stds``.
        size: height and width of the picture; None clips nothing.
    """
    deltas = deltas * deltas.new_tensor(stds)
    centre, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    centre = centre + sides * deltas[..., :2]
    half = sides * deltas[..., 2:].clamp(-LARGEST_GROWTH, LARGEST_GROWTH).exp() / 2
    moved = torch.cat([centre - half, centre + half], dim=-1)
    return moved if size is None else clip_boxes_to_image(moved, size)


def clip_each(boxes: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """``B × N × 4`` boxes clipped to pictures of ``B`` sizes (height and width)."""
    edges = boxes.new_tensor([[width, height, width, height] for height, width in sizes]).reshape(-1, 1, 4)
    return boxes.clamp(min=0).minimum(edges)


def encode_deltas(boxes: Tensor, objects: Tensor, stds: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """The deltas with which :func:`decode_deltas` makes ``objects`` of ``boxes``, both ``… × 4``."""
    centre, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    wanted, wanted_sides = (objects[..., :2] + objects[..., 2:]) / 2, objects[..., 2:] - objects[..., :2]
    deltas = torch.cat([(wanted - centre) / sides, (wanted_sides / sides).log()], dim=-1)
    return deltas / deltas.new_tensor(stds)


def decode_ssd(anchors: Tensor, deltas: Tensor) -> Tensor:
    """SSD's boxes (arXiv 1512.02325, equation 2): variances 0.1 for centres and 0.2 for sides, nothing clipped.

    ``N × 4`` anchors as centre and sides, ``… × N × 4`` deltas; gives ``… × N × 4`` left, top, right, bottom.
    """
    centre = anchors[:, :2] + anchors[:, 2:] * deltas[..., :2] * 0.1
    sides = anchors[:, 2:] * (deltas[..., 2:] * 0.2).exp()
    return box_convert(torch.cat([centre, sides], dim=-1), "cxcywh", "xyxy")


def encode_ssd(anchors: Tensor, objects: Tensor) -> Tensor:
    """The deltas with which :func:`decode_ssd` makes ``objects`` of ``anchors``.

    ``N × 4`` anchors as centre and sides, ``N × 4`` objects as left, top, right, bottom.
    """
    wanted = box_convert(objects, "xyxy", "cxcywh")
    centre = (wanted[:, :2] - anchors[:, :2]) / anchors[:, 2:] / 0.1
    return torch.cat([centre, (wanted[:, 2:] / anchors[:, 2:]).log() / 0.2], dim=-1)


def strongest(
    boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and groups that survive non-maximum suppression within each group, the ``limit`` best first.

    A box goes where its overlap with a better one is strictly above ``overlap``.
    """
    if not len(boxes):
        return boxes, scores, groups
    # Each group is moved to a place of its own, in double precision, so that no overlap changes.
    exact = boxes if boxes.device.type == "mps" else boxes.double()  # which has no doubles
    exact = exact.clamp(-FAR, FAR)  # one endless box would leave no room for the others
    apart = exact + groups[:, None] * (exact.max() - exact.min() + 1)
    order = scores.argsort(descending=True, stable=True)
    count = 2 * limit
    while True:  # only better boxes suppress one, so those that are left of the first few are the best of all
        first = order[:count]
        kept = first[nms(apart[first], scores[first].to(apart), overlap)[:limit]]
        if len(kept) == limit or count >= len(order):
            return boxes[kept], scores[kept], groups[kept]
        count *= 2


def rescaled(boxes: Tensor, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """``N × 4`` boxes on a picture of ``size`` (height and width) in the pixels of one of size ``original``."""
    y, x = original[0] / size[0], original[1] / size[1]
    return boxes * boxes.new_tensor([x, y, x, y])


def has_area(boxes: Tensor) -> Tensor:
    """True where width and height are above zero."""
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
