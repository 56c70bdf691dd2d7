"""Softmax self-attention over all positions of the map, as a MetaMixer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.mixers.conv_norm import draw_weights
from metamixer.mixers.framework import MetaMixer
from metamixer.mixers.registry import register_mixer


@register_mixer("attention")
class SoftmaxAttention(MetaMixer):
    """Multi-head self-attention (arXiv 1706.03762): softmax(Q Kᵀ / √d) V. Cost grows with the square of the tokens.

    Args:
        dim: channels, a multiple of ``head_dim`` (or smaller than it: then one head).
        head_dim: channels per head; by default the largest divisor of ``dim`` up to 32.

    Raises ValueError where ``dim`` is no multiple of ``head_dim``.
    """

    key: nn.Module
    value: nn.Module
    reads_input = ("query", "key", "value")

    def __init__(self, dim: int, head_dim: int | None = None) -> None:
        if head_dim is None:
            head_dim = next(d for d in range(min(dim, 32), 0, -1) if dim % d == 0)
        head_dim = min(dim, head_dim)
        if dim % head_dim:
            raise ValueError(f"attention needs channels in multiples of head_dim={head_dim}, got {dim}")
        super().__init__(
            query=nn.Conv2d(dim, dim, 1),
            key=nn.Conv2d(dim, dim, 1),
            value=nn.Conv2d(dim, dim, 1),
            project=nn.Conv2d(dim, dim, 1),
        )
        self.head_dim = head_dim

    def init_weights(self) -> None:
        self.apply(draw_weights)

    def _heads(self, x: Tensor) -> Tensor:
        """``B × C × H × W`` to ``B × heads × tokens × head_dim``."""
        return x.unflatten(1, (-1, self.head_dim)).flatten(3).transpose(2, 3)

    def interact(self, query: Tensor, key: Tensor) -> Tensor:
        scores = self._heads(query) @ self._heads(key).transpose(2, 3)
        return scores * self.head_dim**-0.5

    def activate(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=-1)

    def aggregate(self, coefficients: Tensor, value: Tensor) -> Tensor:
        out = coefficients @ self._heads(value)
        return out.transpose(2, 3).reshape(value.shape)

    def forward(self, x: Tensor) -> Tensor:
        # The same formula in torch's fused kernel, which never stores the tokens × tokens matrix.
        query, key, value = self._heads(self.query(x)), self._heads(self.key(x)), self._heads(self.value(x))
        out = F.scaled_dot_product_attention(query, key, value)
        return self.project(out.transpose(2, 3).reshape(x.shape))
