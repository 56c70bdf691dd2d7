"""Which anchor or proposal answers for which object, and which of them a loss looks at."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import box_iou

BACKGROUND, IGNORED = Matcher.BELOW_LOW_THRESHOLD, Matcher.BETWEEN_THRESHOLDS


class Objects(TypedDict, total=False):
    """What one training picture shows, in pixels of the network's input.

    ``boxes``: ``N × 4`` left, top, right, bottom; ``labels``: ``N``, int64, from 0; ``size``: int64, height and width
    of the picture without its padding; ``masks``: ``N × H × W``, bool or uint8, for heads that learn masks. Crowds are
    left out.
    """

    boxes: Tensor
    labels: Tensor
    size: Tensor
    masks: Tensor


def assign(boxes: Tensor, objects: Tensor, positive: float, negative: float, rescue: float | None = None) -> Tensor:
    """For each of ``N`` boxes the index of its object among ``M``, or BACKGROUND, or IGNORED; int64.

    A box takes the object it overlaps most where that is at least ``positive``, is background below ``negative``
    and ignored between. With ``rescue`` an object also keeps the boxes that overlap it most, all equal ones, if that
    overlap is at least ``rescue`` and above zero; the last object wins. These are the rules of mmdetection's
    ``MaxIoUAssigner``.
    """
    if not len(objects):
        return torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    overlaps = box_iou(objects, boxes)
    matched = Matcher(positive, negative)(overlaps)
    if rescue is not None:
        best = overlaps.max(dim=1).values
        for i in ((best >= rescue) & (best > 0)).nonzero()[:, 0].tolist():
            matched[overlaps[i] == best[i]] = i
    return matched


def draw(matched: Tensor, count: int, positive_share: float) -> tuple[Tensor, Tensor]:
    """Indices of at most ``count`` boxes drawn at random: of positive ones that share at most, background for the rest.

    ``matched`` is what :func:`assign` gave.
    """
    signs = torch.where(matched >= 0, 1, torch.where(matched == BACKGROUND, 0, -1))
    positive, negative = BalancedPositiveNegativeSampler(count, positive_share)([signs])
    return positive[0].nonzero()[:, 0], negative[0].nonzero()[:, 0]
