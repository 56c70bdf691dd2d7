"""2-D discrete Fourier transform of real maps and its inverse, without a complex tensor at either door.

A spectrum is one real tensor ``B × C × 2 × H × Wf`` with ``Wf = W // 2 + 1``: index 0 of the third axis holds real
parts, 1 imaginary parts. Orthonormal scaling (``norm="ortho"``). Any height and width, odd and 1 included.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metamixer.ops import constants
from metamixer.ops.precision import in_float32
from metamixer.ops.tracing import is_number
from metamixer.ops.transform_choice import prefers_fft


@in_float32
def rdft2(x: Tensor) -> Tensor:
    """Half spectrum of real maps: ``B × C × H × W`` to ``B × C × 2 × H × Wf``, as ``torch.fft.rfft2(norm="ortho")``."""
    batch, channels, height, width = x.shape
    if prefers_fft("dft", height, width):
        return torch.view_as_real(torch.fft.rfft2(x, norm="ortho")).movedim(-1, 2)
    if not (is_number(height) and is_number(width)):
        return _rdft2_of_symbolic_size(x)
    half = width // 2 + 1
    rows = x @ constants.constant(constants.dft_over_width, width, like=x)  # B, C, H, (part, Wf)
    rows = rows.reshape(batch, channels, 2 * height, half)  # rows ordered (row, part)
    columns = constants.constant(constants.dft_over_height, height, like=x) @ rows  # rows ordered (part, row)
    return columns.reshape(batch, channels, 2, height, half)


@in_float32
def irdft2(spectrum: Tensor, width: int) -> Tensor:
    """Real maps of a half spectrum: ``B × C × 2 × H × Wf`` to ``B × C × H × W``, as ``torch.fft.irfft2(norm="ortho")``.

    ``width`` is needed because widths 2n and 2n + 1 share the same ``Wf``. Raises ValueError where they do not fit.
    """
    batch, channels, _, height, half = spectrum.shape
    if is_number(width) and is_number(half) and width // 2 + 1 != half:
        raise ValueError(f"a half spectrum of {half} columns does not belong to a map {width} wide")
    if prefers_fft("dft", height, width):
        complex_spectrum = torch.view_as_complex(spectrum.movedim(2, -1).contiguous())
        return torch.fft.irfft2(complex_spectrum, s=(height, width), norm="ortho")
    if not (is_number(height) and is_number(width)):
        return _irdft2_of_symbolic_size(spectrum, width)
    columns = spectrum.reshape(batch, channels, 2 * height, half)  # rows ordered (part, row)
    rows = constants.constant(constants.inverse_dft_over_height, height, like=spectrum) @ columns  # (row, part)
    rows = rows.reshape(batch, channels, height, 2 * half)
    return rows @ constants.constant(constants.inverse_dft_over_width, width, like=spectrum)


# The same sums part by part: a reshape that mixes parts and rows would put conditions on the sizes into the graph.


def _rdft2_of_symbolic_size(x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    half = width // 2 + 1
    over_width = constants.constant(constants.dft_over_width, width, like=x)
    real, imaginary = x @ over_width[:, :half], x @ over_width[:, half:]
    cos, sin = (part.to(x.dtype) for part in constants.complex_over_height(height, x.device, sign=-1.0))
    return torch.stack([cos @ real - sin @ imaginary, sin @ real + cos @ imaginary], dim=2)


def _irdft2_of_symbolic_size(spectrum: Tensor, width: int) -> Tensor:
    height, half = spectrum.shape[3:]
    real, imaginary = spectrum.unbind(2)
    cos, sin = (part.to(spectrum.dtype) for part in constants.complex_over_height(height, spectrum.device, sign=1.0))
    real, imaginary = cos @ real - sin @ imaginary, sin @ real + cos @ imaginary
    over_width = constants.constant(constants.inverse_dft_over_width, width, like=spectrum)
    return real @ over_width[:half] + imaginary @ over_width[half:]
