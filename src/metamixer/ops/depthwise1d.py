"""Depthwise convolution of short series as a matrix product.

A kernel that is about as long as the series it slides over is a dense matrix in disguise: every output reads nearly
every input. As one product per channel it runs at the speed of matrix multiplication, where convolution routines treat
a depthwise kernel as thousands of tiny loops.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# The product spends length / kernel times the multiplications of the convolution, and length² numbers per channel.
# On short series it wins all the same.
LARGEST_RATIO = 4
SHORT = 128


def depthwise_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Every channel convolved with its own kernel, zero-padded to keep the length.

    Args:
        x: ``C × B × N``, channels first: C products of ``B × N`` by ``N × N``.
        weight: ``C × 1 × K`` with odd K, as ``torch.nn.Conv1d(groups=C)`` holds it.
        bias: ``C``.

    Returns ``C × B × N``: a matrix product where ``N ≤ 128`` or ``N ≤ 4 K``, else a convolution; both are equal up to
    rounding. Raises ValueError for an even K.
    """
    if weight.shape[-1] % 2 == 0:
        raise ValueError(f"a depthwise kernel must have an odd length, got {weight.shape[-1]}")
    if not pays_as_matrix(x.shape[-1], weight.shape[-1]):
        return F.conv1d(x.transpose(0, 1), weight, bias, padding="same", groups=len(weight)).transpose(0, 1)
    matrices = toeplitz(weight[:, 0], x.shape[-1]).mT
    out = torch.bmm(x, matrices)  # baddbmm would write the bias first and read it again
    return out if bias is None else out.add_(bias[:, None, None])


def pays_as_matrix(length: int, kernel_size: int) -> bool:
    """Is the product with a matrix faster than the convolution?"""
    return length <= max(SHORT, LARGEST_RATIO * kernel_size)


def toeplitz(kernels: Tensor, length: int) -> Tensor:
    """``C × K`` kernels as ``C × length × length`` matrices, ``y[o] = sum_i matrix[o, i] x[i]``.

    Row o is the kernel moved o places to the right, cut at the ends: ``matrix[o, i] = kernel[i - o + K // 2]``.
    """
    margin = length - 1 - kernels.shape[-1] // 2  # negative: the kernel's ends never meet the series
    return F.pad(kernels, (margin, margin)).unfold(-1, length, 1).flip(-2)
