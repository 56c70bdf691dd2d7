"""Our own checkpoint: one safetensors file that says which network it belongs to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from metamixer.data.files import replace_when_done
from metamixer.data.transforms import Preprocessing


def save_checkpoint(
    model: nn.Module,
    path: str | Path,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model's weights with its architecture, classes and preprocessing as metadata.

    ``dtype`` (say ``torch.float16``) converts floating-point tensors. The file appears whole or not at all.
    """
    state = {}
    for name, tensor in model.state_dict().items():
        converted = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        state[name] = converted.detach().cpu().contiguous()
    metadata = {"format": "pt", "architecture": model.pretrained_cfg["architecture"]}
    if classes is not None:
        metadata["classes"] = json.dumps(list(classes))
    if preprocessing is not None:
        metadata["preprocessing"] = json.dumps(asdict(preprocessing))
    with replace_when_done(path) as temporary:
        save_file(state, temporary, metadata)
