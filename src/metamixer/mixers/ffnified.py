"""FFNified attention (MetaMixer paper, arXiv 2406.02021, section 3.2): attention's steps with convolutions inside."""

from __future__ import annotations

from torch import nn

from metamixer.mixers.conv_norm import ConvNorm, ParallelDepthwise, draw_weights
from metamixer.mixers.framework import MetaMixer
from metamixer.mixers.registry import register_mixer


@register_mixer("ffnified")
class FFNifiedAttention(MetaMixer):
    """1×1 query, a depthwise kernel as key, GELU, a depthwise kernel as value; key and value are learned weights.

    Args:
        dim: any number of channels.
        kernel_size: odd side of both depthwise kernels.
        parallel: whether each carries a parallel smaller kernel with its own norm, which merges after training.
            By default as in the release: for 7×7 (with 3×3) and not for smaller kernels.

    Raises ValueError for an even ``kernel_size``.
    """

    reads_input = ("query",)

    def __init__(self, dim: int, kernel_size: int = 7, parallel: bool | None = None) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"ffnified needs an odd kernel_size, got {kernel_size}")
        super().__init__(
            query=ConvNorm(dim, dim),
            interact=_depthwise(dim, kernel_size, parallel),
            activate=nn.GELU(),
            aggregate=_depthwise(dim, kernel_size, parallel),
        )

    def init_weights(self) -> None:
        self.apply(draw_weights)


def _depthwise(dim: int, kernel_size: int, parallel: bool | None) -> nn.Module:
    if kernel_size >= 7 if parallel is None else parallel:
        return ParallelDepthwise(dim, (kernel_size, max(1, kernel_size - 4)))
    return nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
