"""FFNet_seg: the segmentation network of the MetaMixer paper (arXiv 2406.02021), with a backbone of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models import FeatureInfo
from torch import Tensor, nn

from metamixer.backbones.base import ScaledResidual, Stage, drop_path_rates
from metamixer.heads.base import SegmentationModel, levels_at, normal_init, resize
from metamixer.mixers.conv_norm import ConvNorm, ParallelDepthwise
from metamixer.mixers.framework import MetaMixer

STRIDES = (8, 16, 32)


def four_branches(dim: int, kernel: int) -> ParallelDepthwise:
    """Depthwise k×k, (k−4)×(k−4), 1×k and k×1, each with its norm; for 3×3 the second is left out."""
    smaller = (kernel - 4,) if kernel > 3 else ()
    return ParallelDepthwise(dim, (kernel, *smaller, (1, kernel), (kernel, 1)))


def token_mixer(dim: int, kernel: int) -> MetaMixer:
    """FFNified attention whose key and value are four-branch kernels."""
    return MetaMixer(
        query=ConvNorm(dim, dim),
        interact=four_branches(dim, kernel),
        activate=nn.GELU(),
        aggregate=four_branches(dim, kernel),
    )


def channel_mixer(dim: int, query: nn.Module, expansion: float) -> MetaMixer:
    """A depthwise convolution, then an FFN."""
    hidden = int(dim * expansion)
    return MetaMixer(
        query=query, interact=nn.Conv2d(dim, hidden, 1), activate=nn.GELU(), aggregate=nn.Conv2d(hidden, dim, 1)
    )


class FFNetSegBlock(nn.Sequential):
    """The backbone's block: both mixers with residual and layer scale."""

    def __init__(self, dim: int, kernel: int, drop_path: float) -> None:
        super().__init__()
        query = ConvNorm(dim, dim, 3, groups=dim)
        self.token_mixer = ScaledResidual(token_mixer(dim, kernel), dim, 1e-5, drop_path)
        self.channel_mixer = ScaledResidual(channel_mixer(dim, query, 4.0), dim, 1e-5, drop_path)


class FFNetSegBackbone(nn.Module):
    """Four stages, of which the last three give their maps: ``B × 3 × H × W`` to strides 8, 16 and 32.

    Args:
        depths, dims, kernels: blocks, channels and depthwise kernels of the stages.
        drop_path_rate: stochastic depth at the last block, rising linearly from 0.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (3, 4, 18, 5),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        kernels: tuple[int, ...] = (3, 3, 9, 9),
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNorm(3, 64, 3, stride=2, act=nn.GELU()),
            ConvNorm(64, 64, 3, act=nn.GELU()),
            ConvNorm(64, dims[0], 3),
            ConvNorm(dims[0], dims[0], 3, stride=2),
        )
        rates = drop_path_rates(drop_path_rate, depths)
        self.stages = nn.ModuleList()
        for i, (depth, dim, kernel) in enumerate(zip(depths, dims, kernels, strict=True)):
            downsample: nn.Module = nn.Identity()
            if i:
                downsample = nn.Sequential(
                    ConvNorm(dims[i - 1], 2 * dim, 3, stride=2, act=nn.GELU()), ConvNorm(2 * dim, dim)
                )
            self.stages.append(Stage(downsample, [FFNetSegBlock(dim, kernel, rates[i][j]) for j in range(depth)]))
        maps = [{"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)]
        self.feature_info = FeatureInfo(maps, out_indices=tuple(range(1, len(dims))))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[1:]


class FFNetSegHead(nn.Module):
    """Three maps brought to stride 8, squeezed, mixed by FFNet blocks and classified.

    Maps at strides 8, 16 and 32 to ``B × classes × H/8 × W/8``. The blocks have no layer scale, and a GELU after every
    residual sum.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, channels: int, depth: int, kernel: int, expansion: float
    ) -> None:
        super().__init__()
        total, last = sum(in_channels), 4 * channels
        self.squeeze = nn.Sequential(ConvNorm(total, total, act=nn.GELU()), ConvNorm(total, channels))
        self.blocks = nn.Sequential()
        for _ in range(depth):
            query = four_branches(channels, kernel)
            self.blocks.append(
                nn.Sequential(
                    ScaledResidual(token_mixer(channels, kernel), channels),
                    nn.GELU(),
                    ScaledResidual(channel_mixer(channels, query, expansion), channels),
                    nn.GELU(),
                )
            )
        self.expand = ConvNorm(channels, last, act=nn.GELU())
        self.drop = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(last, num_classes, 1)
        normal_init([self.classifier])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        size = maps[0].shape[-2:]
        x = torch.cat([maps[0], *(resize(one, size, mode="bicubic") for one in maps[1:])], dim=1)
        return self.classifier(self.drop(self.expand(self.blocks(self.squeeze(x)))))


class FFNetSeg(SegmentationModel):
    """Raw outputs: logits at stride 8. The defaults are the ADE20K network's; Cityscapes' has depth 5, expansion 1.

    Args:
        channels, depth, kernel, expansion: of the head's blocks.

    Further arguments are those of :class:`~metamixer.heads.base.SegmentationModel`.
    """

    classifiers = ("head.classifier",)

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        channels: int = 256,
        depth: int = 3,
        kernel: int = 9,
        expansion: float = 4.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, num_classes, **kwargs)
        self.places, widths = levels_at(backbone, STRIDES)
        self.head = FFNetSegHead(widths, num_classes, channels, depth, kernel, expansion)

    def forward_raw(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.maps(x)
        return (self.head([maps[i] for i in self.places]),)
