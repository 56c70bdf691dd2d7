"""Counting multiply-accumulates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metamixer.bench import count_macs
from metamixer.ops import irdft2, rdft2


def test_macs_of_layers_known_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    assert count_macs(model.train(), 16) == 8 * 8 * 8 * 3 * 9 + 8 * 5
    assert model.training


class ThereAndBack(nn.Module):
    """A Fourier transform and its inverse; the weight only tells the device."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return irdft2(rdft2(x), x.shape[-1]) * self.weight


@pytest.mark.parametrize("size", [16, 128])  # the larger one runs as an FFT on a CPU, and is counted as matrix products
def test_macs_count_the_transforms(size):
    half = size // 2 + 1
    one_way = size * size * 2 * half + 2 * size * 2 * size * half
    assert count_macs(ThereAndBack(), size) == 3 * 2 * one_way
