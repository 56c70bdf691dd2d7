"""Making pictures smaller as the super-resolution literature does: MATLAB's ``imresize`` with bicubic antialiasing."""

from __future__ import annotations

from functools import lru_cache
from math import ceil

import numpy as np
from numpy.typing import NDArray

SUPPORT = 4.0  # of the cubic kernel, in pixels
_BAND = 2**18  # numbers that are worked on at a time


def imresize(picture: NDArray, scale: float) -> NDArray:
    """A picture resized as MATLAB's ``imresize(picture, scale)`` does (bicubic, antialiased where it shrinks).

    Args:
        picture: ``H × W`` or ``H × W × channels``; uint8, or floating point.
        scale: factor for both sides; the result has ``ceil(scale · side)`` pixels.

    Computed in float64, rows first, then columns, some rows of the result at a time, so that it takes some MB beside
    picture and result. Beyond the border the picture is mirrored. The kernel is Keys' (1981, a = -0.5), made
    ``1 / scale`` times as wide to shrink. Floating point is neither clipped nor rounded; uint8 comes back as uint8,
    clipped and rounded once, as ``imwrite(imresize(im2double(picture), scale))`` stores it.

    Raises ValueError for other types, no pixels, and a scale that is not positive.
    """
    if picture.ndim not in (2, 3) or 0 in picture.shape:
        raise ValueError(f"a picture is H × W or H × W × channels with at least one pixel, got {picture.shape}")
    if picture.dtype != np.uint8 and not np.issubdtype(picture.dtype, np.floating):
        raise ValueError(f"pictures are resized as uint8 or floating point, got {picture.dtype}")
    if not scale > 0:
        raise ValueError(f"the scale must be positive, got {scale}")
    stored = np.uint8 if picture.dtype == np.uint8 else np.float64
    rows, columns = (_contributions(length, scale) for length in picture.shape[:2])
    out = np.empty((len(rows[0]), len(columns[0]), *picture.shape[2:]), stored)
    height = max(1, _BAND // max(picture[0].size, out[0].size))
    for top in range(0, len(out), height):
        band = slice(top, top + height)
        resized = _weighted(picture, rows[0][band], rows[1][band], axis=0)
        resized = _weighted(resized, *columns, axis=1)
        out[band] = np.floor(resized.clip(0, 255) + 0.5) if stored == np.uint8 else resized
    return out


def _weighted(picture: NDArray, indices: NDArray, weights: NDArray, axis: int) -> NDArray[np.float64]:
    """Sums of some rows or columns, as :func:`_contributions` gives them."""
    shape = [1] * picture.ndim
    shape[axis] = -1
    total = np.zeros(1)
    for index, weight in zip(indices.T, weights.T, strict=True):  # of the kernel's terms
        total = total + np.take(picture, index, axis).astype(np.float64) * weight.reshape(shape)
    return total


@lru_cache(maxsize=256)
def _contributions(length: int, scale: float) -> tuple[NDArray, NDArray]:
    """For every output pixel the input pixels that it reads and their weights: two ``output × terms`` arrays."""
    stretch = max(1.0, 1.0 / scale)
    width = SUPPORT * stretch
    terms = ceil(width) + 2
    # Centres of the output's pixels, in input pixels from 0.
    centre = (np.arange(ceil(length * scale)) + 0.5) / scale - 0.5
    indices = (np.floor(centre - width / 2).astype(np.int64) + 1)[:, None] + np.arange(terms)
    weights = _cubic((centre[:, None] - indices) / stretch)
    weights /= weights.sum(1, keepdims=True)
    used = weights.any(0)
    mirrored = indices[:, used] % (2 * length)
    mirrored = np.minimum(mirrored, 2 * length - 1 - mirrored)
    return mirrored, weights[:, used]


def _cubic(x: NDArray) -> NDArray:
    """Keys' cubic convolution kernel."""
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x**2 + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, inner, np.where(x <= 2, outer, 0.0))
