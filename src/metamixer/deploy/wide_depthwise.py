"""Depthwise convolutions with wide kernels, for runtimes that compute with XNNPACK.

XNNPACK has kernels for up to 25 taps. With more, a depthwise convolution falls back to something ten times as slow a
tap: 2.2 ms against 0.2 ms for 7×7 and 5×5 on 320 channels of 16×16 (LiteRT 2.3, one thread).
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

_TAPS = 25
_ROWS = 3


class RowTriples(nn.Module):
    """A depthwise convolution as a sum of ones with three rows each: the middle one and those ``d`` above and below.

    The same function up to the order of sums. All parts see the same positions, so nothing is padded or cut besides.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        reach, across = conv.kernel_size[0] // 2, conv.kernel_size[1]
        self.parts = nn.ModuleList()
        for d in range(1, reach + 1):
            part = nn.Conv2d(
                conv.in_channels,
                conv.out_channels,
                (_ROWS, across),
                (conv.stride[0], conv.stride[1]),
                (d, int(conv.padding[1])),
                (d, 1),
                conv.groups,
                bias=d == 1 and conv.bias is not None,
            ).to(conv.weight)
            with torch.no_grad():
                part.weight.copy_(conv.weight[:, :, [reach - d, reach, reach + d]])
                if d > 1:
                    part.weight[:, :, 1] = 0  # the middle row counts once
                if part.bias is not None and conv.bias is not None:
                    part.bias.copy_(conv.bias)
            self.parts.append(part)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.parts[0](x)
        for part in self.parts[1:]:
            y = y + part(x)
        return y


def split_wide_depthwise(model: nn.Module) -> nn.Module:
    """A copy of the model whose depthwise convolutions have at most 25 taps each, where rows can be told apart so."""
    model = deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d) and name and _splits(module):
            model.set_submodule(name, RowTriples(module))
    return model


def _splits(conv: nn.Conv2d) -> bool:
    down, across = conv.kernel_size
    return (
        conv.groups == conv.in_channels > 1
        and down * across > _TAPS >= _ROWS * across
        and down % 2 == 1
        and conv.padding[0] == down // 2
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
    )
