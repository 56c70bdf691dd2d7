"""The transforms against torch.fft and scipy.fft, for any size, dtype and path."""

from __future__ import annotations

import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metamixer.ops import dct2, idct2, irdft2, rdft2, use_transform

SIZES = [(1, 1), (1, 9), (8, 1), (2, 2), (7, 5), (6, 10), (16, 16), (31, 32)]
PATHS = ["matmul", "fft"]
sides = st.integers(1, 40)
some_shapes = settings(max_examples=40, deadline=None)


def maps(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def as_pair(spectrum: Tensor) -> Tensor:
    return torch.stack([spectrum.real, spectrum.imag], dim=2)


@pytest.mark.parametrize("path", PATHS)
@some_shapes
@given(batch=st.integers(1, 3), channels=st.integers(1, 4), height=sides, width=sides)
def test_rdft2_equals_torch_fft(path, batch, channels, height, width):
    x = maps(batch, channels, height, width)
    with use_transform(path):
        spectrum = rdft2(x)
    assert spectrum.shape == (batch, channels, 2, height, width // 2 + 1)
    torch.testing.assert_close(spectrum, as_pair(torch.fft.rfft2(x, norm="ortho")), rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@some_shapes
@given(batch=st.integers(1, 3), channels=st.integers(1, 4), height=sides, width=sides)
def test_irdft2_equals_torch_fft_for_any_spectrum(path, batch, channels, height, width):
    # Random spectra need not belong to a real map: what has no real counterpart must be dropped as torch.fft drops it.
    spectrum = maps(batch, channels, 2, height, width // 2 + 1)
    expected = torch.fft.irfft2(torch.complex(*spectrum.unbind(2)), s=(height, width), norm="ortho")
    with use_transform(path):
        torch.testing.assert_close(irdft2(spectrum, width), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@some_shapes
@given(lead=st.lists(st.integers(1, 3), max_size=2), height=sides, width=sides)
def test_dct2_equals_scipy(path, lead, height, width):
    x = maps(*lead, height, width)
    expected = torch.from_numpy(scipy.fft.dctn(x.numpy(), type=2, norm="ortho", axes=(-2, -1)))
    with use_transform(path):
        spectrum = dct2(x)
        torch.testing.assert_close(spectrum, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(idct2(spectrum), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@some_shapes
@given(height=sides, width=sides)
def test_irdft2_inverts_rdft2(path, height, width):
    x = maps(2, 3, height, width)
    with use_transform(path):
        torch.testing.assert_close(irdft2(rdft2(x), width), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (5, 1), (3, 4), (4, 5)])
def test_gradients(path, height, width):
    x = maps(1, 2, height, width).requires_grad_()
    spectrum = maps(1, 2, 2, height, width // 2 + 1).requires_grad_()
    with use_transform(path):
        assert torch.autograd.gradcheck(rdft2, (x,))
        assert torch.autograd.gradcheck(irdft2, (spectrum, width))
        assert torch.autograd.gradcheck(dct2, (x,))
        assert torch.autograd.gradcheck(idct2, (x,))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("height", "width"), [*SIZES, (56, 56), (112, 112), (97, 160)])
def test_float32_is_as_exact_as_its_sums_allow(path, height, width):
    # A sum of n rounded products strays by about n·u from its value (u the unit roundoff) relative to the norms;
    # a 2-D transform does one such sum over each axis. A phase error would be orders of magnitude larger.
    x = maps(1, 2, height, width)
    allowed = (height + width) * torch.finfo(torch.float32).eps
    with use_transform(path):
        for transform in (rdft2, dct2):
            exact, rounded = transform(x), transform(x.float())
            assert rounded.dtype == torch.float32
            assert (rounded - exact).norm() <= allowed * exact.norm()
        spectrum = rdft2(x)
        assert (irdft2(spectrum.float(), width) - x).norm() <= allowed * x.norm()
        assert (idct2(dct2(x).float()) - x).norm() <= allowed * x.norm()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_transformed_in_float32(path, dtype):
    x = maps(1, 2, 6, 9).to(dtype)
    with use_transform(path):
        for transform in (rdft2, dct2, idct2):
            assert transform(x).dtype == torch.float32
            assert torch.equal(transform(x), transform(x.float()))


@pytest.mark.parametrize("path", PATHS)
def test_autocast_leaves_the_transform_in_float32(path):
    x = maps(1, 2, 14, 14).float()
    with use_transform(path):
        plain = [rdft2(x), dct2(x), idct2(x), irdft2(rdft2(x), 14)]
        with torch.autocast("cpu", torch.bfloat16):
            assert (x @ x.mT).dtype == torch.bfloat16  # autocast is on
            cast = [rdft2(x), dct2(x), idct2(x), irdft2(rdft2(x), 14)]
    for a, b in zip(plain, cast, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize(("columns", "width"), [(5, 7), (5, 10), (1, 2), (4, 5)])
def test_irdft2_refuses_a_width_that_does_not_fit(columns, width):
    with pytest.raises(ValueError, match=f"half spectrum of {columns} columns does not belong to a map {width} wide"):
        irdft2(torch.zeros(1, 1, 2, 3, columns), width)


def test_irdft2_takes_both_widths_of_a_half_spectrum():
    spectrum = maps(1, 1, 2, 3, 5)
    assert irdft2(spectrum, 8).shape == (1, 1, 3, 8)
    assert irdft2(spectrum, 9).shape == (1, 1, 3, 9)


def test_the_rule_uses_products_on_small_maps_and_ffts_on_large_ones(monkeypatch):
    used, rfft2 = [], torch.fft.rfft2

    def noted(x: Tensor, norm: str) -> Tensor:
        used.append(x.shape)
        return rfft2(x, norm=norm)

    monkeypatch.setattr(torch.fft, "rfft2", noted)
    rdft2(torch.zeros(1, 1, 14, 14))
    assert used == []
    rdft2(torch.zeros(1, 1, 224, 224))
    assert used == [(1, 1, 224, 224)]
    with use_transform("matmul"):
        rdft2(torch.zeros(1, 1, 224, 224))
        with use_transform("fft"):
            rdft2(torch.zeros(1, 1, 14, 14))
        rdft2(torch.zeros(1, 1, 224, 224))  # the inner choice has ended
    assert used == [(1, 1, 224, 224), (1, 1, 14, 14)]


def test_an_unknown_path_is_an_error():
    with pytest.raises(ValueError, match="must be 'auto', 'matmul' or 'fft', not 'dft'"), use_transform("dft"):
        pass
