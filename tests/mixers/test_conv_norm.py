"""Folding norms and parallel kernels: exact in float64 with norm statistics away from their start."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metamixer.mixers.conv_norm import ConvNorm, NormConvSkip, ParallelDepthwise, fold_norm_after, fold_norm_before


def trained(module: nn.Module) -> nn.Module:
    """Double precision, evaluation mode, every norm as after some training."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
            part.running_mean.normal_()
            part.running_var.uniform_(0.3, 3.0)
    return module.double().eval()


def check(module: nn.Module, fused: nn.Module, channels: int = 6) -> None:
    for size in [(1, 1), (7, 5), (12, 12)]:
        x = torch.randn(2, channels, *size, dtype=torch.float64)
        torch.testing.assert_close(fused(x), module(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "dilation", "groups"), [(1, 1, 1, 1), (3, 2, 1, 6), (3, 1, 2, 3), (7, 2, 1, 2)]
)
def test_conv_norm(kernel_size, stride, dilation, groups, bias):
    module = trained(ConvNorm(6, 12, kernel_size, stride, dilation, groups, bias=bias))
    fused = module.fuse()
    assert isinstance(fused, nn.Conv2d)
    check(module, fused)


def test_conv_norm_keeps_its_activation():
    module = trained(ConvNorm(6, 6, 3, act=nn.SiLU()))
    check(module, module.fuse())


@pytest.mark.parametrize("bias", [False, True])
def test_norm_before_a_convolution(bias):
    norm = trained(nn.BatchNorm2d(6))
    conv = nn.Conv2d(6, 4, 1, bias=bias).double()
    check(nn.Sequential(norm, conv), fold_norm_before(norm, conv))


@pytest.mark.parametrize(
    "conv", [nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1, groups=6), nn.Conv2d(6, 6, 1, padding=1)]
)
def test_norm_before_a_padded_or_grouped_convolution_is_refused(conv):
    with pytest.raises(ValueError, match="neither padded nor grouped"):
        fold_norm_before(trained(nn.BatchNorm2d(6)), conv.double())


def test_norm_conv_skip():
    module = trained(NormConvSkip(6))
    fused = module.fuse()
    assert isinstance(fused, nn.Conv2d)
    check(module, fused)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("multiple", [1, 2])
@pytest.mark.parametrize("kernels", [(7,), (7, 3), (5, 1), (9, 5, (1, 9), (9, 1)), ((3, 7), (1, 5), (3, 1))])
def test_parallel_depthwise(kernels, multiple, stride):
    module = trained(ParallelDepthwise(6, kernels, stride=stride, out_channels=6 * multiple))
    fused = module.fuse()
    convs = [layer for layer in fused.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convs) == multiple  # one depthwise convolution for each output of a channel
    assert all(conv.groups == conv.in_channels == conv.out_channels == 6 for conv in convs)
    size = kernels[0] if isinstance(kernels[0], tuple) else (kernels[0], kernels[0])
    assert all(conv.kernel_size == size for conv in convs)
    check(module, fused)
    y = module(torch.zeros(1, 6, 9, 10, dtype=torch.float64))
    assert y.shape == (1, 6 * multiple, -(-9 // stride), 10 // stride)


def test_folding_leaves_the_module_as_it_was():
    module = trained(ParallelDepthwise(6))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fused = module.fuse()
    with torch.no_grad():
        fused.weight.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("kernels", [(4,), (7, 2), (7, (1, 4))])
def test_even_kernels_are_an_error(kernels):
    with pytest.raises(ValueError, match="must have odd sides"):
        ParallelDepthwise(6, kernels)


@pytest.mark.parametrize("kernels", [(3, 7), (7, (1, 9)), ((1, 7), (3, 1))])
def test_a_kernel_larger_than_the_first_is_an_error(kernels):
    with pytest.raises(ValueError, match="first kernel must enclose the others"):
        ParallelDepthwise(6, kernels)


def test_folding_is_in_evaluation_mode_terms():
    """In training mode a norm uses its batch: the folded convolution must not be expected to follow."""
    module = trained(ConvNorm(6, 6, 3))
    folded = fold_norm_after(module.conv, module.norm)
    x: Tensor = torch.randn(4, 6, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(folded(x), module(x))
    assert not torch.allclose(folded(x), module.train()(x))
