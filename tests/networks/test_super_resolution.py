"""Sizes, tiles and pictures of the super-resolution networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import metamixer as mm
from metamixer import MetamixerError
from metamixer.networks import FFNetSR, tiled, upscale


def small(depth: int = 2, scale: int = 2) -> FFNetSR:
    """Weights large enough that everything within reach matters: a few hundredths per layer would fade out."""
    model = mm.create_model("ffnet_sr_light", scale=scale, dim=8, depth=depth).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (5, 8)])
def test_any_size_and_scale(scale: int, size: tuple[int, int]) -> None:
    assert small(scale=scale)(torch.rand(2, 3, *size)).shape == (2, 3, scale * size[0], scale * size[1])


def test_without_details_pixels_are_repeated() -> None:
    model = small(scale=3)
    model.last.weight.zero_()
    model.last.bias.zero_()
    picture = torch.rand(1, 3, 4, 5)
    assert torch.equal(model(picture), picture.repeat_interleave(3, 2).repeat_interleave(3, 3))


def test_reach_is_how_far_a_pixel_matters() -> None:
    model, side = small(depth=2).double(), 41
    picture = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    middle = side // 2
    model(picture)[0, :, 2 * middle : 2 * middle + 2, 2 * middle : 2 * middle + 2].sum().backward()
    touched = picture.grad[0].abs().amax(0).nonzero()
    assert touched.amin(0).tolist() == [middle - model.reach] * 2
    assert touched.amax(0).tolist() == [middle + model.reach] * 2


@pytest.mark.parametrize("size", [(41, 37), (16, 50), (7, 9)])
@pytest.mark.parametrize("scale", [2, 3])
def test_tiles_that_see_as_far_as_the_network_equal_the_whole(size: tuple[int, int], scale: int) -> None:
    model, picture = small(scale=scale), torch.rand(2, 3, *size)
    torch.testing.assert_close(tiled(model, picture, tile=16, overlap=None), model(picture), rtol=0, atol=1e-5)


def seam_distance(size: int, tile: int) -> Tensor:
    """Input pixels between each pixel and the next seam inside the picture."""
    seams = torch.arange(tile, size, tile)
    rows = torch.arange(size)[:, None]
    return torch.minimum((rows - seams).abs(), (rows - (seams - 1)).abs()).amin(1)


@pytest.mark.parametrize("overlap", [0, 3])
def test_away_from_seams_tiles_equal_the_whole(overlap: int) -> None:
    """A pixel whose surroundings within reach lie in its own tile misses nothing; pixels at a seam may."""
    model, picture, tile = small(), torch.rand(1, 3, 60, 60), 30
    difference = (tiled(model, picture, tile, overlap) - model(picture)).abs().amax(1)[0]
    far = (seam_distance(60, tile) + overlap >= model.reach).repeat_interleave(2)
    inside = far[:, None] & far[None, :]
    assert 0.1 < inside.float().mean() < 1
    assert difference[inside].max() < 1e-4
    assert overlap or difference.max() > 1e-3  # the rest differs, or there would be nothing to test


def test_seams_are_invisible_well_below_the_reach() -> None:
    model, picture = small(depth=16), torch.rand(1, 3, 96, 96)
    assert model.reach == 50
    whole = model(picture)
    assert (tiled(model, picture, 48, 32) - whole).abs().max() < 1 / 255
    assert (tiled(model, picture, 48, 0) - whole).abs().max() > 1 / 255  # this network does show seams


def test_memory_is_that_of_a_tile() -> None:
    model, seen = small(), []
    model.body.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[2:]))
    tiled(model, torch.rand(1, 3, 50, 200), tile=20, overlap=4)
    assert len(seen) == 3 * 10
    assert max(max(shape) for shape in seen) == 28


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16"])
def test_pictures_of_any_mode(mode: str) -> None:
    pixels = np.arange(20 * 30, dtype=np.uint8).reshape(20, 30)
    picture = (
        Image.fromarray(pixels.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    )
    large = upscale(small(), picture)
    assert (large.size, large.mode) == ((60, 40), "RGB")


def test_upscale_works_on_0_to_1_and_rounds() -> None:
    model = small()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8))
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    expected = (model(tensor)[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(np.array(upscale(model, picture)).astype(float) - expected).max() <= 1  # rounding at one half
    assert expected.min() == 0 or expected.max() == 255 or np.ptp(expected) > 100


def test_interpolation_is_that_of_the_nearest_pixel() -> None:
    x = torch.rand(1, 3, 5, 7)
    assert torch.equal(
        F.interpolate(x, scale_factor=3.0, mode="nearest"), F.pixel_shuffle(x.repeat_interleave(9, dim=1), 3)
    )


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 3, 0, 8), (1, 3, 8, 0)])
def test_what_is_no_picture(shape: tuple[int, ...]) -> None:
    for run in (small(), lambda picture: tiled(small(), picture)):
        with pytest.raises(MetamixerError, match=r"B × 3 × H × W|nothing to enlarge"):
            run(torch.zeros(shape))


def test_tiles_that_make_no_sense() -> None:
    for arguments in ({"tile": 0}, {"overlap": -1}):
        with pytest.raises(MetamixerError, match="at least one pixel"):
            tiled(small(), torch.zeros(1, 3, 8, 8), **arguments)


def test_large_first_weights_keep_the_variance() -> None:
    torch.manual_seed(0)
    plain, large = FFNetSR(dim=64, depth=1), FFNetSR(dim=64, depth=1, large_init=True)
    for network, gain in ((plain, 1 / 3), (large, 1.0)):
        weight = network.body[0].token_mixer.query.weight.detach()
        assert float(weight.var() * 64) == pytest.approx(gain, rel=0.1)
    assert float((large.first.weight.std() / plain.first.weight.std()).detach()) == pytest.approx(6, rel=0.1)
