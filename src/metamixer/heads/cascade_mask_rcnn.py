"""Cascade Mask R-CNN (arXiv 1906.09756), as FFNet detects with it: Mask R-CNN with three stages."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from metamixer.heads.boxes import decode_deltas
from metamixer.heads.mask_rcnn import MaskRCNN, Stds

STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


class CascadeMaskRCNN(MaskRCNN):
    """Raw outputs as Mask R-CNN's; each stage refines the boxes of the one before.

    Box heads have four 3×3 convolutions with norm and one linear layer; masks are the mean of three heads'. Further
    arguments are those of :class:`~metamixer.heads.mask_rcnn.MaskRCNN`.

    Its training differs in more than the stages: stage i takes proposals from overlaps of 0.5, 0.6 and 0.7 on and
    counts 1, 0.5 and 0.25; boxes learn by generalised IoU; only anchors inside the picture are learnt from.
    """

    train_proposals = 2000
    anchors_outside = False
    positive_from = (0.5, 0.6, 0.7)
    stage_weights = (1.0, 0.5, 0.25)
    rescue = None
    proposal_beta = 1 / 9

    def __init__(self, backbone: nn.Module, num_classes: int, **kwargs: Any) -> None:
        super().__init__(backbone, num_classes, **{"stds": STDS, "convs": 4, "layers": 1, **kwargs})

    def box_loss(self, boxes: Tensor, deltas: Tensor, objects: Tensor, stds: Stds) -> Tensor:
        """Sum of the generalised IoU losses of ``R`` boxes moved by their deltas, ten times."""
        moved = decode_deltas(boxes, deltas, None, stds)
        return 10 * generalized_box_iou_loss(moved, objects, reduction="sum", eps=1e-6)
