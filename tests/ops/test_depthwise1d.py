"""The matrix product equals the convolution that it stands for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from metamixer.ops import depthwise1d
from metamixer.ops.depthwise1d import depthwise_conv1d, toeplitz


@pytest.mark.parametrize("product", [True, False])
@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 4), batch=st.integers(1, 3), length=st.integers(1, 30), half=st.integers(0, 20),
    with_bias=st.booleans(),
)  # fmt: skip
def test_equals_conv1d_with_gradients(product, channels, batch, length, half, with_bias):
    x = torch.randn(channels, batch, length, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(channels, 1, 2 * half + 1, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(channels, dtype=torch.float64, requires_grad=True) if with_bias else None
    inputs = [t for t in (x, weight, bias) if t is not None]
    expected = F.conv1d(x.transpose(0, 1), weight, bias, padding=half, groups=channels).transpose(0, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(depthwise1d, "SHORT", 1000 if product else 0)
        patch.setattr(depthwise1d, "LARGEST_RATIO", 0)
        found = depthwise_conv1d(x, weight, bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    cotangent = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(found, inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_rows_are_the_kernel_moved_along():
    matrix = toeplitz(torch.tensor([[1.0, 2.0, 3.0]]), 4)[0]
    assert matrix.tolist() == [[2, 3, 0, 0], [1, 2, 3, 0], [0, 1, 2, 3], [0, 0, 1, 2]]
    assert toeplitz(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]), 2)[0].tolist() == [[3, 4], [2, 3]]


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match="odd length, got 4"):
        depthwise_conv1d(torch.zeros(1, 1, 8), torch.zeros(1, 1, 4))
