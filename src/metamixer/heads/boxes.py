"""Boxes from anchors and what a network says of them, and the choice among overlapping ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_convert, clip_boxes_to_image

LARGEST_GROWTH = abs(math.log(16 / 1000))


def decode_deltas(boxes: Tensor, deltas: Tensor, size: tuple[int, int], stds: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """mmdetection's boxes: shifted by shares of their sides, sides scaled by exponentials, clipped to the picture.

    Args:
        boxes: ``… × 4`` left, top, right, bottom in pixels.
        deltas: ``… × 4`` for centre x, centre y, width and height, in units of ``stds``.
        size: height and width of the picture.
    """
    deltas = deltas * deltas.new_tensor(stds)
    centre, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    centre = centre + sides * deltas[..., :2]
    half = sides * deltas[..., 2:].clamp(-LARGEST_GROWTH, LARGEST_GROWTH).exp() / 2
    return clip_boxes_to_image(torch.cat([centre - half, centre + half], dim=-1), size)


def decode_ssd(anchors: Tensor, deltas: Tensor) -> Tensor:
    """SSD's boxes (arXiv 1512.02325, equation 2): variances 0.1 for centres and 0.2 for sides, nothing clipped.

    ``N × 4`` anchors as centre and sides, ``… × N × 4`` deltas; gives ``… × N × 4`` left, top, right, bottom.
    """
    centre = anchors[:, :2] + anchors[:, 2:] * deltas[..., :2] * 0.1
    sides = anchors[:, 2:] * (deltas[..., 2:] * 0.2).exp()
    return box_convert(torch.cat([centre, sides], dim=-1), "cxcywh", "xyxy")


def strongest(
    boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and groups that survive non-maximum suppression within each group, the ``limit`` best first.

    A box goes where its overlap with a better one is strictly above ``overlap``.
    """
    kept = batched_nms(boxes, scores, groups, overlap)[:limit]
    return boxes[kept], scores[kept], groups[kept]


def has_area(boxes: Tensor) -> Tensor:
    """True where width and height are above zero."""
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
