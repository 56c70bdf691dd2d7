"""Baselines that a token mixer has to beat: average pooling and nothing at all."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.mixers.framework import MetaMixer
from metamixer.mixers.registry import register_mixer
from metamixer.ops.placement import placed


@register_mixer("pooling")
class Pooling(MetaMixer):
    """Mean of the k × k neighbourhood less the input (PoolFormer, arXiv 2111.11418); no parameters.

    Args:
        dim: any number of channels (unused).
        kernel_size: odd side of the neighbourhood.

    Raises ValueError for an even ``kernel_size``.
    """

    def __init__(self, dim: int, kernel_size: int = 3) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"pooling needs an odd kernel_size, got {kernel_size}")
        super().__init__()
        self.kernel_size = kernel_size

    def aggregate(self, x: Tensor) -> Tensor:
        mean = F.avg_pool2d(x, self.kernel_size, 1, self.kernel_size // 2, count_include_pad=False)
        return mean - x


@register_mixer("identity")
@placed
class IdentityMixer(nn.Identity):
    """No token mixing: the input as it is.

    Args:
        dim: any number of channels (unused).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
