"""Batch norms behind a linear map without a pass over what the map puts out.

Mean and mean square of ``x @ matrix`` follow from the first and second moments of ``x``. A sum of linear maps, each
with its own norm, is then one linear map in training too, as it is after merging.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Moments:
    """Of ``C × samples × N``: mean ``C × N`` and mean products ``C × N × N`` over the samples, ``count`` many."""

    first: Tensor
    second: Tensor
    count: int

    @classmethod
    def of(cls, x: Tensor) -> Moments:
        return cls(x.mean(1), torch.bmm(x.mT, x) / x.shape[1], x.shape[1])

    def through(self, matrix: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and mean square, per channel, of ``x @ matrix + shift``: for ``C × N × M`` and ``C`` two times ``C``."""
        mean = (self.first[:, None] @ matrix)[:, 0].mean(1)
        square = ((self.second @ matrix) * matrix).sum((1, 2)) / matrix.shape[2]
        if shift is None:
            return mean, square
        return mean + shift, square + 2 * shift * mean + shift**2


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
        scale, offset = batch_affine(norm, *moments.through(own), moments.count * own.shape[2])
        matrix, shift = matrix + scale[:, None, None] * own, shift + offset
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
