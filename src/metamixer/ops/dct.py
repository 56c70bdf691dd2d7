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
    """DCT-II over the last two axes: ``… × H × W`` to the same shape, equal to ``scipy.fft.dctn(type=2, norm="ortho")``."""
    height, width = x.shape[-2:]
    if prefers_fft(height, width, x.device):
        return _dct_by_fft(_dct_by_fft(x).mT).mT
    rows = x @ constants.constant(constants.dct_matrix, width, like=x).mT
    return constants.constant(constants.dct_matrix, height, like=x) @ rows


@in_float32
def idct2(spectrum: Tensor) -> Tensor:
    """Inverse of :func:`dct2` (a DCT-III): ``… × H × W`` to the same shape."""
    height, width = spectrum.shape[-2:]
    if prefers_fft(height, width, spectrum.device):
        return _idct_by_fft(_idct_by_fft(spectrum.mT).mT)
    columns = constants.constant(constants.dct_matrix, height, like=spectrum).mT @ spectrum
    return columns @ constants.constant(constants.dct_matrix, width, like=spectrum)


def _dct_by_fft(x: Tensor) -> Tensor:
    """DCT-II of the last axis by one real FFT of the same length (Makhoul 1980): even samples, then odd ones reversed."""
    size = x.shape[-1]
    reordered = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1)
    half = torch.fft.rfft(reordered)
    angle = torch.arange(size, device=x.device, dtype=x.dtype) * (math.pi / (2 * size))
    # The upper half of the full spectrum is the mirrored conjugate of the lower half.
    mirrored = half[..., 1 : (size + 1) // 2].flip(-1)
    real = torch.cat([half.real, mirrored.real], dim=-1)
    imaginary = torch.cat([half.imag, -mirrored.imag], dim=-1)
    result = real * angle.cos() + imaginary * angle.sin()
    return result * _orthonormal_scale(size, x)


def _idct_by_fft(spectrum: Tensor) -> Tensor:
    """Inverse of :func:`_dct_by_fft` over the last axis."""
    size = spectrum.shape[-1]
    scaled = spectrum / _orthonormal_scale(size, spectrum)
    mirrored = torch.cat([torch.zeros_like(scaled[..., :1]), scaled[..., 1:].flip(-1)], dim=-1)
    angle = torch.arange(size, device=spectrum.device, dtype=spectrum.dtype) * (math.pi / (2 * size))
    real = scaled * angle.cos() + mirrored * angle.sin()
    imaginary = scaled * angle.sin() - mirrored * angle.cos()
    half = size // 2 + 1
    reordered = torch.fft.irfft(torch.complex(real[..., :half], imaginary[..., :half]), n=size)
    front = (size + 1) // 2
    result = torch.empty_like(spectrum)
    result[..., ::2] = reordered[..., :front]
    result[..., 1::2] = reordered[..., front:].flip(-1)
    return result


def _orthonormal_scale(size: int, like: Tensor) -> Tensor:
    scale = torch.full((size,), math.sqrt(2.0 / size), dtype=like.dtype, device=like.device)
    scale[0] = math.sqrt(1.0 / size)
    return scale
