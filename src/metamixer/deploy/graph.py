"""What is exported: the merged model, with normalisation before and softmax behind it on request."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from metamixer.deploy.settings import PLAIN, Settings
from metamixer.ops import use_transform


class WithPreprocessing(nn.Module):
    """``softmax(model((x / 255 - mean) / std))``, of which either end may be left out.

    Args:
        model: ``B × C × H × W`` to ``B × classes``.
        mean, std: per channel, of pictures between 0 and 1; None where the model is given normalised pictures. With
            them the graph takes float32 pictures between 0 and 255.
        softmax: give probabilities instead of logits.
    """

    def __init__(
        self, model: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None, softmax: bool
    ) -> None:
        super().__init__()
        self.model = model
        self.softmax = softmax
        if mean is not None and std is not None:
            scale = 1 / (255 * torch.tensor(std))
            self.register_buffer("scale", scale[:, None, None])
            self.register_buffer("shift", (-torch.tensor(mean) / torch.tensor(std))[:, None, None])
        else:
            self.scale = self.shift = None

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is not None:
            x = x * self.scale + self.shift
        x = self.model(x)
        return x.softmax(1) if self.softmax else x


def capture(model: nn.Module, example: Tensor, settings: Settings = PLAIN) -> torch.export.ExportedProgram:
    """The model's graph for pictures like ``example``, or for any number and size that the settings ask for.

    The transforms' matrices are constants in it where the size is fixed, and computed from the size where it is not.
    """
    keep_matrices(model, example)
    shapes: dict[int, Any] = {}
    if settings.dynamic_batch:
        example = torch.cat([example, example])  # a batch of one would be taken for a constant of the program
        shapes[0] = torch.export.Dim("batch")
    if settings.sizes is not None:
        low, high = settings.sizes
        shapes |= {2: torch.export.Dim("height", min=low, max=high), 3: torch.export.Dim("width", min=low, max=high)}
    return torch.export.export(model, (example,), dynamic_shapes=(shapes,) if shapes else None)


def keep_matrices(model: nn.Module, example: Tensor) -> None:
    """Leave the transforms' matrices for pictures like ``example`` in the cache, from which a graph takes them."""
    with torch.no_grad(), use_transform("matmul"):  # large maps would take the FFT, which needs none
        model(example)


def in_half(model: nn.Module) -> nn.Module:
    """A copy that computes in half precision and takes and gives float32."""
    return _HalfInside(deepcopy(model).half())


class _HalfInside(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        outputs = self.model(x.half())
        return tuple(output.float() for output in outputs) if isinstance(outputs, tuple) else outputs.float()
