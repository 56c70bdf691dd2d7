"""Convolutional additive token mixer, CATM (CAS-ViT, arXiv 2408.03703): additive similarity instead of a product."""

from __future__ import annotations

from torch import Tensor, nn

from metamixer.mixers.conv_norm import ConvNorm, draw_weights
from metamixer.mixers.framework import MetaMixer
from metamixer.mixers.registry import register_mixer
from metamixer.ops.placement import placed


@placed
class SpatialGate(nn.Module):
    """``x ⊙ sigmoid(s(x))`` with one gate per position: depthwise 3×3, norm, ReLU, 1×1 to one channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = ConvNorm(dim, dim, 3, groups=dim, bias=True, act=nn.ReLU())
        self.gate = nn.Conv2d(dim, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.depthwise(x)).sigmoid()


@placed
class ChannelGate(nn.Module):
    """``x ⊙ sigmoid(c(x))`` with one gate per channel, from the mean over positions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()


def _context(dim: int) -> nn.Sequential:
    """Φ of equation 5: spatial, then channel interaction."""
    return nn.Sequential(SpatialGate(dim), ChannelGate(dim))


@register_mixer("additive")
class ConvAdditiveTokenMixer(MetaMixer):
    """``D₂(D₁(Φ(Q) + Φ(K)) ⊙ V)`` with 1×1 convolutions for Q, K, V and depthwise 3×3 for D₁ and D₂ (equation 6).

    Args:
        dim: any number of channels.
        qkv_bias: whether the 1×1 convolutions carry a bias; the released networks have none.
    """

    reads_input = ("qkv",)

    def __init__(self, dim: int, qkv_bias: bool = False) -> None:
        super().__init__(
            activate=nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            project=nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
        )
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=qkv_bias)
        self.query_context = _context(dim)
        self.key_context = _context(dim)

    def init_weights(self) -> None:
        self.apply(draw_weights)

    def query(self, x: Tensor) -> Tensor:
        return self.query_context(self.qkv(x).chunk(3, dim=1)[0])

    def key(self, x: Tensor) -> Tensor:
        return self.key_context(self.qkv(x).chunk(3, dim=1)[1])

    def interact(self, query: Tensor, key: Tensor) -> Tensor:
        return query + key

    def value(self, x: Tensor) -> Tensor:
        return self.qkv(x).chunk(3, dim=1)[2]

    def aggregate(self, coefficients: Tensor, value: Tensor) -> Tensor:
        return coefficients * value

    def forward(self, x: Tensor) -> Tensor:
        # Straight line: one convolution for query, key and value.
        query, key, value = self.qkv(x).chunk(3, dim=1)
        return self.project(self.activate(self.query_context(query) + self.key_context(key)) * value)
