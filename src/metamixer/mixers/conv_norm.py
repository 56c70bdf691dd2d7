"""Convolution with batch norm, and the re-parameterised depthwise kernels, which fold into one convolution.

``fuse()`` returns the folded convolution; ``timm.utils.reparameterize_model`` and ``metamixer.merge`` call it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.ops.placement import placed


def conv_from(weight: Tensor, bias: Tensor, like: nn.Conv2d) -> nn.Conv2d:
    """A convolution with this weight and bias and the geometry of ``like`` (padding as the kernel's size asks)."""
    grow = [(new - old) // 2 for new, old in zip(weight.shape[2:], like.kernel_size, strict=True)]
    conv = nn.Conv2d(
        weight.shape[1] * like.groups,
        weight.shape[0],
        kernel_size=tuple(weight.shape[2:]),
        stride=like.stride,
        padding=tuple(p + g for p, g in zip(like.padding, grow, strict=True)),
        dilation=like.dilation,
        groups=like.groups,
        device=weight.device,
        dtype=weight.dtype,
    )
    conv.weight = nn.Parameter(weight.detach().clone())
    conv.bias = nn.Parameter(bias.detach().clone())
    return conv.train(like.training)


@torch.no_grad()
def fold_norm_after(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution equal to ``norm(conv(x))`` in evaluation mode."""
    scale, shift = affine_of(norm)
    bias = 0.0 if conv.bias is None else conv.bias
    return conv_from(conv.weight * scale[:, None, None, None], shift + bias * scale, conv)


@torch.no_grad()
def fold_norm_before(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> nn.Conv2d:
    """One convolution equal to ``conv(norm(x))`` in evaluation mode.

    Exact only without padding: a padded border would hold zeros where the norm's shift belongs.
    Raises ValueError for a padded or grouped convolution.
    """
    if any(p != 0 for p in conv.padding) or conv.groups != 1:
        raise ValueError("a norm folds into the next convolution only where that is neither padded nor grouped")
    scale, shift = affine_of(norm)
    bias = torch.einsum("oikl,i->o", conv.weight, shift)
    if conv.bias is not None:
        bias = bias + conv.bias
    return conv_from(conv.weight * scale[None, :, None, None], bias, conv)


def draw_weights(module: nn.Module) -> None:
    """A linear layer's or convolution's weights from a truncated normal of deviation 0.02, its bias zero.

    As the networks of FFNet and timm's transformers begin. Other modules stay as they are.
    """
    from timm.layers import trunc_normal_  # importing timm registers the backbones, which need this file

    if isinstance(module, (nn.Linear, nn.Conv2d)):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def affine_of(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel that a batch norm applies in evaluation mode."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


@placed
class ConvNorm(nn.Sequential):
    """Convolution without bias and batch norm, optionally followed by an activation. Padding keeps the size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2 * dilation
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=bias)
        self.norm = nn.BatchNorm2d(out_channels)
        if act is not None:
            self.act = act

    def fuse(self) -> nn.Module:
        conv = fold_norm_after(self.conv, self.norm)
        return nn.Sequential(conv, self.act) if hasattr(self, "act") else conv


@placed
class NormConvSkip(nn.Module):
    """``x + conv1x1(norm(x))``: folds into one 1×1 convolution (FFNet's downsampling, arXiv 2406.02021)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.conv = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.norm(x))

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        conv = fold_norm_before(self.norm, self.conv)
        conv.weight += torch.eye(conv.out_channels, device=conv.weight.device, dtype=conv.weight.dtype)[..., None, None]
        return conv


@placed
class ParallelDepthwise(nn.Module):
    """A large depthwise kernel and parallel smaller ones, each with its own norm, summed; folds into the large one.

    ``B × in × H × W`` to ``B × out × H/stride × W/stride``. ``kernels`` lists kernel shapes, the first encloses all
    others; all are odd. FFNet uses 7×7 with 3×3; FFNet_seg k×k, (k−4)×(k−4), 1×k and k×1.

    Raises ValueError for an even side and where the first kernel does not enclose the others.
    """

    def __init__(
        self,
        in_channels: int,
        kernels: tuple[int | tuple[int, int], ...] = (7, 3),
        stride: int = 1,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        shapes = [(k, k) if isinstance(k, int) else k for k in kernels]
        if any(side % 2 == 0 for shape in shapes for side in shape):
            raise ValueError(f"parallel kernels must have odd sides, got {kernels}")
        if any(small > large for shape in shapes for small, large in zip(shape, shapes[0], strict=True)):
            raise ValueError(f"the first kernel must enclose the others, got {kernels}")
        self.branches = nn.ModuleList()
        for shape in shapes:
            branch = ConvNorm(in_channels, out_channels or in_channels, 1, stride, groups=in_channels)
            branch.conv = nn.Conv2d(
                in_channels, out_channels or in_channels, shape, stride,
                padding=(shape[0] // 2, shape[1] // 2), groups=in_channels, bias=False,
            )  # fmt: skip
            self.branches.append(branch)

    def forward(self, x: Tensor) -> Tensor:
        out = self.branches[0](x)
        for branch in self.branches[1:]:
            out = out + branch(x)
        return out

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        folded = [branch.fuse() for branch in self.branches]
        large = folded[0]
        weight, bias = large.weight.clone(), large.bias.clone()
        for small in folded[1:]:
            height, width = ((a - b) // 2 for a, b in zip(large.kernel_size, small.kernel_size, strict=True))
            weight += F.pad(small.weight, (width, width, height, height))
            bias += small.bias
        conv = conv_from(weight, bias, large)
        return conv if conv.out_channels == conv.in_channels else SplitDepthwise(conv)


class SplitDepthwise(nn.Module):
    """A grouped convolution with several outputs per input channel, as that many depthwise convolutions.

    Channels keep their order. Few runtimes have a fast kernel for such groups: on a CPU, PyTorch's takes ten times as
    long as the depthwise convolutions do.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        count = conv.out_channels // conv.in_channels
        self.convs = nn.ModuleList(conv_from(conv.weight[i::count], conv.bias[i::count], conv) for i in range(count))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([conv(x) for conv in self.convs], dim=2).flatten(1, 2)
