"""Each mixer against its formula, written here as plainly as possible."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.mixers import create_mixer


def maps(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def complex_aff(mixer: nn.Module, x: Tensor) -> Tensor:
    """Equation 5 of the AFFNet paper in complex numbers: index 0 real, 1 imaginary, weights input × output."""

    def weights(name: str) -> Tensor:
        return torch.complex(*getattr(mixer, name).detach())

    def on_parts(function, z: Tensor) -> Tensor:
        return torch.complex(function(z.real), function(z.imag))

    spectrum = torch.fft.rfft2(x, norm="ortho")
    z = spectrum.unflatten(1, (mixer.blocks, -1))
    z = torch.einsum("bkihw,kio->bkohw", z, weights("w1")) + weights("b1")[..., None, None]
    z = torch.einsum("bkihw,kio->bkohw", on_parts(F.silu, z), weights("w2")) + weights("b2")[..., None, None]
    mask = on_parts(lambda part: F.softshrink(part, mixer.shrink), z).flatten(1, 2)
    return x + torch.fft.irfft2(mask * spectrum, s=x.shape[-2:], norm="ortho")


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 5), (8, 12)])
@pytest.mark.parametrize("blocks", [1, 4, 8])
def test_aff(size, blocks):
    torch.manual_seed(0)
    mixer = create_mixer("aff", 24, blocks=blocks).double()
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = maps(2, 24, *size)
    expected = complex_aff(mixer, x)
    assert (expected - x).norm() > 0.1 * x.norm()  # the filter does something
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("dim", "head_dim"), [(64, 32), (12, 4), (8, 32)])
def test_attention(dim, head_dim):
    mixer = create_mixer("attention", dim, head_dim=head_dim).double()
    x = maps(2, dim, 3, 5)
    # nn.MultiheadAttention with the same weights, on tokens.
    reference = nn.MultiheadAttention(dim, max(1, dim // head_dim), batch_first=True).double()
    with torch.no_grad():
        parts = [mixer.query, mixer.key, mixer.value]
        reference.in_proj_weight.copy_(torch.cat([part.weight[..., 0, 0] for part in parts]))
        reference.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        reference.out_proj.weight.copy_(mixer.project.weight[..., 0, 0])
        reference.out_proj.bias.copy_(mixer.project.bias)
    tokens = x.flatten(2).mT
    expected = reference(tokens, tokens, tokens, need_weights=False)[0].mT.reshape(x.shape)
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("size", [(1, 1), (4, 3)])
def test_pooling(kernel_size, size):
    x = maps(1, 2, *size)
    height, width = size
    reach = kernel_size // 2
    expected = torch.empty_like(x)
    for i in range(height):
        for j in range(width):
            rows = slice(max(0, i - reach), i + reach + 1)
            columns = slice(max(0, j - reach), j + reach + 1)
            expected[..., i, j] = x[..., rows, columns].mean((2, 3)) - x[..., i, j]
    torch.testing.assert_close(create_mixer("pooling", 2, kernel_size=kernel_size)(x), expected, rtol=0, atol=1e-14)


def test_identity():
    x = maps(1, 3, 4, 4)
    assert torch.equal(create_mixer("identity", 3)(x), x)


def test_additive():
    """Equations 5 and 6 of the CAS-ViT paper, with the mixer's own parameters."""
    torch.manual_seed(0)
    mixer = create_mixer("additive", 6).double().eval()
    for module in mixer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    state = mixer.state_dict()

    def context(z: Tensor, name: str) -> Tensor:
        spatial, channel = f"{name}.0.", f"{name}.1."
        weight, bias = (state[f"{spatial}depthwise.conv.{kind}"] for kind in ("weight", "bias"))
        gate = F.conv2d(z, weight, bias, padding=1, groups=6)
        norm = spatial + "depthwise.norm."
        gate = F.batch_norm(gate, *(state[norm + n] for n in ("running_mean", "running_var", "weight", "bias")))
        z = z * torch.sigmoid(F.conv2d(gate.relu(), state[spatial + "gate.weight"]))
        return z * torch.sigmoid(F.conv2d(F.adaptive_avg_pool2d(z, 1), state[channel + "gate.weight"]))

    x = maps(2, 6, 5, 4)
    query, key, value = F.conv2d(x, state["qkv.weight"]).split(6, dim=1)
    similarity = context(query, "query_context") + context(key, "key_context")
    mixed = F.conv2d(similarity, state["activate.weight"], state["activate.bias"], padding=1, groups=6) * value
    expected = F.conv2d(mixed, state["project.weight"], state["project.bias"], padding=1, groups=6)
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("kernel_size", "parallel"), [(3, None), (5, True), (7, None), (7, False)])
def test_ffnified(kernel_size, parallel):
    """1×1 query, depthwise key, GELU, depthwise value; parallel kernels (5 and 1, 7 and 3) add up."""
    torch.manual_seed(0)
    mixer = create_mixer("ffnified", 4, kernel_size=kernel_size, parallel=parallel).double().eval()
    state = mixer.state_dict()

    def norm(z: Tensor, name: str) -> Tensor:
        return F.batch_norm(z, *(state[f"{name}.norm.{n}"] for n in ("running_mean", "running_var", "weight", "bias")))

    def depthwise(z: Tensor, name: str) -> Tensor:
        if parallel is False or kernel_size == 3:
            return F.conv2d(z, state[name + ".weight"], state[name + ".bias"], padding=kernel_size // 2, groups=4)
        total = torch.zeros_like(z)
        for i, side in enumerate((kernel_size, kernel_size - 4)):
            branch = f"{name}.branches.{i}"
            assert state[branch + ".conv.weight"].shape == (4, 1, side, side)
            total += norm(F.conv2d(z, state[branch + ".conv.weight"], padding=side // 2, groups=4), branch)
        return total

    x = maps(2, 4, 6, 5)
    query = norm(F.conv2d(x, state["query.conv.weight"]), "query")
    expected = depthwise(F.gelu(depthwise(query, "interact")), "aggregate")
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-13)
