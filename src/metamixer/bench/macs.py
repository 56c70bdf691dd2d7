"""Multiply-accumulate operations of a model, counted while it runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from metamixer.ops import use_transform
from metamixer.tasks.evaluation_mode import evaluation_mode


def count_macs(model: nn.Module, image_size: int, in_chans: int = 3) -> int:
    """MACs of one picture of ``image_size`` pixels: convolutions and matrix products.

    The spectral transforms count too, as the matrix products that an exported graph holds. The papers leave them
    out, so their numbers are a little smaller for models with transforms. Elementwise work is not counted.
    """
    device = next(model.parameters()).device
    return count_macs_of(model, torch.zeros(1, in_chans, image_size, image_size, device=device))


def count_macs_of(model: nn.Module, *inputs: Tensor) -> int:
    """MACs of one call, counted as :func:`count_macs` does."""
    counter = FlopCounterMode(display=False)
    with evaluation_mode(model), torch.no_grad(), use_transform("matmul"), counter:
        model(*inputs)
    return counter.get_total_flops() // 2
