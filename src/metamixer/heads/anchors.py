"""Anchor boxes, as mmdetection and CVNets place them.

torchvision's generator rounds its boxes to whole pixels, so it cannot stand in for mmdetection's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def anchors_around_zero(stride: float, scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """``A × 4`` boxes (left, top, right, bottom) centred at 0: all scales of the first ratio, then of the next.

    A scale is the square's side in strides, a ratio is height over width at the square's area.
    """
    root = torch.tensor(ratios, dtype=torch.float32).sqrt()[:, None]
    side = stride * torch.tensor(scales, dtype=torch.float32)[None]
    width, height = (side / root).flatten(), (side * root).flatten()
    return torch.stack([-width, -height, width, height], dim=1) / 2


def grid_anchors(around_zero: Tensor, size: Sequence[int], stride: float) -> Tensor:
    """``(height · width · A) × 4`` boxes centred at multiples of the stride, row by row, all A of a cell together."""
    height, width = size
    y = torch.arange(height, device=around_zero.device) * stride
    x = torch.arange(width, device=around_zero.device) * stride
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    centres = torch.stack([columns, rows, columns, rows], dim=-1).reshape(-1, 1, 4)
    return (centres + around_zero).reshape(-1, 4)


def per_anchor(level: Tensor, values: int) -> Tensor:
    """A head's map ``B × (A · values) × H × W`` as ``B × (H · W · A) × values``, in the order of the anchors."""
    return level.permute(0, 2, 3, 1).unflatten(3, (-1, values)).flatten(1, 3)


def in_own_cells(
    sizes: Sequence[Sequence[int]],
    strides: Sequence[int],
    per_cell: int,
    padded: Sequence[int],
    device: torch.device | None = None,
) -> Tensor:
    """Which anchors of all levels, ``N``, bool, stand in cells of the picture, not of what pads it to the batch's size.

    These are mmdetection's valid flags: a level's cells from the top left that cover ``padded`` pixels.

    Args:
        sizes: height and width of each level's map.
        strides: of the levels.
        per_cell: anchors in a cell.
        padded: height and width of the picture as padded by itself.
        device: of the result.
    """
    flags = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        rows = torch.arange(height, device=device) * stride < padded[0]
        columns = torch.arange(width, device=device) * stride < padded[1]
        flags.append((rows[:, None] & columns).flatten().repeat_interleave(per_cell))
    return torch.cat(flags)


def ssd_anchors(size: Sequence[int], small: float, large: float, ratios: Sequence[float]) -> Tensor:
    """``(height · width · (2 + 2 · ratios)) × 4`` boxes (centre x, centre y, width, height) as shares of the picture.

    A cell has the small square, the square between it and the next level's, and for each ratio r the small one
    stretched to width : height = r and 1 : r; all clamped to 0…1.
    """
    sides = [(small, small), ((small * large) ** 0.5,) * 2]
    for ratio in ratios:
        root = ratio**0.5
        sides += [(small * root, small / root), (small / root, small * root)]
    height, width = size
    y = (torch.arange(height, dtype=torch.float64) + 0.5) / height
    x = (torch.arange(width, dtype=torch.float64) + 0.5) / width
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    centres = torch.stack([columns, rows], dim=-1).reshape(-1, 1, 2).expand(-1, len(sides), 2)
    shapes = torch.tensor(sides, dtype=torch.float64).expand(len(centres), -1, 2)
    return torch.cat([centres, shapes], dim=-1).reshape(-1, 4).float().clamp(0, 1)
