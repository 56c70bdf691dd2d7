"""2-D discrete cosine transform (DCT-II, orthonormal) of maps and its inverse. Any height and width."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metamixer.ops import constants
from metamixer.ops.precision import in_float32
from metamixer.ops.transform_choice import prefers_fft


@in_float32
def dct2(x: Tensor) -> Tensor:
    """DCT-II over the last two axes: ``… × H × W`` to the same shape, as ``scipy.fft.dctn(type=2, norm="ortho")``."""
    height, width = x.shape[-2:]
    if prefers_fft("dct", height, width):
        return _dct_by_fft(_dct_by_fft(x, -1), -2)
    rows = x @ constants.constant(constants.dct_matrix, width, like=x).mT
    return constants.constant(constants.dct_matrix, height, like=x) @ rows


@in_float32
def idct2(spectrum: Tensor) -> Tensor:
    """Inverse of :func:`dct2` (a DCT-III): ``… × H × W`` to the same shape."""
    height, width = spectrum.shape[-2:]
    if prefers_fft("dct", height, width):
        return _idct_by_fft(_idct_by_fft(spectrum, -2), -1)
    columns = constants.constant(constants.dct_matrix, height, like=spectrum).mT @ spectrum
    return columns @ constants.constant(constants.dct_matrix, width, like=spectrum)


# One real FFT of the same length per axis (Makhoul 1980): of the even samples followed by the odd ones reversed. Turned
# by a quarter sample, coefficient k holds C[k] as its real part and -C[n - k] as its imaginary part.


def _dct_by_fft(x: Tensor, axis: int) -> Tensor:
    size = x.shape[axis]
    turned = torch.fft.rfft(x.index_select(axis, _even_then_odd(size, x.device)), dim=axis) * _twiddle(size, axis, x)
    mirrored = turned.imag.narrow(axis, 1, (size - 1) // 2).neg().flip(axis)
    return torch.cat([turned.real, mirrored], dim=axis)


def _idct_by_fft(spectrum: Tensor, axis: int) -> Tensor:
    size = spectrum.shape[axis]
    half = size // 2 + 1
    mirrored = spectrum.narrow(axis, size - half + 1, half - 1).flip(axis)
    imaginary = torch.cat([torch.zeros_like(spectrum.narrow(axis, 0, 1)), -mirrored], dim=axis)
    turned = torch.complex(spectrum.narrow(axis, 0, half), imaginary) / _twiddle(size, axis, spectrum)
    return torch.fft.irfft(turned, n=size, dim=axis).index_select(axis, _even_then_odd(size, spectrum.device).argsort())


def _even_then_odd(size: int, device: torch.device) -> Tensor:
    index = torch.arange(size, device=device)
    return torch.cat([index[::2], index[1::2].flip(0)])


def _twiddle(size: int, axis: int, like: Tensor) -> Tensor:
    """exp(-i pi k / 2n) times the orthonormal scale, for the half spectrum, shaped to multiply along ``axis``."""
    half = size // 2 + 1
    angle = torch.arange(half, device=like.device, dtype=like.dtype) * (-math.pi / (2 * size))
    scale = torch.full_like(angle, math.sqrt(2 / size))
    scale[0] = math.sqrt(1 / size)
    return torch.polar(scale, angle).reshape((-1,) + (1,) * (-axis - 1))
