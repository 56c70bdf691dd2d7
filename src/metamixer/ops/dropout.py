"""Which numbers dropout keeps, drawn quickly on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

_LEVELS = 2**16


def kept(like: Tensor, rate: float) -> Tensor:
    """Ones, and zeros with probability ``rate``: to multiply ``like`` by, whose shape, type and device they have.

    On a CPU torch draws one Bernoulli number after the other, which takes longer than most layers around it. Here each
    of the generator's 64-bit numbers makes four; the rate is rounded to 1 / 65536 for that.
    """
    if like.device.type != "cpu":
        return torch.empty_like(like).bernoulli_(1 - rate)
    count = like.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    first = min(round(rate * _LEVELS), _LEVELS - 1) - _LEVELS // 2
    return (bits.view(torch.int16)[:count] >= first).to(like.dtype).view(like.shape)
