"""How an artefact is to be written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class Settings:
    """What a target's ``write`` is told besides the model.

    Args:
        weights: number format of the weights; with int8 the activations are quantised too, where the target can.
        metadata: text entries to store where the format has a place for them.
        dynamic_batch: accept any number of pictures at once.
        sizes: smallest and largest side in pixels that the artefact accepts; None for the example's size alone.
        calibration: ``N × C × H × W`` pictures as the graph takes them, from which int8 learns the activations' ranges.
        output: name of the output, ``"logits"`` or ``"probabilities"``.
    """

    weights: Precision = "fp32"
    metadata: Mapping[str, str] = field(default_factory=dict)
    dynamic_batch: bool = False
    sizes: tuple[int, int] | None = None
    calibration: np.ndarray | None = None
    output: str = "logits"


PLAIN = Settings()
