"""Who races: mixers with their options, each in the same backbone."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from torch import nn

from metamixer.deploy.export import count_parameters
from metamixer.errors import MetamixerError
from metamixer.mixers import list_mixers
from metamixer.models import create_model, list_models
from metamixer.tasks.classification import Classification
from metamixer.tasks.task import key_values

_COMMA = re.compile(r",(?![^(\[{]*[)\]}])")  # one that is not within brackets, as options may be tuples


@dataclass(frozen=True)
class Contender:
    """A mixer and its options.

    Attributes:
        label: as it was asked for, such as ``dsm:dynamic=False``.
        mixer: its registered name.
        options: further arguments of the mixer.
        ffn_expansion: hidden channels of the backbone's FFNs as a multiple, where not the backbone's own.
    """

    label: str
    mixer: str
    options: dict[str, Any] = field(default_factory=dict)
    ffn_expansion: float | None = None

    @property
    def folder(self) -> str:
        """The label as a file's name."""
        return re.sub(r"[^\w.=+-]+", "_", self.label)

    @property
    def model_args(self) -> tuple[str, ...]:
        """The backbone's arguments as texts ``key=value``."""
        texts = [f"mixer={self.mixer}"]
        if self.options:
            texts.append(f"mixer_args={self.options!r}")
        if self.ffn_expansion is not None:
            texts.append(f"ffn_expansion={self.ffn_expansion}")
        return tuple(texts)


def contenders(mixers: Sequence[str]) -> list[Contender]:
    """Contenders from texts such as ``aff,dsm:dynamic=False:bands=7``; each once.

    Raises MetamixerError for none at all, an unknown mixer (the nearest is named), or options not written so.
    """
    texts = [text.strip() for several in mixers for text in _COMMA.split(several)]
    found = []
    for label in dict.fromkeys(filter(None, texts)):
        mixer, *options = label.split(":")
        if mixer not in list_mixers():
            near = get_close_matches(mixer, list_mixers(), 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known mixers: {', '.join(list_mixers())}"
            raise MetamixerError(f"unknown mixer {mixer!r}; {hint}")
        found.append(Contender(label, mixer, key_values(options)))
    if not found:
        raise MetamixerError("name at least one mixer to race")
    folders = {contender.folder for contender in found}
    if len(folders) < len(found):
        raise MetamixerError(f"two of {', '.join(c.label for c in found)} would share a folder; write them differently")
    return found


def check_backbone(task: Classification) -> None:
    """Raise MetamixerError for a backbone that is unknown (the nearest is named) or that would not start afresh."""
    if "." in task.model or task.pretrained or task.checkpoint:
        raise MetamixerError("a race starts from fresh weights: leave out tags, pretrained and checkpoint")
    if task.model not in list_models():
        create_model(task.model)  # says what is wrong with the name


def entry(task: Classification, contender: Contender) -> tuple[Classification, nn.Module]:
    """The opened task and its network with this mixer. Raises MetamixerError where the backbone cannot take it."""
    own = copy.copy(task)
    own.model_args = (*task.model_args, *contender.model_args)
    try:
        return own, own.create_model()
    except (MetamixerError, TypeError, ValueError) as error:
        raise MetamixerError(f"{task.model} cannot take the mixer {contender.label}: {error}") from None


def equal_parameters(task: Classification, found: Sequence[Contender]) -> tuple[list[Contender], int]:
    """The contenders with FFNs so wide that all networks have as many parameters as the largest, and that number.

    The parameters grow linearly with the FFNs' width, so two networks tell the width that is needed; what is left is
    rounding to whole channels. Raises MetamixerError for a backbone without ``ffn_expansion``.
    """

    def parameters(contender: Contender) -> int:
        return count_parameters(entry(task, contender)[1])

    largest = max(parameters(contender) for contender in found)
    matched = []
    for contender in found:
        # Far apart, and of whole numbers, so that rounding does not show in the slope.
        narrow, wide = (parameters(replace(contender, ffn_expansion=expansion)) for expansion in (1.0, 9.0))
        expansion = 1 + 8 * (largest - narrow) / (wide - narrow)
        matched.append(replace(contender, ffn_expansion=round(expansion, 3)))
    return matched, largest
