"""Cascade Mask R-CNN (arXiv 1906.09756), as FFNet detects with it: Mask R-CNN with three stages."""

from __future__ import annotations

from typing import Any

from torch import nn

from metamixer.heads.mask_rcnn import MaskRCNN

STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


class CascadeMaskRCNN(MaskRCNN):
    """Raw outputs as Mask R-CNN's; each stage refines the boxes of the one before.

    Box heads have four 3×3 convolutions with norm and one linear layer; masks are the mean of three heads'. Further
    arguments are those of :class:`~metamixer.heads.mask_rcnn.MaskRCNN`.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, **kwargs: Any) -> None:
        super().__init__(backbone, num_classes, **{"stds": STDS, "convs": 4, "layers": 1, **kwargs})
