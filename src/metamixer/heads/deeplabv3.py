"""DeepLabv3 (arXiv 1706.05587), as AFFNet segments with it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metamixer.heads.base import AuxiliaryHead, SegmentationModel, last_levels, normal_init, resize
from metamixer.mixers.conv_norm import ConvNorm

RATES = (6, 12, 18)


class DeepLabV3Head(nn.Module):
    """Atrous spatial pyramid pooling and a classifier: ``B × in × H × W`` to ``B × classes × H × W``."""

    def __init__(self, in_channels: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([ConvNorm(in_channels, channels, act=nn.SiLU())])
        for rate in RATES:
            self.branches.append(ConvNorm(in_channels, channels, 3, dilation=rate, act=nn.SiLU()))
        self.branches.append(ConvNorm(in_channels, channels, act=nn.SiLU()))  # of the whole map's mean
        self.project = ConvNorm(len(self.branches) * channels, channels, act=nn.SiLU())
        self.drop = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        normal_init([self.classifier])

    def forward(self, x: Tensor) -> Tensor:
        *local, pooled = self.branches
        branches = [branch(x) for branch in local]
        branches.append(resize(pooled(x.mean((2, 3), keepdim=True)), x.shape[-2:]))
        return self.classifier(self.drop(self.project(torch.cat(branches, dim=1))))


class DilatedSegmentation(SegmentationModel):
    """A head on the last map of a backbone that stops shrinking early; DeepLabv3 and PSPNet are such.

    Raw outputs: logits at ``output_stride``; the same resized by it (corners aligned), the released network's output;
    with ``auxiliary`` those of the auxiliary head.

    Args:
        output_stride: stride of the last map.
        auxiliary: a second classifier on the map before the last, for training.
        channels: width of the head; that of its paper by default.

    Further arguments are those of :class:`~metamixer.heads.base.SegmentationModel`.
    """

    align_corners = True
    default_average = "weights"
    learnt = 1  # CVNets resizes what is enlarged already, where the picture's sides are no multiples of the stride
    classifiers = ("head.classifier", "aux_head.classifier")
    optional = ("aux_head.",)
    default_channels: ClassVar[int]

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        output_stride: int = 16,
        auxiliary: bool = False,
        channels: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, num_classes, **kwargs)
        self.output_stride = output_stride
        places, (before, last) = last_levels(backbone, 2)
        self.places = places if auxiliary else places[-1:]
        self.head = self.make_head(last, channels or self.default_channels)
        if auxiliary:
            self.aux_head = AuxiliaryHead(before, max(before // 4, 128), num_classes, nn.SiLU())

    def make_head(self, in_channels: int, channels: int) -> nn.Module:
        raise NotImplementedError

    def forward_raw(self, x: Tensor) -> tuple[Tensor, ...]:
        before, last = self.maps(x)[-2:]
        logits = self.head(last)
        height, width = logits.shape[-2:]
        enlarged = resize(logits, (height * self.output_stride, width * self.output_stride), self.align_corners)
        return (logits, enlarged) if self.aux_head is None else (logits, enlarged, self.aux_head(before))


class DeepLabV3(DilatedSegmentation):
    __doc__ = DilatedSegmentation.__doc__

    default_channels = 256

    def make_head(self, in_channels: int, channels: int) -> nn.Module:
        return DeepLabV3Head(in_channels, channels, self.num_classes)
