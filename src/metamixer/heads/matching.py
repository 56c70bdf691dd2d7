"""Which anchor or proposal answers for which object, and which of them a loss looks at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

import torch
from torch import Tensor
from torchvision.ops import box_iou

BACKGROUND, IGNORED = -1, -2


class Objects(TypedDict, total=False):
    """What one training picture shows, in pixels of the network's input.

    ``boxes``: ``N × 4`` left, top, right, bottom; ``labels``: ``N``, int64, from 0; ``size``: int64, height and width
    of the picture without its padding; ``masks``: ``N × H × W``, bool or uint8, for heads that learn masks, padded with
    zeros to :func:`~metamixer.data.joint_transforms.padded_size`, as mmdetection pads each picture before it pads the
    batch. Crowds are left out.
    """

    boxes: Tensor
    labels: Tensor
    size: Tensor
    masks: Tensor


def assign(
    boxes: Tensor,
    objects: Tensor,
    positive: float,
    negative: float,
    rescue: float | None = None,
    among: Tensor | None = None,
) -> Tensor:
    """For each of ``N`` boxes the index of its object among ``M``, or BACKGROUND, or IGNORED; int64.

    A box takes the object it overlaps most where that is at least ``positive``, is background below ``negative``
    and ignored between. With ``rescue`` an object also keeps the boxes that overlap it most, all equal ones, if that
    overlap is at least ``rescue`` and above zero; the last object wins. These are the rules of mmdetection's
    ``MaxIoUAssigner``. Boxes that are not ``among`` (``N``, bool) those to learn from are ignored from the start.
    """
    if among is not None:
        matched = torch.full((len(boxes),), IGNORED, device=boxes.device)
        matched[among] = assign(boxes[among], objects, positive, negative, rescue)
        return matched
    if not len(objects) or not len(boxes):
        return torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    overlaps = box_iou(objects, boxes)
    best, matched = overlaps.max(dim=0)
    matched[best < positive] = IGNORED
    matched[best < negative] = BACKGROUND
    if rescue is not None:
        best = overlaps.max(dim=1).values
        for i in ((best >= rescue) & (best > 0)).nonzero()[:, 0].tolist():
            matched[overlaps[i] == best[i]] = i
    return matched


def draw(matched: Tensor, count: int, positive_share: float) -> tuple[Tensor, Tensor]:
    """Indices of at most ``count`` boxes drawn at random: of positive ones that share at most, background for the rest.

    ``matched`` is what :func:`assign` gave; both come in ascending order, as from mmdetection's ``RandomSampler``.
    """
    positive = _some((matched >= 0).nonzero()[:, 0], int(count * positive_share))
    return positive, _some((matched == BACKGROUND).nonzero()[:, 0], count - len(positive))


def _some(places: Tensor, count: int) -> Tensor:
    return places[torch.randperm(len(places), device=places.device)[:count]].sort().values


def at_least_one_each(counts: Iterable[int]) -> int:
    """A batch's number of positives, or of negatives, as mmdetection divides by it: at least one each picture."""
    return sum(max(count, 1) for count in counts)
