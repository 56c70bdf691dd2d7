"""FFN with a depthwise convolution in front: the channel mixer of FFNet (MetaMixer paper, arXiv 2406.02021)."""

from __future__ import annotations

from torch import nn

from metamixer.mixers.conv_norm import ConvNorm, ParallelDepthwise, draw_weights
from metamixer.mixers.framework import MetaMixer


class ConvFFN(MetaMixer):
    """Depthwise convolution as query, then an FFN whose weights are key and value (section 3.2).

    Args:
        dim: channels.
        kernel_size: odd side of the depthwise kernel; 7 carries a parallel 3×3 that merges, 1 leaves it out.
        expansion: hidden channels, as a multiple of ``dim``.
    """

    def __init__(self, dim: int, kernel_size: int = 3, expansion: float = 4.0) -> None:
        hidden = int(dim * expansion)
        query: nn.Module | None = None
        if kernel_size == 7:
            query = ParallelDepthwise(dim, (7, 3))
        elif kernel_size > 1:
            query = ConvNorm(dim, dim, kernel_size, groups=dim)
        # With a padded convolution in front no norm can be folded into this mixer.
        self.reads_input = () if query else ("interact",)
        super().__init__(
            query=query,
            interact=nn.Conv2d(dim, hidden, 1),
            activate=nn.GELU(),
            aggregate=nn.Conv2d(hidden, dim, 1),
        )

    def init_weights(self) -> None:
        self.apply(draw_weights)
