"""Feature pyramid (arXiv 1612.03144) as mmdetection builds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F


class FeaturePyramid(nn.Module):
    """Maps of a backbone, fine to coarse, to as many or more of one width.

    1×1 laterals, the coarser map added to the finer one by nearest neighbour, 3×3 convolutions; all with bias, without
    norm or activation.

    Args:
        in_channels: channels of the maps.
        channels: width of the results.
        levels: number of results.
        extra: where coarser levels come from: ``"pool"`` takes every other pixel of the last result, ``"conv"`` a
            3×3 convolution of stride 2 on the last map of the backbone, then on its own results.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int, levels: int, extra: Literal["pool", "conv"] = "pool"
    ) -> None:
        super().__init__()
        self.added = levels - len(in_channels)
        self.extra = extra
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.outputs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        if extra == "conv":
            for i in range(self.added):
                width = channels if i else in_channels[-1]
                self.outputs.append(nn.Conv2d(width, channels, 3, stride=2, padding=1))
        for layer in [*self.laterals, *self.outputs]:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        merged = [lateral(one) for lateral, one in zip(self.laterals, maps, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[-2:], mode="nearest")
        results = [self.outputs[i](one) for i, one in enumerate(merged)]
        for i in range(self.added):
            if self.extra == "pool":
                results.append(F.max_pool2d(results[-1], 1, stride=2))  # every runtime knows it, unlike strided slices
            else:
                results.append(self.outputs[len(merged) + i](results[-1] if i else maps[-1]))
        return results
