"""Adaptive frequency filters (AFFNet, ICCV 2023, arXiv 2307.14008): content-dependent filters of the spectrum."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.mixers.framework import MetaMixer
from metamixer.mixers.registry import register_mixer
from metamixer.ops import irdft2, rdft2
from metamixer.ops.precision import in_float32


@register_mixer("aff")
class AdaptiveFrequencyFilter(MetaMixer):
    """``x + F⁻¹(M(F(x)) ⊙ F(x))``, equation 5 of the paper; M is two block-diagonal complex linear maps per frequency.

    Real and imaginary parts travel as neighbouring channels, so a complex linear map is a grouped 1×1 convolution
    with real weights and no complex tensor appears. Computed in float32 under autocast.

    Args:
        dim: channels, a multiple of ``blocks``.
        blocks: diagonal blocks of the linear maps.
        shrink: threshold of the soft shrinkage that makes the filter sparse.

    Raises ValueError where ``dim`` is no multiple of ``blocks``.
    """

    def __init__(self, dim: int, blocks: int = 8, shrink: float = 0.01) -> None:
        if dim % blocks:
            raise ValueError(f"aff needs channels in multiples of blocks={blocks}, got {dim}")
        super().__init__()
        width = dim // blocks
        self.blocks = blocks
        self.shrink = shrink
        # Index 0 of the first axis holds real parts, 1 imaginary parts; weights are stored input × output.
        self.w1 = nn.Parameter(0.02 * torch.randn(2, blocks, width, width))
        self.b1 = nn.Parameter(0.02 * torch.randn(2, blocks, width))
        self.w2 = nn.Parameter(0.02 * torch.randn(2, blocks, width, width))
        self.b2 = nn.Parameter(0.02 * torch.randn(2, blocks, width))

    def query(self, x: Tensor) -> Tensor:
        return rdft2(x)

    def interact(self, spectrum: Tensor) -> Tensor:
        if self.w1 is None:  # merged: the parameters are in real form already
            return _mask_network(spectrum, self.first_weight, self.first_bias, self.second_weight, self.second_bias)
        return _mask_network(spectrum, *_real_form(self.w1, self.b1), *_real_form(self.w2, self.b2))

    def activate(self, mask: Tensor) -> Tensor:
        # The input that is added back is a filter too: one that lets every frequency pass.
        real, imaginary = _soft_shrink(mask, self.shrink).unbind(2)
        return torch.stack([real + 1, imaginary], dim=2)

    def value(self, x: Tensor) -> tuple[Tensor, int]:
        return rdft2(x), x.shape[-1]

    def aggregate(self, mask: Tensor, value: tuple[Tensor, int]) -> Tensor:
        spectrum, width = value
        return irdft2(_complex_product(mask, spectrum), width)

    def forward(self, x: Tensor) -> Tensor:
        # Straight line: the spectrum is computed once and the input added back as it is.
        spectrum = rdft2(x)
        mask = _soft_shrink(self.interact(spectrum), self.shrink)
        return x + irdft2(_complex_product(mask, spectrum), x.shape[-1]).to(x.dtype)

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Keep the linear maps in the real form in which they are applied."""
        if self.w1 is not None:
            first, second = _real_form(self.w1, self.b1), _real_form(self.w2, self.b2)
            self.first_weight, self.first_bias = map(nn.Parameter, first)
            self.second_weight, self.second_bias = map(nn.Parameter, second)
            self.w1 = self.b1 = self.w2 = self.b2 = None


def _real_form(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The complex linear map as real matrices ``blocks × 2·out × 2·in`` and bias ``blocks × 2·out × 1``."""
    real, imaginary = weight.mT.unbind(0)  # blocks, output, input
    # Rows (output, part), columns (input, part): every entry becomes the block [[re, -im], [im, re]].
    to_real = torch.stack([real, -imaginary], dim=-1)
    to_imaginary = torch.stack([imaginary, real], dim=-1)
    matrix = torch.stack([to_real, to_imaginary], dim=2)  # blocks, output, part out, input, part in
    return matrix.flatten(3).flatten(1, 2), bias.permute(1, 2, 0).flatten(1).unsqueeze(-1)


@in_float32
def _mask_network(spectrum: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """Two block-diagonal linear maps with SiLU between, over the channels of ``B × C × 2 × H × Wf``."""
    dtype = spectrum.dtype
    batch, _, _, height, half = spectrum.shape
    # Block, (channel, part), frequency: a view, since parts are the axis after channels.
    hidden = spectrum.reshape(batch, weight1.shape[0], weight1.shape[2], height * half)
    hidden = F.silu(weight1.to(dtype) @ hidden + bias1.to(dtype))
    return (weight2.to(dtype) @ hidden + bias2.to(dtype)).reshape(spectrum.shape)


def _soft_shrink(x: Tensor, threshold: float) -> Tensor:
    # Not every runtime knows soft shrinkage by name, or a change of sign.
    return x - x.clamp(-threshold, threshold)


@in_float32
def _complex_product(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise complex product of two spectra ``B × C × 2 × H × Wf``."""
    a_real, a_imaginary = a.unbind(2)
    b_real, b_imaginary = b.unbind(2)
    return torch.stack([a_real * b_real - a_imaginary * b_imaginary, a_real * b_imaginary + a_imaginary * b_real], 2)
