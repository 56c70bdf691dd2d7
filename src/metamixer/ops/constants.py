"""Constant matrices of the transforms, built in float64 and kept per size, dtype and device.

With a concrete size the matrix is a constant of the graph (so runtimes can fold and pre-pack it); with a symbolic
size (dynamic shapes of ``torch.compile`` and ``torch.export``) it is computed in the graph from the size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from metamixer.ops.tracing import is_number, is_tracing

# Each matrix is an attribute of its own: torch.compile then looks at those of a graph alone, whatever else is kept.
_matrices = SimpleNamespace()
_names: dict[tuple[Any, ...], str] = {}  # of those attributes, by function, sizes, dtype and device
_number = count()


def constant(build: Callable[..., Tensor], *sizes: int, like: Tensor) -> Tensor:
    """``build(*sizes, device)`` in float64, converted to the dtype and device of ``like``, and kept."""
    # Fake tensors and their like cannot be mixed with kept ones, unless an exporter makes constants of these.
    if not all(is_number(n) for n in sizes) or (type(like) is not Tensor and not is_tracing()):
        return build(*sizes, like.device).to(like.dtype)
    matrix: Tensor = getattr(_matrices, _name_of_kept(build, like.dtype, like.device, *sizes))
    return matrix


# torch.compile calls this while it traces, and sees nothing of it.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _name_of_kept(build: Callable[..., Tensor], dtype: torch.dtype, device: torch.device, *sizes: int) -> str:
    key = (build, *sizes, dtype, device)
    if key not in _names:

        def built() -> Tensor:
            return build(*sizes, torch.device("cpu")).to(dtype).to(device)

        # Modes belong to threads: in one of its own no fake tensor, inference mode or function transform of the caller
        # reaches what is kept.
        with ThreadPoolExecutor(1) as thread:
            matrix = thread.submit(built).result()
        name = f"matrix{next(_number)}"
        setattr(_matrices, name, matrix)
        if _names.setdefault(key, name) != name:  # another thread was quicker
            delattr(_matrices, name)
    return _names[key]


def _angles(rows: Tensor, columns: Tensor, period: int) -> Tensor:
    # The product is reduced modulo the period while still an integer, so large maps keep full precision.
    return torch.remainder(rows[:, None] * columns[None, :], period).to(torch.float64) * (2 * math.pi / period)


def dft_over_width(width: int, device: torch.device) -> Tensor:
    """``W × 2·Wf``: a real row times this gives its half spectrum, real parts first, then imaginary parts."""
    half = width // 2 + 1
    angles = _angles(torch.arange(width, device=device), torch.arange(half, device=device), width)
    return torch.cat([angles.cos(), -angles.sin()], dim=1) / torch.sym_sqrt(width)


def inverse_dft_over_width(width: int, device: torch.device) -> Tensor:
    """``2·Wf × W``: a half spectrum times this gives the real row.

    Every column but the first (and, for even widths, the last) stands for two conjugate ones. The imaginary parts
    of those two do not count, as in ``torch.fft.irfft``: their sines are zero.
    """
    half = width // 2 + 1
    columns = torch.arange(half, device=device)
    angles = _angles(columns, torch.arange(width, device=device), width)
    alone = (columns == 0) | (columns * 2 == width)
    weight = torch.where(alone, 1.0, 2.0).to(torch.float64)[:, None] / torch.sym_sqrt(width)
    return torch.cat([angles.cos() * weight, -angles.sin() * weight], dim=0)


def dft_over_height(height: int, device: torch.device) -> Tensor:
    """``2·H × 2·H``: complex transform of columns; input rows ordered (row, part), output rows (part, row)."""
    cos, sin = complex_over_height(height, device, sign=-1.0)
    real, imaginary = torch.stack([cos, -sin], dim=-1), torch.stack([sin, cos], dim=-1)
    return torch.cat([real, imaginary]).flatten(1)


def inverse_dft_over_height(height: int, device: torch.device) -> Tensor:
    """``2·H × 2·H``: inverse complex transform of columns; input rows (part, row), output rows (row, part)."""
    cos, sin = complex_over_height(height, device, sign=1.0)
    real, imaginary = torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)
    return torch.stack([real, imaginary], dim=1).flatten(0, 1)


def complex_over_height(height: int, device: torch.device, sign: float) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of exp(sign·i·angle), ``H × H`` each, orthonormal scaling included."""
    index = torch.arange(height, device=device)
    angles, scale = _angles(index, index, height), torch.sym_sqrt(height)
    return angles.cos() / scale, sign * angles.sin() / scale


def dct_matrix(size: int, device: torch.device) -> Tensor:
    """``n × n`` orthonormal DCT-II: row k holds ``c_k cos(pi k (2 i + 1) / 2n)``. Its transpose is the inverse."""
    index = torch.arange(size, device=device)
    angles = _angles(index, 2 * index + 1, 4 * size)
    scale = torch.where(index == 0, 1.0, 2.0).to(torch.float64).sqrt()[:, None] / torch.sym_sqrt(size)
    return angles.cos() * scale
