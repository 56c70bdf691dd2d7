"""Dropout drawn quickly on a CPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

_LEVELS = 2**16
_STREAMS = 4  # of random numbers, drawn by as many threads as torch uses; the numbers do not depend on how many
_FAR = 1e4  # GELU of less than minus this is 0, and so is its slope


def bernoulli_like(x: Tensor, probability: float) -> Tensor:
    """Ones with that probability, and zeros, of the shape, type and device of ``x``.

    On a CPU torch draws one Bernoulli number after the other, which takes longer than most layers around it. Here
    NumPy's quickest generator, seeded by torch's, draws 64 bits for four of them; the probability is rounded to
    1 / 65536 for that.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # another library's numbers cannot be traced
        return torch.empty_like(x).bernoulli_(probability)
    ones = torch.empty(x.shape, dtype=x.dtype)
    below = min(max(round(probability * _LEVELS), 0), _LEVELS) - _LEVELS // 2
    size = -(-x.numel() // (4 * _STREAMS))
    seeds = np.random.SeedSequence(int(torch.empty((), dtype=torch.int64).random_())).spawn(_STREAMS)

    def draw(seed: np.random.SeedSequence) -> NDArray[np.bool_]:
        return np.asarray(np.random.SFC64(seed).random_raw(size)).view(np.int16) < below

    with ThreadPoolExecutor(min(_STREAMS, torch.get_num_threads())) as threads:
        for part, drawn in zip(ones.view(-1).split(4 * size), threads.map(draw, seeds), strict=False):
            part.copy_(torch.from_numpy(drawn)[: len(part)])
    return ones


def drop_(x: Tensor, rate: float) -> Tensor:
    """Set to zero with probability ``rate``, in place; what is kept is *not* scaled up."""
    return x.mul_(bernoulli_like(x, 1 - rate)) if rate else x


def gelu_of_kept_(x: Tensor, rate: float) -> Tensor:
    """GELU of :func:`drop_`, which overwrites ``x``.

    As GELU of zero is zero and so is that of a far negative number, with a slope of zero: what is dropped is moved
    there, and neither has the mask to be kept nor the gradient to be masked.
    """
    return F.gelu(x.sub_(bernoulli_like(x, rate), alpha=_FAR) if rate else x)
