"""Batch norms behind a linear map without a pass over what the map puts out.

Mean and mean square of ``x @ matrix`` follow from the first and second moments of ``x``. A sum of linear maps, each
with its own norm, is then one linear map in training too, as it is after merging.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Moments:
    """Of ``C × samples × N``: mean ``C × N`` and mean products ``C × N × N`` over the samples, ``count`` many."""

    first: Tensor
    second: Tensor
    count: int

    @classmethod
    def of(cls, x: Tensor) -> Moments:
        first, second = _MeanAndProducts.apply(x)
        return cls(first, second, x.shape[1])

    def through(self, matrix: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and mean square, per channel, of ``x @ matrix + shift``: for ``C × N × M`` and ``C`` two times ``C``.

        Where x has but one channel, every matrix is applied to it.
        """
        mean = (self.first[:, None] @ matrix)[:, 0].mean(1)
        square = ((self.second @ matrix) * matrix).sum((1, 2)) / matrix.shape[2]
        if shift is None:
            return mean, square
        return mean + shift, square + 2 * shift * mean + shift**2


class _MeanAndProducts(torch.autograd.Function):
    """Both moments; in the backward pass one product, where autograd would make two and add them up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        return x.mean(1), torch.bmm(x.mT, x) / x.shape[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.baddbmm(first[:, None] / x.shape[1], x, (second + second.mT) / x.shape[1])


def batch_affine(norm: nn.BatchNorm1d, mean: Tensor, square: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Factor and shift that a batch norm in training applies to its channels; its running statistics move on.

    Args:
        norm: with running statistics and a fixed momentum.
        mean, square: mean and mean square of each channel over the batch.
        count: numbers in each channel.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    variance = (square - mean**2).clamp_min(0)
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * count / max(1, count - 1), norm.momentum)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return scale, norm.bias - mean * scale


def merged_norm(
    moments: Moments, matrix: Tensor, norm: nn.BatchNorm1d, shift: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Matrix and shift of ``norm(x @ matrix + shift)`` in training mode, from the moments of x.

    Args:
        moments: of ``C × samples × N``, or of one channel that all matrices read.
        matrix, shift: ``C × N × M`` and ``C``.
        norm: of C channels; its running statistics move on.
    """
    scale, offset = batch_affine(norm, *moments.through(matrix, shift), moments.count * matrix.shape[2])
    return matrix * scale[:, None, None], offset if shift is None else shift * scale + offset


def merged_norms(
    x: Tensor, matrices: Sequence[Tensor], norms: Sequence[nn.BatchNorm1d], outer: nn.BatchNorm1d
) -> tuple[Tensor, Tensor]:
    """One matrix and shift for a sum of linear maps, each behind its own batch norm, with another norm behind the sum.

    Args:
        x: ``C × samples × N``.
        matrices: ``C × N × M`` each.
        norms: of C channels, one for each matrix.
        outer: of D channels, where C is a multiple of D and its channels are ordered (group, D).

    Returns ``C × N × M`` and ``C``, to be applied as ``x @ matrix + shift``: equal to the norms in training mode up to
    rounding, gradients included; all running statistics move on.
    """
    moments = Moments.of(x)
    matrix: Tensor | float = 0.0
    shift: Tensor | float = 0.0
    for own, norm in zip(matrices, norms, strict=True):
        own, offset = merged_norm(moments, own, norm)
        matrix, shift = matrix + own, shift + offset
    assert isinstance(matrix, Tensor)
    assert isinstance(shift, Tensor)
    channels = outer.num_features
    groups = len(shift) // channels
    mean, square = (values.view(groups, channels).mean(0) for values in moments.through(matrix, shift))
    scale, offset = (
        values.repeat(groups)
        for values in batch_affine(outer, mean, square, moments.count * matrix.shape[2] * groups)
    )  # fmt: skip
    return matrix * scale[:, None, None], shift * scale + offset
