"""What sets the dynamic spectrum mixer apart: generated band weights, content-adaptive and free of resolution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metamixer.mixers import create_mixer
from metamixer.mixers.dsm import band_interpolation, description


def dsm(dim: int = 16, generator: float = 0.3, **kwargs):
    """A mixer in double precision whose generator has left its neutral start (zero)."""
    torch.manual_seed(0)
    mixer = create_mixer("dsm", dim, **kwargs).double().eval()
    with torch.no_grad():
        if mixer.dynamic:
            mixer.generator[2].weight.normal_(std=generator)
        else:
            mixer.grid.normal_(std=generator)
    return mixer


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gains(mixer, x: Tensor) -> Tensor:
    return mixer.activate(mixer.interact(mixer.query(x), mixer.key(x)))


def test_a_fresh_mixer_passes_every_band():
    for dynamic in (True, False):
        mixer = create_mixer("dsm", 16, dynamic=dynamic).double().eval()
        x = maps(2, 16, 7, 10)
        torch.testing.assert_close(mixer(x), mixer.project(mixer.lift(x)), rtol=0, atol=1e-12)


def test_dynamic_weights_differ_between_pictures_and_static_ones_do_not():
    x = maps(2, 16, 9, 9)
    x[1] *= 5
    dynamic, static = gains(dsm(), x), gains(dsm(dynamic=False), x)
    assert dynamic.shape == static.shape == (2, 8, 1, 9, 9)
    assert (dynamic[0] - dynamic[1]).abs().max() > 1e-2
    assert torch.equal(static[0], static[1])
    assert static.std() > 1e-2  # and yet they are a filter
    for weights in (dynamic, static):
        assert weights.min() > 0
        assert weights.max() < 2


def test_the_switch_changes_the_parameters():
    dynamic = {name for name, _ in dsm().named_parameters()}
    static = {name for name, _ in dsm(dynamic=False).named_parameters()}
    assert dynamic - static == {f"generator.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    assert static - dynamic == {"grid"}


def test_a_static_filter_is_linear_and_a_dynamic_one_is_not():
    x = maps(1, 16, 8, 8)
    for dynamic in (True, False):
        mixer = dsm(dynamic=dynamic)
        filtered = [mixer.aggregate(gains(mixer, z), mixer.value(z)) for z in (x, 3 * x)]
        assert torch.allclose(3 * filtered[0], filtered[1]) is not dynamic


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 200), bands=st.integers(1, 12))
def test_band_interpolation_shares_every_coefficient_among_neighbouring_bands(size, bands):
    matrix = band_interpolation(size, bands, torch.device("cpu"))
    assert matrix.shape == (size, bands)
    assert matrix.min() >= 0
    torch.testing.assert_close(matrix.sum(1), torch.ones(size, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (matrix > 0).sum(1).max() <= 2
    assert matrix[0, 0] == 1  # the constant belongs to the lowest band alone


def test_one_band_is_one_gain():
    x = maps(1, 16, 6, 6)
    weights = gains(dsm(bands=1), x)
    assert torch.equal(weights, weights[..., :1, :1].expand_as(weights))


@pytest.mark.parametrize("size", [(5, 8), (16, 16)])
def test_a_grid_means_the_same_gains_at_every_resolution(size):
    """Coefficient u of n and 2u of 2n have the same normalised frequency, so they get the same gain, exactly."""
    mixer = dsm()
    grid = maps(1, 8, 5, 5)
    height, width = size
    coarse = mixer.interact(maps(1, 16, height, width), grid)
    fine = mixer.interact(maps(1, 16, 2 * height, 2 * width), grid)
    torch.testing.assert_close(fine[..., ::2, ::2], coarse, rtol=0, atol=1e-12)


def test_more_of_the_same_texture_gets_the_same_weights():
    """The description counts mean magnitudes per normalised frequency, which a larger patch of a texture keeps.

    White noise has orthonormal coefficients of the same size at any resolution; so has noise smoothed by a fixed
    kernel. Averaged over many patches the description of 24² and 48² pixels must agree up to sampling error and the
    border, while two different textures are far apart.
    """
    mixer = dsm()
    kernel = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    kernel = (kernel[:, None] * kernel / 16).expand(16, 1, 3, 3)

    def described(side: int, smooth: bool, seed: int) -> Tensor:
        x = maps(64, 16, side + 2, side + 2, seed=seed)
        x = torch.nn.functional.conv2d(x, kernel, groups=16) if smooth else x[..., 1:-1, 1:-1]
        return description(mixer.query(x), 8, 5)[:, : 8 * 25].mean(0)

    # The highest band pair in both axes ends at the Nyquist frequency, where smoothed noise is all but gone.
    for smooth in (False, True):
        difference = described(24, smooth, 1) - described(48, smooth, 2)
        assert difference.abs().mean() < 0.1
    assert (described(48, False, 2) - described(48, True, 2)).abs().mean() > 0.5


def test_channel_means_are_described_at_every_resolution():
    mixer = dsm()
    for size in [(1, 1), (3, 5), (20, 20)]:
        x = maps(2, 16, *size)
        described = description(mixer.query(x), 8, 5)
        assert described.shape == (2, 8 * 25 + 16)
        torch.testing.assert_close(described[:, 8 * 25 :], mixer.lift(x).mean((2, 3)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (3, 1), (4, 4)])
def test_bands_that_hold_no_coefficient_read_as_empty(size):
    mixer = dsm()
    x = maps(1, 16, *size)
    described = description(mixer.query(x), 8, 5)[:, : 8 * 25].reshape(8, 5, 5)
    empty_rows = band_interpolation(size[0], 5, torch.device("cpu")).sum(0) == 0
    empty_columns = band_interpolation(size[1], 5, torch.device("cpu")).sum(0) == 0
    empty = empty_rows[:, None] | empty_columns
    assert empty.any()
    silence = torch.tensor(1e-3, dtype=torch.float64).log()
    torch.testing.assert_close(described[:, empty], silence.expand_as(described[:, empty]))
    assert (described[:, ~empty] > silence + 1e-3).all()
    assert mixer(x).isfinite().all()
