"""Mask R-CNN (arXiv 1703.06870), as CAS-ViT detects with it; with several stages it is a cascade."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from metamixer.data.joint_transforms import padded_size
from metamixer.errors import MetamixerError
from metamixer.heads.anchors import anchors_around_zero, grid_anchors, in_own_cells, per_anchor
from metamixer.heads.base import DenseModel, Detections, Size, check_sizes, levels_at, normal_init
from metamixer.heads.boxes import clip_each, decode_deltas, encode_deltas, has_area, rescaled, strongest
from metamixer.heads.fpn import FeaturePyramid
from metamixer.heads.matching import BACKGROUND, Objects, assign, at_least_one_each, draw
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

    def __init__(self, channels: int, num_classes: int, convs: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(ConvNorm(channels, channels, 3, act=nn.ReLU()) for _ in range(convs)))
        linear = [nn.Linear(hidden if i else channels * BOX_SIDE**2, hidden) for i in range(layers)]
        self.layers = nn.ModuleList(linear)
        self.classifier = nn.Linear(hidden, num_classes + 1)
        self.regressor = nn.Linear(hidden, num_classes * 4)
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


class Samples(NamedTuple):
    """What a picture's box head learns from: ``R`` boxes in pixels, the ``P`` positive ones first.

    ``labels``: ``R``, the number of classes for background. ``objects`` and ``matched``: ``P × 4`` true boxes and their
    indices. ``given``: ``R``, true where the box itself is a true one.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    matched: Tensor
    given: Tensor


class MaskRCNN(DenseModel):
    """Boxes and masks in two steps.

    Raw outputs: the pyramid's five maps at strides 4 … 64, objectness logits of each, deltas of each. The second step
    works on as many boxes as the first finds, so it belongs to ``postprocess``; its parts are :meth:`propose`,
    :meth:`box_stages`, :meth:`detect` and :meth:`mask_logits`.

    Args:
        channels: width of pyramid and heads.
        stds: units of the box deltas, one tuple for each stage.
        convs, layers: 3×3 convolutions and linear layers of each box head.
        hidden: width of those linear layers.
        score_threshold, overlap, limit: of the final choice: only scores above the threshold, suppressed at this
            overlap per class, the best of all.
        proposals, proposal_overlap: most proposals of each level and of a picture, and their overlap.
        samples: proposals of a picture that each box head learns from.
    """

    # Numbers of the training, by the configurations of the releases; the cascade has its own.
    train_proposals: ClassVar[int] = 1000
    """Most proposals of a picture in training (2000 of each level)."""
    anchors_outside: ClassVar[bool] = True
    """Whether anchors that reach out of the picture are learnt from."""
    positive_from: ClassVar[tuple[float, ...]] = (0.5,)
    """Overlap from which on a proposal answers for an object, for each stage."""
    stage_weights: ClassVar[tuple[float, ...]] = (1.0,)
    rescue: ClassVar[float | None] = 0.5
    """Overlap from which on an object keeps its best proposals; None for never."""
    proposal_beta: ClassVar[float] = 0.0
    """Where the L1 loss of the proposals' deltas becomes linear; 0 is plain L1."""

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        channels: int = 256,
        stds: Sequence[Stds] = ((0.1, 0.1, 0.2, 0.2),),
        convs: int = 0,
        layers: int = 2,
        hidden: int = 1024,
        score_threshold: float = 0.05,
        overlap: float = 0.5,
        limit: int = 100,
        proposals: int = 1000,
        proposal_overlap: float = 0.7,
        samples: int = 512,
    ) -> None:
        super().__init__(backbone, num_classes)
        self.stds = stds
        parts = ("box_heads.{}.classifier", "box_heads.{}.regressor", "mask_heads.{}.classifier")
        self.classifiers = tuple(part.format(i) for i in range(len(stds)) for part in parts)
        self.score_threshold, self.overlap, self.limit = score_threshold, overlap, limit
        self.proposals, self.proposal_overlap = proposals, proposal_overlap
        self.samples = samples
        self.places, widths = levels_at(backbone, ROI_STRIDES)
        self.neck = FeaturePyramid(widths, channels, len(STRIDES))
        self.proposal_head = ProposalHead(channels)
        self.box_heads = nn.ModuleList(BoxHead(channels, num_classes, convs, layers, hidden) for _ in stds)
        self.mask_heads = nn.ModuleList(MaskHead(channels, num_classes) for _ in stds)

    def forward_raw(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.maps(x)
        levels = self.neck([maps[i] for i in self.places])
        logits, deltas = zip(*(self.proposal_head(level) for level in levels), strict=True)
        return (*levels, *logits, *deltas)

    def anchors(self, raw: Sequence[Tensor]) -> list[Tensor]:
        """Anchor boxes of each level, ``(H · W · 3) × 4``, in pixels of the input."""
        return [
            grid_anchors(anchors_around_zero(stride, (8,), RATIOS).to(level.device), level.shape[-2:], stride)
            for stride, level in zip(STRIDES, raw, strict=False)
        ]

    @torch.no_grad()
    def propose(
        self, raw: Sequence[Tensor], sizes: Sequence[Size], candidates: int | None = None, limit: int | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """For each picture boxes ``R × 4`` in pixels that may hold an object, the likeliest first, and scores ``R``.

        Of each level the best ``candidates`` are looked at, and ``limit`` are kept; both are ``proposals`` by default.
        """
        n = len(STRIDES)
        candidates, limit = candidates or self.proposals, limit or self.proposals
        boxes, scores, levels = [], [], []
        levels_raw = zip(self.anchors(raw), raw[n : 2 * n], raw[2 * n :], strict=True)
        for i, (around, logits, deltas) in enumerate(levels_raw):
            best, order = per_anchor(logits, 1)[..., 0].sigmoid().sort(dim=1, descending=True, stable=True)
            best, order = best[:, :candidates], order[:, :candidates]
            moves = per_anchor(deltas, 4).gather(1, order[..., None].expand(-1, -1, 4))
            boxes.append(clip_each(decode_deltas(around[order], moves, None), sizes))
            scores.append(best)
            levels.append(order.new_full((order.shape[1],), i))
        level, proposals = torch.cat(levels), []
        for moved, score in zip(torch.cat(boxes, dim=1), torch.cat(scores, dim=1), strict=True):
            kept = has_area(moved)
            found, best, _ = strongest(moved[kept], score[kept], level[kept], self.proposal_overlap, limit)
            proposals.append((found, best))
        return proposals

    def losses(self, raw: Sequence[Tensor], targets: Sequence[Objects], size: Size) -> dict[str, Tensor]:
        """Losses of the proposals and of every stage's classes, boxes and masks.

        Raises MetamixerError where a picture with objects has no masks.
        """
        losses = self.proposal_losses(raw, targets)
        pictures = [(int(target["size"][0]), int(target["size"][1])) for target in targets]
        proposals = [boxes for boxes, _ in self.propose(raw, pictures, 2000, self.train_proposals)]
        maps = raw[: len(ROI_STRIDES)]
        for stage in range(len(self.stds)):
            samples = [
                self.draw_samples(boxes, target, stage) for boxes, target in zip(proposals, targets, strict=True)
            ]
            features = torch.cat([self._features(maps, i, sample.boxes, BOX_SIDE) for i, sample in enumerate(samples)])
            logits, deltas = self.box_heads[stage](features)
            deltas = deltas.reshape(len(deltas), self.num_classes, 4)
            named = self._box_losses(logits, deltas, samples, self.stds[stage])
            named["masks"] = self._mask_loss(maps, samples, targets, stage)
            for name, loss in named.items():
                losses[f"{name}{stage + 1}" if len(self.stds) > 1 else name] = self.stage_weights[stage] * loss
            if stage + 1 < len(self.stds):
                proposals = self._refine(logits, deltas, samples, pictures, self.stds[stage])
        return losses

    def proposal_losses(self, raw: Sequence[Tensor], targets: Sequence[Objects]) -> dict[str, Tensor]:
        """Cross-entropy of the objectness and L1 of the deltas of 256 anchors a picture, half of them positive at most.

        Positive from an overlap of 0.7 on, background below 0.3; an object keeps its best anchors from 0.3 on. Both
        losses are over the positives and negatives drawn, of each at least one a picture. Anchors in the padding that a
        picture owes to larger ones of its batch are not learnt from.
        """
        n = len(STRIDES)
        anchors = torch.cat(self.anchors(raw))
        logits = torch.cat([per_anchor(one, 1)[..., 0] for one in raw[n : 2 * n]], dim=1).float()
        deltas = torch.cat([per_anchor(one, 4) for one in raw[2 * n :]], dim=1).float()
        objectness = moves = logits.new_zeros(())
        sizes = [one.shape[-2:] for one in raw[:n]]
        positives, negatives = [], []
        for i, target in enumerate(targets):
            learnt = self._learnt_anchors(anchors, sizes, target)
            matched = assign(anchors, target["boxes"], 0.7, 0.3, rescue=0.3, among=learnt)
            positive, negative = draw(matched, 256, 0.5)
            here = torch.cat([positive, negative])
            wanted = (torch.arange(len(here), device=here.device) < len(positive)).float()
            objectness = objectness + F.binary_cross_entropy_with_logits(logits[i, here], wanted, reduction="sum")
            move = encode_deltas(anchors[positive], target["boxes"][matched[positive]])
            moves = moves + F.smooth_l1_loss(deltas[i, positive], move, reduction="sum", beta=self.proposal_beta)
            positives.append(len(positive))
            negatives.append(len(negative))
        count = at_least_one_each(positives) + at_least_one_each(negatives)
        return {"objectness": objectness / count, "proposals": moves / count}

    def _learnt_anchors(self, anchors: Tensor, sizes: Sequence[Sequence[int]], target: Objects) -> Tensor:
        """``N``, bool; without anchors outside a picture too small to hold one learns from those of its cells."""
        height, width = target["size"].tolist()
        own = in_own_cells(sizes, STRIDES, len(RATIOS), padded_size((height, width)), anchors.device)
        if self.anchors_outside:
            return own
        edges = anchors.new_tensor([width, height])
        inside = own & ((anchors[:, :2] >= 0) & (anchors[:, 2:] < edges)).all(dim=1)
        return inside if inside.any() else own

    @torch.no_grad()
    def draw_samples(self, proposals: Tensor, target: Objects, stage: int) -> Samples:
        """Some of a picture's proposals and true boxes, a quarter of them positive at most; positive ones first."""
        threshold, given = self.positive_from[stage], len(target["boxes"])
        # Each true box is its own object's; the proposals are assigned without them, or no object would keep its best.
        matched = assign(proposals, target["boxes"], threshold, threshold, self.rescue)
        matched = torch.cat([torch.arange(given, device=matched.device), matched])
        boxes = torch.cat([target["boxes"], proposals])
        if not len(boxes):  # a head must see something, or its weights would have no gradient
            height, width = target["size"].tolist()
            boxes, matched = proposals.new_tensor([[0.0, 0.0, width, height]]), matched.new_tensor([BACKGROUND])
        positive, negative = draw(matched, self.samples, 0.25)
        taken = torch.cat([positive, negative])
        labels = torch.full_like(taken, self.num_classes)
        labels[: len(positive)] = target["labels"][matched[positive]]
        return Samples(boxes[taken], labels, target["boxes"][matched[positive]], matched[positive], taken < given)

    def _features(self, maps: Sequence[Tensor], picture: int, boxes: Tensor, side: int) -> Tensor:
        return self.roi_features([level[picture : picture + 1] for level in maps], boxes, side)

    def _box_losses(self, logits: Tensor, deltas: Tensor, samples: Sequence[Samples], stds: Stds) -> dict[str, Tensor]:
        labels = torch.cat([sample.labels for sample in samples])
        boxes = torch.cat([sample.boxes for sample in samples])
        positive = (labels < self.num_classes).nonzero()[:, 0]
        own = deltas[positive, labels[positive]].float()
        objects = torch.cat([sample.objects for sample in samples])
        return {
            "classes": F.cross_entropy(logits.float(), labels),
            "boxes": self.box_loss(boxes[positive], own, objects, stds) / len(labels),
        }

    def box_loss(self, boxes: Tensor, deltas: Tensor, objects: Tensor, stds: Stds) -> Tensor:
        """Sum of the L1 distances of ``R × 4`` deltas from those that make ``objects`` of ``boxes``."""
        return (deltas - encode_deltas(boxes, objects, stds)).abs().sum()

    def _mask_loss(
        self, maps: Sequence[Tensor], samples: Sequence[Samples], targets: Sequence[Objects], stage: int
    ) -> Tensor:
        """Binary cross-entropy of the true class's mask, over all pixels of all positive boxes."""
        features, labels, wanted = [], [], []
        for i, (sample, target) in enumerate(zip(samples, targets, strict=True)):
            count = len(sample.objects)
            if count and "masks" not in target:
                raise MetamixerError("this head learns masks, and the pictures come with boxes alone")
            boxes = sample.boxes[:count]
            features.append(self._features(maps, i, boxes, MASK_SIDE))
            labels.append(sample.labels[:count])
            if count:
                wanted.append(mask_targets(target["masks"], boxes, sample.matched))
        logits = self.mask_heads[stage](torch.cat(features)).float()
        if not wanted:
            return 0 * logits.sum()  # every weight has a gradient, if a zero one
        label = torch.cat(labels)
        own = logits[torch.arange(len(label), device=label.device), label]
        return F.binary_cross_entropy_with_logits(own, torch.cat(wanted))

    @torch.no_grad()
    def _refine(
        self,
        logits: Tensor,
        deltas: Tensor,
        samples: Sequence[Samples],
        pictures: Sequence[Size],
        stds: Stds,
    ) -> list[Tensor]:
        """The next stage's proposals: the samples moved by the deltas of their class, true boxes left out.

        As in mmdetection a box stays even where clipping leaves it no area: it is background to the next stage.
        """
        proposals = []
        counts = [len(sample.boxes) for sample in samples]
        for sample, size, words, moves in zip(
            samples, pictures, logits.split(counts), deltas.split(counts), strict=True
        ):
            background = sample.labels == self.num_classes
            labels = torch.where(background, words[:, :-1].argmax(1), sample.labels)
            own = moves[torch.arange(len(labels), device=labels.device), labels].float()
            proposals.append(decode_deltas(sample.boxes, own, size, stds)[~sample.given])
        return proposals

    @staticmethod
    def roi_features(maps: Sequence[Tensor], boxes: Tensor, side: int) -> Tensor:
        """``R × in × side × side`` from the level that suits each box's area; maps of one picture, ``1 × in × …``."""
        level = roi_levels(boxes)
        features = boxes.new_zeros(len(boxes), maps[0].shape[1], side, side)
        for i, stride in enumerate(ROI_STRIDES):
            here = (level == i).nonzero()[:, 0]
            if len(here):
                features[here] = roi_align(
                    maps[i].to(boxes), [boxes[here]], side, 1 / stride, sampling_ratio=-1, aligned=True
                )
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
    def postprocess(
        self,
        raw: Sequence[Tensor],
        sizes: Sequence[Size],
        padded: Size | None = None,
        originals: Sequence[Size] | None = None,
    ) -> list[Detections]:
        check_sizes(raw[0], sizes)
        results = []
        for i, (size, (proposals, _)) in enumerate(zip(sizes, self.propose(raw, sizes), strict=True)):
            maps = [level[i : i + 1] for level in raw[: len(ROI_STRIDES)]]
            boxes, scores, labels = self.detect(self.box_stages(maps, proposals, size), size)
            logits = self.mask_logits(maps, boxes)
            own = own_masks(logits, labels)
            if originals is not None:  # masks gain by being drawn at their final size
                boxes, size = rescaled(boxes, size, originals[i]), originals[i]
            results.append(Detections(boxes, scores, labels, paste_masks(own, boxes, size)))
        return results


def roi_levels(boxes: Tensor) -> Tensor:
    """``R``: the places in ROI_STRIDES of the maps that the heads see ``R × 4`` boxes on (arXiv 1612.03144, eq. 1)."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return (area.sqrt() / 56 + 1e-6).log2().floor().clamp(0, len(ROI_STRIDES) - 1)


def own_masks(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """``R × 28 × 28`` probabilities of each object's own class, averaged over the stages."""
    each = torch.arange(len(labels), device=labels.device)
    return torch.stack([stage[each, labels].sigmoid() for stage in logits]).mean(0)


@torch.no_grad()
def mask_targets(masks: Tensor, boxes: Tensor, matched: Tensor) -> Tensor:
    """``P × 28 × 28``, 0 or 1: what ``P × 4`` boxes cut out of the true masks (``N × H × W``) of their objects."""
    rois = torch.cat([matched[:, None].to(boxes), boxes], dim=1)
    cut = roi_align(masks[:, None].to(boxes), rois, 2 * MASK_SIDE, 1.0, sampling_ratio=-1, aligned=True)
    return (cut[:, 0] >= 0.5).to(boxes)


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
