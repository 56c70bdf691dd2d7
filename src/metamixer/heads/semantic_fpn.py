"""Semantic FPN (arXiv 1901.02446), as CAS-ViT segments with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from metamixer.heads.base import SegmentationModel, levels_at, normal_init, resize
from metamixer.heads.fpn import FeaturePyramid
from metamixer.mixers.conv_norm import ConvNorm

STRIDES = (4, 8, 16, 32)


class SemanticFPNHead(nn.Module):
    """Each level convolved and doubled in size until it has the finest one's stride; the sum is classified.

    Four maps ``B × in × H/s × W/s`` at strides 4 … 32 to ``B × classes × H/4 × W/4``.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for stride in STRIDES:
            doublings = int(math.log2(stride // STRIDES[0]))
            layers: list[nn.Module] = []
            for i in range(max(1, doublings)):
                layers.append(ConvNorm(channels if i else in_channels, channels, 3, act=nn.ReLU()))
                if doublings:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.levels.append(nn.Sequential(*layers))
        self.drop = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        normal_init([self.classifier])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = self.levels[0](maps[0])
        for level, one in zip(list(self.levels)[1:], maps[1:], strict=True):
            x = x + resize(level(one), x.shape[-2:])
        return self.classifier(self.drop(x))


class SemanticFPN(SegmentationModel):
    """Feature pyramid and its head. Raw outputs: logits at stride 4.

    Args:
        channels: width of the pyramid.
        head_channels: width of the head.

    Further arguments are those of :class:`~metamixer.heads.base.SegmentationModel`.
    """

    classifiers = ("head.classifier",)

    def __init__(
        self, backbone: nn.Module, num_classes: int, channels: int = 256, head_channels: int = 128, **kwargs: Any
    ) -> None:
        super().__init__(backbone, num_classes, **kwargs)
        self.places, widths = levels_at(backbone, STRIDES)
        self.neck = FeaturePyramid(widths, channels, len(widths))
        self.head = SemanticFPNHead(channels, head_channels, num_classes)

    def forward_raw(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.maps(x)
        return (self.head(self.neck([maps[i] for i in self.places])),)
