"""What every registered token mixer must do, whatever its formula."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

import metamixer as mm
from metamixer.mixers import MetaMixer, create_mixer, list_mixers

NAMES = list_mixers()
COMPOSED = [name for name in NAMES if isinstance(create_mixer(name, 32), MetaMixer)]
SIZES = [(1, 1), (1, 7), (6, 1), (7, 5), (16, 16)]


def lively(name: str, dim: int, seed: int = 0, **kwargs) -> nn.Module:
    """A mixer in evaluation mode whose parameters and norm statistics are all away from their neutral start."""
    torch.manual_seed(seed)
    mixer = create_mixer(name, dim, **kwargs).eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in mixer.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 2.0)
    return mixer


def maps(dim: int, size: tuple[int, int], batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, dim, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def test_the_mixers_of_the_papers_and_the_baselines_are_registered():
    assert {"aff", "additive", "attention", "dsm", "ffnified", "identity", "pooling"} <= set(NAMES)
    assert mm.list_mixers() == sorted(NAMES)
    assert mm.create_mixer is create_mixer


@pytest.mark.parametrize("dim", [8, 32, 64])
@pytest.mark.parametrize("name", NAMES)
def test_keeps_the_shape_at_any_size(name, dim):
    mixer = lively(name, dim)
    for size in SIZES:
        y = mixer(maps(dim, size))
        assert y.shape == (2, dim, *size)
        assert y.isfinite().all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", COMPOSED)
def test_the_four_steps_equal_the_straight_line(name, size):
    mixer = lively(name, 32).double()
    x = maps(32, size, dtype=torch.float64)
    torch.testing.assert_close(mixer.compose(x), mixer(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [(4, 6), (1, 1)])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_input_and_every_parameter(name, size):
    mixer = lively(name, 32).double()
    x = maps(32, size, dtype=torch.float64).requires_grad_()
    (mixer(x) * maps(32, size, dtype=torch.float64)).sum().backward()
    assert x.grad.isfinite().all()
    # A centred mean of one pixel is nothing, so pooling has no gradient there.
    assert x.grad.any() or (name, size) == ("pooling", (1, 1))
    for parameter_name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        # Softmax does not change when all scores of a query move alike, so the key's bias has no effect.
        if size != (1, 1) and (name, parameter_name) != ("attention", "key.bias"):
            assert parameter.grad.abs().max() > 1e-6, parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_derivative(name):
    mixer = lively(name, 8).double()
    assert torch.autograd.gradcheck(mixer, (maps(8, (3, 4), batch=1, dtype=torch.float64).requires_grad_(),))


@pytest.mark.parametrize("name", NAMES)
def test_double_precision_agrees_with_single(name):
    mixer = lively(name, 32)
    x = maps(32, (7, 5))
    single = mixer(x)
    double = mixer.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_autocast_stays_near_single_precision(name):
    mixer = lively(name, 32)
    x = maps(32, (7, 5))
    plain = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = mixer(x)
    assert cast.isfinite().all()
    # bf16 keeps 8 bits; a few layers of it lose a few percent of the output's scale.
    assert (cast.float() - plain).norm() < 0.03 * plain.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_modules_keep_their_dtype(name, dtype):
    mixer = lively(name, 32)
    x = maps(32, (7, 5))
    plain = mixer(x)
    half = mixer.to(dtype)(x.to(dtype))
    assert half.dtype == dtype
    assert (half.float() - plain).norm() < 0.05 * plain.norm()


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_its_batch(name):
    mixer = lively(name, 32).double()
    x = maps(32, (7, 5), batch=3, dtype=torch.float64)
    together = mixer(x)
    for i in range(3):
        torch.testing.assert_close(mixer(x[i : i + 1]), together[i : i + 1], rtol=0, atol=1e-11)


@cache
def exported(name: str) -> tuple[nn.Module, torch.export.ExportedProgram]:
    mixer = lively(name, 16)
    sides = {2: torch.export.Dim("height", min=2, max=256), 3: torch.export.Dim("width", min=2, max=256)}
    return mixer, torch.export.export(mixer, (maps(16, (7, 10)),), dynamic_shapes=(sides,))


@pytest.mark.parametrize("name", NAMES)
def test_exports_with_dynamic_height_and_width(name):
    mixer, program = exported(name)
    values = [node.meta.get("val") for node in program.graph.nodes]
    assert not any(value.is_complex() for value in values if isinstance(value, Tensor))
    for size in [(7, 10), (2, 3), (16, 16), (33, 9)]:
        torch.testing.assert_close(program.module()(maps(16, size)), mixer(maps(16, size)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "dim", "words"), [
    ("aff", 12, "aff needs channels in multiples of blocks=8, got 12"),
    ("dsm", 12, "dsm needs channels in multiples of groups=8, got 12"),
])  # fmt: skip
def test_channels_that_do_not_fit_are_an_error(name, dim, words):
    with pytest.raises(ValueError, match=words):
        create_mixer(name, dim)


def test_heads_of_attention_fit_any_number_of_channels():
    assert [create_mixer("attention", dim).head_dim for dim in (8, 32, 48, 64, 160, 37)] == [8, 32, 24, 32, 32, 1]
    with pytest.raises(ValueError, match="attention needs channels in multiples of head_dim=32, got 48"):
        create_mixer("attention", 48, head_dim=32)


@pytest.mark.parametrize(
    ("name", "kwargs"), [("aff", {"blocks": 4}), ("dsm", {"groups": 3}), ("attention", {"head_dim": 6})]
)
def test_the_divisor_is_an_argument(name, kwargs):
    assert create_mixer(name, 12, **kwargs).eval()(maps(12, (4, 4))).shape == (2, 12, 4, 4)


@pytest.mark.parametrize("name", ["ffnified", "pooling"])
def test_even_kernels_are_an_error(name):
    with pytest.raises(ValueError, match="odd"):
        create_mixer(name, 8, kernel_size=4)


def test_a_misspelt_name_gets_a_suggestion():
    with pytest.raises(ValueError, match=r"unknown mixer 'adition'; did you mean 'additive'\?"):
        create_mixer("adition", 8)
    with pytest.raises(ValueError, match="unknown mixer 'zzz'; known mixers: additive, aff, attention"):
        create_mixer("zzz", 8)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_none(name):
    mixer = lively(name, 16)
    for training in (False, True):
        mixer.train(training)
        assert mixer(maps(16, (5, 6), batch=0)).shape == (0, 16, 5, 6)
    if name in COMPOSED:
        assert mixer.compose(maps(16, (5, 6), batch=0)).shape == (0, 16, 5, 6)
