"""SSDLite (arXiv 1801.04381 on 1512.02325), as AFFNet detects with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, box_iou, clip_boxes_to_image

from metamixer.heads.anchors import per_anchor, ssd_anchors
from metamixer.heads.base import DenseModel, Detections, Size, check_sizes, levels_at
from metamixer.heads.boxes import decode_ssd, encode_ssd, rescaled, strongest
from metamixer.heads.matching import Objects
from metamixer.mixers.conv_norm import ConvNorm
from metamixer.ops.constants import constant

BACKBONE_STRIDES = (16, 32)
WIDTHS = (512, 256, 256, 128, 128, 64)
RATIOS = ((2, 3),) * 5 + ((2,),)
NEGATIVES = 3  # for each positive anchor of a picture
SCALES = np.linspace(0.1, 1.05, len(WIDTHS) + 1).tolist()


class SSDPredictor(nn.Module):
    """Box deltas and class logits of every anchor: ``B × in × H × W`` to ``B × (H · W · anchors) × (4 + 1 + classes)``.

    A 1×1 projection where the width changes and a depthwise 3×3 with norm come first, on the last level neither.
    """

    def __init__(self, in_channels: int, width: int, anchors: int, num_classes: int, last: bool) -> None:
        super().__init__()
        self.values = 4 + 1 + num_classes
        self.project: nn.Module = nn.Identity()
        self.depthwise: nn.Module = nn.Identity()
        if not last:
            if width != in_channels:
                self.project = ConvNorm(in_channels, width, act=nn.SiLU())
            self.depthwise = ConvNorm(width, width, 3, groups=width)
        self.predict = nn.Conv2d(width, anchors * self.values, 1)

    def forward(self, x: Tensor) -> Tensor:
        return per_anchor(self.predict(self.depthwise(self.project(x))), self.values)


class SSDLite(DenseModel):
    """Raw outputs, for N anchors: class logits ``B × N × (1 + classes)`` with the background first, box deltas
    ``B × N × 4``, anchors ``N × 4`` (centre and sides) and boxes ``B × N × 4`` (left, top, right, bottom), the last
    two as shares of the input.

    Args:
        score_threshold, candidates, overlap, limit: of the post-processing: only scores above the threshold, of
            those the best candidates of each class, suppressed at this overlap per class, the best of all.
        matched_from: overlap from which on an anchor learns an object. The release's own default; Apple's
            configurations of the same network have 0.5.
    """

    default_size = 320
    longest = None
    classifiers = tuple(f"predictors.{i}.predict" for i in range(len(WIDTHS)))

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        score_threshold: float = 0.01,
        candidates: int = 400,
        overlap: float = 0.5,
        limit: int = 200,
        matched_from: float = 0.45,
    ) -> None:
        super().__init__(backbone, num_classes)
        self.matched_from = matched_from
        self.score_threshold, self.candidates, self.overlap, self.limit = score_threshold, candidates, overlap, limit
        self.places, widths = levels_at(backbone, BACKBONE_STRIDES)
        self.extra_levels = nn.ModuleList()
        for width in WIDTHS[2:-1]:
            depthwise = ConvNorm(widths[-1], widths[-1], 3, stride=2, groups=widths[-1])
            self.extra_levels.append(nn.Sequential(depthwise, ConvNorm(widths[-1], width, act=nn.SiLU())))
            widths.append(width)
        self.extra_levels.append(
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(widths[-1], WIDTHS[-1], 1, bias=False), nn.SiLU())
        )
        widths.append(WIDTHS[-1])
        self.predictors = nn.ModuleList(
            SSDPredictor(given, width, 2 + 2 * len(ratios), num_classes, last=i == len(WIDTHS) - 1)
            for i, (given, width, ratios) in enumerate(zip(widths, WIDTHS, RATIOS, strict=True))
        )
        for module in [*self.extra_levels.modules(), *self.predictors.modules()]:
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def levels(self, x: Tensor) -> list[Tensor]:
        """Maps at strides 16, 32, 64, 128 and 256, and the whole picture's mean."""
        maps = self.maps(x)
        levels = [maps[i] for i in self.places]
        for extra in self.extra_levels:
            levels.append(extra(levels[-1]))
        return levels

    def forward_raw(self, x: Tensor) -> tuple[Tensor, ...]:
        levels = self.levels(x)
        values = torch.cat([predict(level) for predict, level in zip(self.predictors, levels, strict=True)], dim=1)
        deltas, logits = values[..., :4], values[..., 4:]
        anchors = torch.cat(
            [
                # Kept per size: a constant of an exported graph, where not every runtime computes in float64.
                constant(_anchors, level.shape[-2], level.shape[-1], i, like=level.float())
                for i, level in enumerate(levels)
            ]
        )
        return logits, deltas, anchors, decode_ssd(anchors, deltas)

    def losses(self, raw: Sequence[Tensor], targets: Sequence[Objects], size: Size) -> dict[str, Tensor]:
        """The multibox loss (arXiv 1512.02325, section 2.2): cross-entropy of the classes and smooth L1 of the deltas,
        both over the number of positive anchors in the batch.

        An anchor answers for the object it overlaps most, from ``matched_from`` on; every object has the anchor that
        overlaps it most. Of the others, each picture counts the three times as many as positives that look least like
        background.
        """
        logits, deltas, anchors = raw[0].float(), raw[1].float(), raw[2]
        height, width = size
        scale = anchors.new_tensor([width, height, width, height])
        labels, moves = [], []
        for target in targets:
            wanted, matched = multibox_targets(anchors, target["boxes"] / scale, target["labels"], self.matched_from)
            labels.append(wanted)
            moves.append(encode_ssd(anchors, matched))
        label, move = torch.stack(labels), torch.stack(moves)
        positive = label > 0
        count = positive.sum().clamp(min=1)
        boxes = F.smooth_l1_loss(deltas[positive], move[positive], reduction="sum")
        taken = counted(logits, positive)
        classes = F.cross_entropy(logits[taken], label[taken], reduction="sum")
        return {"classes": classes / count, "boxes": boxes / count}

    @torch.no_grad()
    def select(self, logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One picture's objects: boxes as shares of the input, scores and labels (0 is the first class).

        Args:
            logits: ``N × (1 + classes)``.
            boxes: ``N × 4``.
        """
        of_classes = logits.softmax(-1)[:, 1:].T
        best, order = of_classes.topk(min(self.candidates, len(logits)), dim=1)
        above = best > self.score_threshold
        labels = above.nonzero()[:, 0]
        return strongest(boxes[order[above]], best[above], labels, self.overlap, self.limit)

    @torch.no_grad()
    def postprocess(
        self,
        raw: Sequence[Tensor],
        sizes: Sequence[Size],
        padded: Size | None = None,
        originals: Sequence[Size] | None = None,
    ) -> list[Detections]:
        check_sizes(raw[0], sizes)
        results = []
        for i, (logits, boxes, size) in enumerate(zip(raw[0], raw[3], sizes, strict=True)):
            taken, scores, labels = self.select(logits, boxes)
            height, width = padded or size
            pixels = taken * taken.new_tensor([width, height, width, height])
            found = clip_boxes_to_image(pixels, size)
            if originals is not None:
                found = rescaled(found, size, originals[i])
            results.append(Detections(found, scores, labels))
        return results


def _anchors(height: int, width: int, i: int, device: torch.device) -> Tensor:
    """Those of the level ``i``."""
    return ssd_anchors((height, width), SCALES[i], SCALES[i + 1], RATIOS[i]).to(device)


def multibox_targets(anchors: Tensor, boxes: Tensor, labels: Tensor, matched_from: float) -> tuple[Tensor, Tensor]:
    """For ``N`` anchors the class (0 is background) and the box of their object, all as shares of the picture.

    The release adds 1e-5 to each union, which lowers overlaps of the smallest anchors by a thousandth; ours does not.
    """
    if not len(boxes):
        return labels.new_zeros(len(anchors)), box_convert(anchors, "cxcywh", "xyxy")
    overlaps = box_iou(boxes, box_convert(anchors, "cxcywh", "xyxy"))
    best, matched = overlaps.max(dim=0)
    for i, anchor in enumerate(overlaps.argmax(dim=1).tolist()):
        matched[anchor], best[anchor] = i, 1.0
    return torch.where(best >= matched_from, labels[matched] + 1, 0), boxes[matched]


@torch.no_grad()
def counted(logits: Tensor, positive: Tensor) -> Tensor:
    """Which anchors' classes are learnt, ``B × N``, bool: the ``positive`` ones, and those that least look like the
    background that they are."""
    doubt = -logits.log_softmax(-1)[..., 0]
    doubt[positive] = -torch.inf
    rank = doubt.argsort(dim=1, descending=True).argsort(dim=1)
    return positive | (rank < NEGATIVES * positive.sum(dim=1, keepdim=True))
