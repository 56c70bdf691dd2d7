"""Mask R-CNN (arXiv 1703.06870), as CAS-ViT detects with it; with several stages it is a cascade."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from metamixer.heads.anchors import anchors_around_zero, grid_anchors
from metamixer.heads.base import DenseModel, Detections, Size, check_sizes, levels_at, normal_init
from metamixer.heads.boxes import decode_deltas, has_area, strongest
from metamixer.heads.fpn import FeaturePyramid
from metamixer.mixers.conv_norm import ConvNorm

STRIDES = (4, 8, 16, 32, 64)
ROI_STRIDES = STRIDES[:4]
RATIOS = (0.5, 1.0, 2.0)
BOX_SIDE, MASK_SIDE = 7, 14
Stds = tuple[float, float, float, float]


class ProposalHead(nn.Module):
    """Region proposals: ``B × in × H × W`` to ``B × 3 × H × W`` objectness logits and ``B × 12 × H × W`` deltas."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.classifier = nn.Conv2d(channels, len(RATIOS), 1)
        self.regressor = nn.Conv2d(channels, len(RATIOS) * 4, 1)
        normal_init([self])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x).relu()
        return self.classifier(x), self.regressor(x)


class BoxHead(nn.Module):
    """``R × in × 7 × 7`` to ``R × (classes + 1)`` logits, the background last, and ``R × 4·classes`` deltas."""

    def __init__(self, channels: int, num_classes: int, convs: int, layers: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(ConvNorm(channels, channels, 3, act=nn.ReLU()) for _ in range(convs)))
        linear = [nn.Linear(1024 if i else channels * BOX_SIDE**2, 1024) for i in range(layers)]
        self.layers = nn.ModuleList(linear)
        self.classifier = nn.Linear(1024, num_classes + 1)
        self.regressor = nn.Linear(1024, num_classes * 4)
        for layer in linear:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        normal_init([self.classifier])
        normal_init([self.regressor], 0.001)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.convs(x).flatten(1)
        for layer in self.layers:
            x = layer(x).relu()
        return self.classifier(x), self.regressor(x)


class MaskHead(nn.Module):
    """``R × in × 14 × 14`` to ``R × classes × 28 × 28`` logits."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        for layer in [*self.convs, self.upsample, self.classifier]:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x).relu()
        return self.classifier(self.upsample(x).relu())


class BoxStage(NamedTuple):
    """One stage's boxes ``R × 4`` in pixels, and its word: logits ``R × (classes + 1)``, deltas ``R × 4·classes``."""

    boxes: Tensor
    logits: Tensor
    deltas: Tensor


class MaskRCNN(DenseModel):
    """Boxes and masks in two steps.

    Raw outputs: the pyramid's five maps at strides 4 … 64, objectness logits of each, deltas of each. The second step
    works on as many boxes as the first finds, so it belongs to ``postprocess``; its parts are :meth:`propose`,
    :meth:`box_stages`, :meth:`detect` and :meth:`mask_logits`.

    Args:
        channels: width of pyramid and heads.
        stds: units of the box deltas, one tuple for each stage.
        convs, layers: 3×3 convolutions and linear layers of each box head.
        score_threshold, overlap, limit: of the final choice: only scores above the threshold, suppressed at this
            overlap per class, the best of all.
        proposals, proposal_overlap: most proposals of each level and of a picture, and their overlap.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        channels: int = 256,
        stds: Sequence[Stds] = ((0.1, 0.1, 0.2, 0.2),),
        convs: int = 0,
        layers: int = 2,
        score_threshold: float = 0.05,
        overlap: float = 0.5,
        limit: int = 100,
        proposals: int = 1000,
        proposal_overlap: float = 0.7,
    ) -> None:
        super().__init__(backbone, num_classes)
        self.stds = stds
        parts = ("box_heads.{}.classifier", "box_heads.{}.regressor", "mask_heads.{}.classifier")
        self.classifiers = tuple(part.format(i) for i in range(len(stds)) for part in parts)
        self.score_threshold, self.overlap, self.limit = score_threshold, overlap, limit
        self.proposals, self.proposal_overlap = proposals, proposal_overlap
        self.places, widths = levels_at(backbone, ROI_STRIDES)
        self.neck = FeaturePyramid(widths, channels, len(STRIDES))
        self.proposal_head = ProposalHead(channels)
        self.box_heads = nn.ModuleList(BoxHead(channels, num_classes, convs, layers) for _ in stds)
        self.mask_heads = nn.ModuleList(MaskHead(channels, num_classes) for _ in stds)

    def forward_raw(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.maps(x)
        levels = self.neck([maps[i] for i in self.places])
        logits, deltas = zip(*(self.proposal_head(level) for level in levels), strict=True)
        return (*levels, *logits, *deltas)

    @torch.no_grad()
    def propose(self, raw: Sequence[Tensor], picture: int, size: Size) -> tuple[Tensor, Tensor]:
        """Boxes ``R × 4`` in pixels that may hold an object, the likeliest first, and their scores ``R``."""
        n = len(STRIDES)
        boxes, scores, levels = [], [], []
        for i, (stride, logits, deltas) in enumerate(zip(STRIDES, raw[n : 2 * n], raw[2 * n :], strict=True)):
            around = grid_anchors(
                anchors_around_zero(stride, (8,), RATIOS).to(logits.device), logits.shape[-2:], stride
            )
            score = logits[picture].permute(1, 2, 0).flatten().sigmoid()
            best, order = score.sort(descending=True, stable=True)
            best, order = best[: self.proposals], order[: self.proposals]
            moved = decode_deltas(around[order], deltas[picture].permute(1, 2, 0).reshape(-1, 4)[order], size)
            kept = has_area(moved)
            boxes.append(moved[kept])
            scores.append(best[kept])
            levels.append(torch.full_like(order[kept], i))
        found, score, _ = strongest(
            torch.cat(boxes), torch.cat(scores), torch.cat(levels), self.proposal_overlap, self.proposals
        )
        return found, score

    @staticmethod
    def roi_features(maps: Sequence[Tensor], boxes: Tensor, side: int) -> Tensor:
        """``R × in × side × side`` from the level that suits each box's area; maps of one picture, ``1 × in × …``."""
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        level = (area.sqrt() / 56 + 1e-6).log2().floor().clamp(0, len(ROI_STRIDES) - 1)
        features = boxes.new_zeros(len(boxes), maps[0].shape[1], side, side)
        for i, stride in enumerate(ROI_STRIDES):
            here = (level == i).nonzero()[:, 0]
            if len(here):
                features[here] = roi_align(maps[i], [boxes[here]], side, 1 / stride, sampling_ratio=-1, aligned=True)
        return features

    @torch.no_grad()
    def box_stages(self, maps: Sequence[Tensor], boxes: Tensor, size: Size) -> list[BoxStage]:
        """Every stage's view of the proposals; between stages the deltas of the best class move each box."""
        stages: list[BoxStage] = []
        for i, head in enumerate(self.box_heads):
            if stages:
                previous = stages[-1]
                best = previous.logits[:, :-1].argmax(1)
                deltas = previous.deltas.reshape(-1, self.num_classes, 4)[torch.arange(len(boxes)), best]
                boxes = decode_deltas(boxes, deltas, size, self.stds[i - 1])
            stages.append(BoxStage(boxes, *head(self.roi_features(maps, boxes, BOX_SIDE))))
        return stages

    @torch.no_grad()
    def detect(self, stages: Sequence[BoxStage], size: Size) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels: classes by the mean of all stages' logits, boxes from the last stage."""
        boxes, _, deltas = stages[-1]
        scores = torch.stack([stage.logits for stage in stages]).mean(0).softmax(-1)[:, :-1]
        of_classes = deltas.reshape(-1, self.num_classes, 4)
        roi, label = (scores > self.score_threshold).nonzero(as_tuple=True)
        moved = decode_deltas(boxes[roi], of_classes[roi, label], size, self.stds[-1])
        return strongest(moved, scores[roi, label], label, self.overlap, self.limit)

    @torch.no_grad()
    def mask_logits(self, maps: Sequence[Tensor], boxes: Tensor) -> list[Tensor]:
        """``R × classes × 28 × 28`` from every stage's mask head."""
        features = self.roi_features(maps, boxes, MASK_SIDE)
        return [head(features) for head in self.mask_heads]

    @torch.no_grad()
    def postprocess(self, raw: Sequence[Tensor], sizes: Sequence[Size], padded: Size | None = None) -> list[Detections]:
        check_sizes(raw[0], sizes)
        results = []
        for i, size in enumerate(sizes):
            maps = [level[i : i + 1] for level in raw[: len(ROI_STRIDES)]]
            proposals, _ = self.propose(raw, i, size)
            boxes, scores, labels = self.detect(self.box_stages(maps, proposals, size), size)
            logits = self.mask_logits(maps, boxes)
            own = own_masks(logits, labels)
            results.append(Detections(boxes, scores, labels, paste_masks(own, boxes, size)))
        return results


def own_masks(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """``R × 28 × 28`` probabilities of each object's own class, averaged over the stages."""
    each = torch.arange(len(labels), device=labels.device)
    return torch.stack([stage[each, labels].sigmoid() for stage in logits]).mean(0)


def paste_masks(masks: Tensor, boxes: Tensor, size: Size, threshold: float = 0.5) -> Tensor:
    """``R × side × side`` probabilities stretched over their boxes: ``R × H × W``, bool.

    Sampled bilinearly at pixel centres, zero outside a box, true from ``threshold`` on.
    """
    height, width = size
    y = torch.arange(height, device=boxes.device) + 0.5
    x = torch.arange(width, device=boxes.device) + 0.5
    pasted = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=boxes.device)
    for mask, box, into in zip(masks, boxes, pasted, strict=True):
        left, top, right, bottom = box.tolist()
        rows = slice(max(math.floor(top) - 1, 0), math.ceil(bottom) + 1)  # nothing reaches further out
        columns = slice(max(math.floor(left) - 1, 0), math.ceil(right) + 1)
        v = (y[rows] - box[1]) / (box[3] - box[1]) * 2 - 1
        u = (x[columns] - box[0]) / (box[2] - box[0]) * 2 - 1
        grid = torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1)[None]
        into[rows, columns] = F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0] >= threshold
    return pasted
