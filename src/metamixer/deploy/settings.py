"""How an artefact is to be written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np

from metamixer.errors import MetamixerError

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class Options:
    """What the user asks of an export; see :func:`metamixer.deploy.export.export`.

    A target or a model may refuse some of them, by name.
    """

    weights: Precision = "fp32"
    sizes: tuple[int, int] | None = None
    dynamic_batch: bool = False
    normalise: bool = False
    softmax: bool = False
    nms: bool = False
    features: bool = False

    def refuse(self, by: str, reasons: Mapping[str, str]) -> None:
        """Raises MetamixerError where something is asked for that has a reason against it, by its name."""
        asked = {self.weights, *(name for name, value in vars(self).items() if value)}
        for name, reason in reasons.items():
            if name in asked:
                raise MetamixerError(f"{by} exports know no {name.replace('_', ' ')}: {reason}")


NOTHING = Options()


class Selection(NamedTuple):
    """Overlap, score threshold and limit of a non-maximum suppression."""

    overlap: float
    score_threshold: float
    limit: int


@dataclass(frozen=True)
class Settings:
    """What a target's ``write`` is told besides the model.

    Args:
        weights: number format of the weights; with int8 the activations are quantised too, where the target can.
        metadata: text entries to store where the format has a place for them.
        dynamic_batch: accept any number of pictures at once.
        sizes: smallest and largest side in pixels that the artefact accepts; None for the example's size alone.
        calibration: ``N × C × H × W`` pictures as the graph takes them, from which int8 learns the activations' ranges.
        outputs: names of the outputs, in their order.
        input_name: name of the input, where the format has names.
        selection: how to choose among the boxes that the model gives, where the target can.
    """

    weights: Precision = "fp32"
    metadata: Mapping[str, str] = field(default_factory=dict)
    dynamic_batch: bool = False
    sizes: tuple[int, int] | None = None
    calibration: np.ndarray | None = None
    outputs: tuple[str, ...] = ("logits",)
    input_name: str = "pictures"
    selection: Selection | None = None


PLAIN = Settings()
