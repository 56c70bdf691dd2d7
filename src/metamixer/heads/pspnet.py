"""PSPNet (arXiv 1612.01105), as AFFNet segments with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.heads.base import normal_init, resize
from metamixer.heads.deeplabv3 import DilatedSegmentation
from metamixer.mixers.conv_norm import ConvNorm

POOLED = (1, 2, 3, 6)


class PSPHead(nn.Module):
    """Pyramid pooling and a classifier: ``B × in × H × W`` to ``B × classes × H × W``."""

    def __init__(self, in_channels: int, channels: int, num_classes: int) -> None:
        super().__init__()
        width = max(in_channels // len(POOLED) // 16, 1) * 16
        self.branches = nn.ModuleList(ConvNorm(in_channels, width, act=nn.SiLU()) for _ in POOLED)
        self.project = ConvNorm(in_channels + len(POOLED) * width, channels, 3, act=nn.SiLU())
        self.drop = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        normal_init([self.classifier])

    def forward(self, x: Tensor) -> Tensor:
        scales = [x]
        for side, branch in zip(POOLED, self.branches, strict=True):
            scales.append(resize(branch(F.adaptive_avg_pool2d(x, side)), x.shape[-2:], align_corners=True))
        return self.classifier(self.drop(self.project(torch.cat(scales, dim=1))))


class PSPNet(DilatedSegmentation):
    __doc__ = DilatedSegmentation.__doc__

    default_channels = 512

    def make_head(self, in_channels: int, channels: int) -> nn.Module:
        return PSPHead(in_channels, channels, self.num_classes)
