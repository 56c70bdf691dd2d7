"""SSDLite (arXiv 1801.04381 on 1512.02325), as AFFNet detects with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from metamixer.heads.anchors import ssd_anchors
from metamixer.heads.base import DenseModel, Detections, Size, check_sizes, levels_at
from metamixer.heads.boxes import decode_ssd, strongest
from metamixer.mixers.conv_norm import ConvNorm

BACKBONE_STRIDES = (16, 32)
WIDTHS = (512, 256, 256, 128, 128, 64)
RATIOS = ((2, 3),) * 5 + ((2,),)
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
        y = self.predict(self.depthwise(self.project(x)))
        return y.permute(0, 2, 3, 1).reshape(len(y), -1, self.values)


class SSDLite(DenseModel):
    """Raw outputs, for N anchors: class logits ``B × N × (1 + classes)`` with the background first, box deltas
    ``B × N × 4``, anchors ``N × 4`` (centre and sides) and boxes ``B × N × 4`` (left, top, right, bottom), the last
    two as shares of the input.

    Args:
        score_threshold, candidates, overlap, limit: of the post-processing: only scores above the threshold, of
            those the best candidates of each class, suppressed at this overlap per class, the best of all.
    """

    classifiers = tuple(f"predictors.{i}.predict" for i in range(len(WIDTHS)))

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        score_threshold: float = 0.01,
        candidates: int = 400,
        overlap: float = 0.5,
        limit: int = 200,
    ) -> None:
        super().__init__(backbone, num_classes)
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
                ssd_anchors(level.shape[-2:], SCALES[i], SCALES[i + 1], RATIOS[i]).to(x.device)
                for i, level in enumerate(levels)
            ]
        )
        return logits, deltas, anchors, decode_ssd(anchors, deltas)

    @torch.no_grad()
    def select(self, logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One picture's objects: boxes as shares of the input, scores and labels (0 is the first class).

        Args:
            logits: ``N × (1 + classes)``.
            boxes: ``N × 4``.
        """
        probabilities = logits.softmax(-1)
        taken, scores, labels = [], [], []
        for label in range(self.num_classes):
            of_class = probabilities[:, 1 + label]
            above = (of_class > self.score_threshold).nonzero()[:, 0]
            best, order = of_class[above].topk(min(self.candidates, len(above)))
            taken.append(boxes[above[order]])
            scores.append(best)
            labels.append(torch.full_like(order, label))
        return strongest(torch.cat(taken), torch.cat(scores), torch.cat(labels), self.overlap, self.limit)

    @torch.no_grad()
    def postprocess(self, raw: Sequence[Tensor], sizes: Sequence[Size], padded: Size | None = None) -> list[Detections]:
        check_sizes(raw[0], sizes)
        results = []
        for logits, boxes, size in zip(raw[0], raw[3], sizes, strict=True):
            taken, scores, labels = self.select(logits, boxes)
            height, width = padded or size
            pixels = taken * taken.new_tensor([width, height, width, height])
            results.append(Detections(clip_boxes_to_image(pixels, size), scores, labels))
        return results
