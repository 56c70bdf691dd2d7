"""Submanifold sparse convolution (arXiv 1711.10275) over the active sites of 3-D grids, in plain PyTorch.

A site is active where a point lies; the convolution reads and writes active sites only, so a cloud keeps its sites
through every layer. For each offset of the kernel, all pairs of sites that far apart are found once
(:meth:`SparseSites.pairs`) and shared by all layers on these sites; a layer gathers the features of the pairs' sources,
multiplies them by the offset's matrix and adds the products to the pairs' targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from metamixer.ops.placement import placed
from metamixer.ops.precision import autocast_is_on

# Free cells around every cloud in the packed keys: no offset of a kernel can reach the next row, layer or cloud.
REACH = 8
LARGEST_KERNEL = 2 * REACH + 1


@dataclass(frozen=True)
class Pairs:
    """Pairs of neighbouring sites, by offset of the kernel.

    Attributes:
        kernel_size: side of the cubic kernel.
        sources, targets: for each offset (x slowest, z fastest) the rows that are read and written. A target occurs
            at most once per offset. At the kernel's centre every site is its own neighbour and nothing is stored.
    """

    kernel_size: int
    sources: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]


class SparseSites:
    """The active sites of one or several clouds.

    Args:
        coordinates: ``N × 3`` integers, grid cells along x, y and z. They need not start at 0.
        batch: ``N`` integers, the cloud that each site belongs to, from 0.

    Raises:
        ValueError: for no sites, other shapes or types, two sites in one cell, and clouds so far apart in the grid
            that a cell's number exceeds 64 bits.
    """

    def __init__(self, coordinates: Tensor, batch: Tensor) -> None:
        if coordinates.ndim != 2 or coordinates.shape[1] != 3 or batch.shape != coordinates.shape[:1]:
            raise ValueError(
                f"coordinates must be N × 3 and batch N, got {tuple(coordinates.shape)} and {tuple(batch.shape)}"
            )
        if any(t.is_floating_point() or t.is_complex() or t.dtype == torch.bool for t in (coordinates, batch)):
            raise ValueError(f"sites are given by integers, got {coordinates.dtype} and {batch.dtype}")
        if len(coordinates) == 0:
            raise ValueError("there are no sites")
        self.coordinates = coordinates.long()
        self.batch = batch.long()
        self._keys, self._strides = _pack(self.coordinates, self.batch, REACH)
        self._sorted, self._order = self._keys.sort()
        same = (self._sorted[1:] == self._sorted[:-1]).nonzero()
        if len(same):
            first, second = sorted(self._order[same[0, 0] : same[0, 0] + 2].tolist())
            raise ValueError(
                f"points {first} and {second} lie in the same grid cell of the same cloud; keep one per cell"
            )
        self._pairs: dict[int, Pairs] = {}

    def __len__(self) -> int:
        return len(self.coordinates)

    def pairs(self, kernel_size: int) -> Pairs:
        """Neighbours under a cubic kernel, by binary search in the sorted keys; found once per size, then kept.

        Cost: N log N for each of kernel_size³ / 2 offsets. Raises ValueError for an even side or one above 17.
        """
        if kernel_size % 2 == 0 or not 0 < kernel_size <= LARGEST_KERNEL:
            raise ValueError(f"a sparse kernel must have an odd side of at most {LARGEST_KERNEL}, got {kernel_size}")
        if kernel_size not in self._pairs:
            self._pairs[kernel_size] = self._search(kernel_size)
        return self._pairs[kernel_size]

    def _search(self, kernel_size: int) -> Pairs:
        half = kernel_size // 2
        offsets = list(product(range(-half, half + 1), repeat=3))
        nothing = self._order[:0]
        sources, targets = [nothing] * len(offsets), [nothing] * len(offsets)
        for i, offset in enumerate(offsets[: len(offsets) // 2]):
            step = sum(o * stride for o, stride in zip(offset, self._strides, strict=True))
            wanted = self._sorted + step
            place = torch.searchsorted(self._sorted, wanted).clamp_(max=len(self) - 1)
            found = (self._sorted[place] == wanted).nonzero()[:, 0]
            sources[i], targets[i] = self._order[place[found]], self._order[found]
            # The same pairs seen from the other side belong to the opposite offset.
            sources[-1 - i], targets[-1 - i] = targets[i], sources[i]
        return Pairs(kernel_size, tuple(sources), tuple(targets))

    def pooled(self) -> tuple[SparseSites, Tensor]:
        """Sites of the grid with cells twice as wide, and for each present site the row of the one it falls into.

        Cells are cut at even *absolute* coordinates. The new sites are sorted by cloud, x, y and z.
        """
        coordinates = self.coordinates >> 1
        keys, _ = _pack(coordinates, self.batch, 0)
        unique, cluster = keys.unique(return_inverse=True)
        # Any member knows the cell's coordinates.
        member = torch.empty_like(unique).scatter_(0, cluster, torch.arange(len(self), device=keys.device))
        return SparseSites(coordinates[member], self.batch[member]), cluster


def _pack(coordinates: Tensor, batch: Tensor, margin: int) -> tuple[Tensor, tuple[int, int, int]]:
    """One integer per site, ordered by cloud, x, y, z, and the step of it along each axis."""
    low, high = coordinates.amin(0), coordinates.amax(0)
    width, depth, height = (side + 2 * margin for side in (high - low + 1).tolist())
    if (int(batch.amax()) + 1) * width * depth * height >= 2**63:
        raise ValueError(f"the clouds span too many grid cells ({width} × {depth} × {height}) to be numbered")
    x, y, z = (coordinates - low + margin).unbind(1)
    return ((batch * width + x) * depth + y) * height + z, (depth * height, height, 1)


def submanifold_conv(x: Tensor, pairs: Pairs, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Cross-correlation over active sites: ``N × in`` to ``N × out``.

    Args:
        x: features of the sites.
        pairs: the sites' neighbours under a kernel of the weight's size.
        weight: ``out × k × k × k × in``, kernel axes along x, y, z (the layout of spconv 2).
        bias: ``out``.

    Sites without a neighbour at an offset count it as zero, as a dense convolution of an otherwise empty grid does.
    Under autocast products are computed in its type and summed in float32. Raises ValueError where shapes do not fit.
    """
    k = pairs.kernel_size
    if weight.ndim != 5 or tuple(weight.shape[1:4]) != (k, k, k) or x.ndim != 2 or x.shape[1] != weight.shape[4]:
        raise ValueError(f"features {tuple(x.shape)} and a kernel {tuple(weight.shape)} do not fit neighbours of {k}³")
    if autocast_is_on(x):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    out: Tensor = _GatherMultiplyAdd.apply(x, weight.flatten(1, 3).permute(1, 2, 0), pairs)
    return out if bias is None else out + bias.to(out.dtype)


class _GatherMultiplyAdd(torch.autograd.Function):
    """Keeps the features alone for the backward pass, not what was gathered from them for every offset."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
        """``weight`` is ``offsets × in × out``."""
        ctx.save_for_backward(x, weight)
        ctx.pairs = pairs
        out = _wide(x @ weight[len(weight) // 2])
        for source, target, matrix in zip(pairs.sources, pairs.targets, weight, strict=True):
            if len(source):
                _add_rows(out, target, x.index_select(0, source) @ matrix)
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        pairs: Pairs = ctx.pairs
        centre = len(weight) // 2
        for_x, for_weight = ctx.needs_input_grad[:2]
        grad_x = _wide(grad @ weight[centre].T) if for_x else None
        grad_weight = torch.zeros_like(weight) if for_weight else None
        if grad_weight is not None:
            grad_weight[centre] = x.T @ grad
        for i, (source, target) in enumerate(zip(pairs.sources, pairs.targets, strict=True)):
            if not len(source):
                continue
            at_target = grad.index_select(0, target)
            if grad_x is not None:
                _add_rows(grad_x, source, at_target @ weight[i].T)
            if grad_weight is not None:
                grad_weight[i] = x.index_select(0, source).T @ at_target
        return None if grad_x is None else grad_x.to(x.dtype), grad_weight, None


def _wide(x: Tensor) -> Tensor:
    """float32 at least, to add many terms up."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _add_rows(out: Tensor, rows: Tensor, values: Tensor) -> None:
    """``out[rows] += values``. No row occurs twice in a call, so the result does not depend on the order of adding."""
    out.index_add_(0, rows, values.to(out.dtype))


@placed
class SubmanifoldConv3d(nn.Module):
    """:func:`submanifold_conv` with its weights, ``out × k × k × k × in``."""

    bias: Tensor | None

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.weight = nn.Parameter(torch.empty(out_channels, kernel_size, kernel_size, kernel_size, in_channels))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_channels)) if bias else None)
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor, sites: SparseSites) -> Tensor:
        return submanifold_conv(x, sites.pairs(self.kernel_size), self.weight, self.bias)
