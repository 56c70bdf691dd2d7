"""Wide depthwise kernels in parts that XNNPACK has kernels for: the same function."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metamixer.deploy.wide_depthwise import RowTriples, split_wide_depthwise


@pytest.mark.parametrize(
    ("kernel", "stride", "out", "bias"), [(7, 1, 6, True), (7, 2, 12, False), ((7, 5), (2, 1), 6, True)]
)
def test_parts_sum_up_to_the_convolution(kernel, stride, out, bias):
    torch.manual_seed(0)
    across = kernel if isinstance(kernel, int) else kernel[1]
    conv = nn.Conv2d(6, out, kernel, stride, (3, across // 2), groups=6, bias=bias).double()
    model = nn.Sequential(nn.Identity(), conv)
    split = split_wide_depthwise(model)
    assert isinstance(split[1], RowTriples)
    assert all(part.kernel_size[0] * part.kernel_size[1] <= 25 for part in split[1].parts)
    assert model[1] is conv
    for height, width in ((16, 16), (9, 14), (3, 2)):
        x = torch.randn(2, 6, height, width, dtype=torch.float64)
        torch.testing.assert_close(split(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 5, padding=2, groups=4),  # 25 taps
        nn.Conv2d(4, 4, 9, padding=4, groups=4),  # three rows are too many taps
        nn.Conv2d(4, 4, 7, padding=3),  # every channel reads all
        nn.Conv2d(4, 4, 7, groups=4),  # positions differ
        nn.Conv2d(4, 4, 7, padding=3, groups=4, padding_mode="reflect"),
        nn.Conv2d(4, 4, 7, padding=6, dilation=2, groups=4),
    ],
)
def test_others_stay(conv):
    split = split_wide_depthwise(nn.Sequential(conv))
    assert type(split[0]) is nn.Conv2d
