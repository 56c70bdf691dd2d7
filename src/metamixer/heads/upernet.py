"""UPerNet (arXiv 1807.10221), as FFNet segments with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.heads.base import AuxiliaryHead, SegmentationModel, levels_at, normal_init, resize
from metamixer.mixers.conv_norm import ConvNorm

STRIDES = (4, 8, 16, 32)
POOLED = (1, 2, 3, 6)


class UPerHead(nn.Module):
    """Pyramid pooling on the coarsest map, a top-down pyramid, and all levels classified together.

    Four maps at strides 4 … 32 to ``B × classes × H/4 × W/4``.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, num_classes: int) -> None:
        super().__init__()
        self.pooled = nn.ModuleList(ConvNorm(in_channels[-1], channels, act=nn.ReLU()) for _ in POOLED)
        self.bottleneck = ConvNorm(in_channels[-1] + len(POOLED) * channels, channels, 3, act=nn.ReLU())
        self.laterals = nn.ModuleList(ConvNorm(width, channels, act=nn.ReLU()) for width in in_channels[:-1])
        self.outputs = nn.ModuleList(ConvNorm(channels, channels, 3, act=nn.ReLU()) for _ in in_channels[:-1])
        self.merge_levels = ConvNorm(len(in_channels) * channels, channels, 3, act=nn.ReLU())
        self.drop = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        normal_init([self.classifier])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        top = maps[-1]
        scales = [top]
        for side, conv in zip(POOLED, self.pooled, strict=True):
            scales.append(resize(conv(F.adaptive_avg_pool2d(top, side)), top.shape[-2:]))
        merged = [lateral(one) for lateral, one in zip(self.laterals, maps[:-1], strict=True)]
        merged.append(self.bottleneck(torch.cat(scales, dim=1)))
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + resize(merged[i], merged[i - 1].shape[-2:])
        results = [output(one) for output, one in zip(self.outputs, merged[:-1], strict=True)] + merged[-1:]
        size = results[0].shape[-2:]
        x = self.merge_levels(torch.cat([results[0], *(resize(one, size) for one in results[1:])], dim=1))
        return self.classifier(self.drop(x))


class UPerNet(SegmentationModel):
    """Raw outputs: logits at stride 4 and, with ``auxiliary``, those of the auxiliary head at stride 16.

    Args:
        channels: width of the head.
        auxiliary: a second classifier on the map at stride 16, for training.

    Further arguments are those of :class:`~metamixer.heads.base.SegmentationModel`.
    """

    classifiers = ("head.classifier", "aux_head.classifier")
    optional = ("aux_head.",)

    def __init__(
        self, backbone: nn.Module, num_classes: int, channels: int = 512, auxiliary: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(backbone, num_classes, **kwargs)
        self.places, widths = levels_at(backbone, STRIDES)
        self.head = UPerHead(widths, channels, num_classes)
        self.aux_head = AuxiliaryHead(widths[2], 256, num_classes, nn.ReLU()) if auxiliary else None

    def forward_raw(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.maps(x)
        taken = [maps[i] for i in self.places]
        logits = self.head(taken)
        return (logits,) if self.aux_head is None else (logits, self.aux_head(taken[2]))
