"""Which tensors can be weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from metamixer.errors import MetamixerError

_NUMBERS = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}
"""Types of numbers that weights, labels and counters have."""


def plain_tensors(state: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """The tensors, each one that weights can be: dense numbers in memory of their own.

    Raises MetamixerError, naming the first, for sparse, quantised, nested and complex ones, those on the meta device
    (which hold no numbers) and those that repeat few numbers by their strides (whose size nothing bounds).
    """
    for name, tensor in state.items():
        kinds = {
            f"of the type {type(tensor).__name__}": type(tensor) not in (Tensor, nn.Parameter, nn.Buffer),
            "sparse": tensor.layout != torch.strided,
            "quantised": tensor.is_quantized,
            "nested": tensor.is_nested,
            "complex": tensor.is_complex(),
            "on the meta device": tensor.is_meta,
            f"of the type {tensor.dtype}": tensor.dtype not in _NUMBERS and not tensor.is_quantized,
        }
        found = next((kind for kind, holds in kinds.items() if holds), None)
        if found is None and tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            found = "larger than what is stored of it"
        if found is not None:
            raise MetamixerError(f"{source}: the tensor {name} is {found}, which no weights are")
    return dict(state)
