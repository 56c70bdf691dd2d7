"""RetinaNet (arXiv 1708.02002), as CAS-ViT detects with it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from metamixer.data.joint_transforms import padded_size
from metamixer.heads.anchors import anchors_around_zero, grid_anchors, in_own_cells, per_anchor
from metamixer.heads.base import DenseModel, Detections, Size, check_sizes, levels_at, normal_init
from metamixer.heads.boxes import decode_deltas, encode_deltas, has_area, rescaled, strongest
from metamixer.heads.fpn import FeaturePyramid
from metamixer.heads.matching import IGNORED, Objects, assign, at_least_one_each

STRIDES = (8, 16, 32, 64, 128)
SCALES = tuple(4 * 2 ** (i / 3) for i in range(3))
RATIOS = (0.5, 1.0, 2.0)
ANCHORS = len(SCALES) * len(RATIOS)


class RetinaHead(nn.Module):
    """Two towers of four convolutions on every level: class logits and box deltas of nine anchors a cell.

    ``B × in × H × W`` to ``B × 9·classes × H × W`` (channel = anchor · classes + class) and ``B × 36 × H × W``.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.class_tower = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4))
        self.box_tower = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4))
        self.classifier = nn.Conv2d(channels, ANCHORS * num_classes, 3, padding=1)
        self.regressor = nn.Conv2d(channels, ANCHORS * 4, 3, padding=1)
        normal_init([self])  # at the release's 256 channels the towers have the same
        normal_init([self.class_tower, self.box_tower], 0.01 * math.sqrt(256 / channels))
        nn.init.constant_(self.classifier.bias, -math.log(99))  # type: ignore[arg-type]  # a score of 0.01 at first

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        classes = boxes = x
        for class_conv, box_conv in zip(self.class_tower, self.box_tower, strict=True):
            classes, boxes = class_conv(classes).relu(), box_conv(boxes).relu()
        return self.classifier(classes), self.regressor(boxes)


class RetinaNet(DenseModel):
    """Raw outputs: class logits of five levels at strides 8 … 128, then box deltas of the same.

    Args:
        channels: width of pyramid and head.
        score_threshold, candidates, overlap, limit: of the post-processing: only scores above the threshold, of
            those the best candidates of each level, suppressed at this overlap per class, the best of all.
    """

    classifiers = ("head.classifier",)

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        channels: int = 256,
        score_threshold: float = 0.05,
        candidates: int = 1000,
        overlap: float = 0.5,
        limit: int = 100,
    ) -> None:
        super().__init__(backbone, num_classes)
        self.score_threshold, self.candidates, self.overlap, self.limit = score_threshold, candidates, overlap, limit
        self.places, widths = levels_at(backbone, STRIDES[:3])
        self.neck = FeaturePyramid(widths, channels, len(STRIDES), extra="conv")
        self.head = RetinaHead(channels, num_classes)

    def forward_raw(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.maps(x)
        logits, deltas = zip(*(self.head(level) for level in self.neck([maps[i] for i in self.places])), strict=True)
        return (*logits, *deltas)

    def anchors(self, raw: Sequence[Tensor]) -> list[Tensor]:
        """Anchor boxes of each level, ``(H · W · 9) × 4``, in pixels of the input."""
        return [
            grid_anchors(anchors_around_zero(stride, SCALES, RATIOS).to(level.device), level.shape[-2:], stride)
            for stride, level in zip(STRIDES, raw, strict=False)
        ]

    def losses(self, raw: Sequence[Tensor], targets: Sequence[Objects], size: Size) -> dict[str, Tensor]:
        """Focal loss (γ 2, α 0.25) of the classes and L1 of the deltas, each over the number of positive anchors.

        An anchor answers for the object that it overlaps by 0.5 or more, and every object has one at least; between
        0.4 and 0.5 an anchor is ignored, and so are those in the padding that a picture owes to larger ones of its
        batch. A picture without objects counts as one anchor.
        """
        anchors = torch.cat(self.anchors(raw))
        batch, levels = len(raw[0]), len(STRIDES)
        logits = torch.cat([per_anchor(one, self.num_classes) for one in raw[:levels]], dim=1).float()
        deltas = torch.cat([per_anchor(one, 4) for one in raw[levels:]], dim=1).float()
        classes = boxes = logits.new_zeros(())
        sizes = [one.shape[-2:] for one in raw[:levels]]
        positives = []
        for i in range(batch):
            objects = targets[i]["boxes"]
            own = in_own_cells(sizes, STRIDES, ANCHORS, padded_size(targets[i]["size"].tolist()), anchors.device)
            matched = assign(anchors, objects, 0.5, 0.4, rescue=0.0, among=own)
            positive = (matched >= 0).nonzero()[:, 0]
            wanted = torch.zeros_like(logits[i])
            wanted[positive, targets[i]["labels"][matched[positive]]] = 1
            counted = matched != IGNORED
            classes = classes + sigmoid_focal_loss(
                logits[i][counted], wanted[counted], alpha=0.25, gamma=2, reduction="sum"
            )
            moves = encode_deltas(anchors[positive], objects[matched[positive]])
            boxes = boxes + (deltas[i][positive] - moves).abs().sum()
            positives.append(len(positive))
        count = at_least_one_each(positives)
        return {"classes": classes / count, "boxes": boxes / count}

    @torch.no_grad()
    def postprocess(
        self,
        raw: Sequence[Tensor],
        sizes: Sequence[Size],
        padded: Size | None = None,
        originals: Sequence[Size] | None = None,
    ) -> list[Detections]:
        check_sizes(raw[0], sizes)
        anchors = self.anchors(raw)
        levels = len(STRIDES)
        results = []
        for i, size in enumerate(sizes):
            boxes, scores, labels = [], [], []
            for around, logits, deltas in zip(anchors, raw[:levels], raw[levels:], strict=True):
                probabilities = logits[i].permute(1, 2, 0).reshape(-1, self.num_classes).sigmoid()
                anchor, label = (probabilities > self.score_threshold).nonzero(as_tuple=True)
                best, order = probabilities[anchor, label].sort(descending=True, stable=True)
                order, best = order[: self.candidates], best[: self.candidates]
                anchor = anchor[order]
                moved = decode_deltas(around[anchor], deltas[i].permute(1, 2, 0).reshape(-1, 4)[anchor], size)
                kept = has_area(moved)
                boxes.append(moved[kept])
                scores.append(best[kept])
                labels.append(label[order][kept])
            best_boxes, best_scores, best_labels = strongest(
                torch.cat(boxes), torch.cat(scores), torch.cat(labels), self.overlap, self.limit
            )
            if originals is not None:
                best_boxes = rescaled(best_boxes, size, originals[i])
            results.append(Detections(best_boxes, best_scores, best_labels))
        return results
