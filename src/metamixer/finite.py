"""Values that are no numbers, said in one sentence wherever a network gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from metamixer.errors import MetamixerError


def called(model: nn.Module) -> str:
    """Architecture of one of our networks or a timm model, else the name of its class."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    made_by: Any = getattr(model, "made_by", None)  # of the networks that timm does not know
    return cfg.get("architecture") or (made_by[0] if made_by else type(model).__name__.lower())


def strange_weight(model: nn.Module) -> str | None:
    """Name of the first weight that holds NaN or infinity; None where there is none.

    An infinite buffer, such as a mask, is meant; one that holds NaN is not.
    """
    weights = dict(model.named_parameters())
    for name, value in model.state_dict(keep_vars=True).items():
        if value.is_meta or not value.is_floating_point():
            continue
        if not (torch.isfinite(value) if name in weights else ~torch.isnan(value)).all():
            return name
    return None


def check_weights(model: nn.Module, name: str | None = None) -> None:
    """Raises MetamixerError where a weight holds NaN or infinity, naming it; ``name`` is what the message calls it."""
    weight = strange_weight(model)
    if weight is not None:
        raise MetamixerError(
            f"the weights of {name or called(model)} hold values that are not finite, first in {weight}"
        )


def first_strange(outputs: Any, names: Sequence[str] = ()) -> str | None:
    """What to call the first of a network's outputs that holds NaN or infinity; None where all are finite.

    Args:
        outputs: a tensor or array, or lists, tuples and dicts of such, as networks and runtimes give them.
        names: of the outputs, in their order; otherwise they are called by key or number.
    """
    if isinstance(outputs, np.ndarray):
        outputs = torch.from_numpy(outputs)
    if isinstance(outputs, Tensor):
        finite = not outputs.is_floating_point() or bool(torch.isfinite(outputs).all())
        return None if finite else (names[0] if names else "its output")
    pairs: list[tuple[Any, Any]] = []
    if isinstance(outputs, Mapping):
        pairs = list(outputs.items())
    elif isinstance(outputs, (list, tuple)):
        pairs = [(names[i] if i < len(names) else f"output {i}", value) for i, value in enumerate(outputs)]
    for key, value in pairs:
        if first_strange(value) is not None:
            return str(key)
    return None


def check_outputs(outputs: Any, model: nn.Module, name: str | None = None, names: Sequence[str] = ()) -> None:
    """Raises MetamixerError where what a network gives is not finite, naming the output, or the weights at fault.

    Args:
        outputs: as of :func:`first_strange`.
        model: the network that gave them.
        name: what the message calls it.
        names: of the outputs, in their order.
    """
    output = first_strange(outputs, names)
    if output is not None:
        check_weights(model, name)
        raise MetamixerError(
            f"{name or called(model)} gives values that are not finite in {output}: its weights are finite, but what "
            "they compute overflows"
        )


def watch_outputs(model: nn.Module) -> RemovableHandle:
    """Have every call of the model looked at by :func:`check_outputs`: inside a ``with`` block, or from here on."""
    return model.register_forward_hook(lambda module, _, outputs: check_outputs(outputs, module))
