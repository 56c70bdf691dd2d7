"""The table of models: ``metamixer models``."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from tyro.conf import Positional, arg

from metamixer.data.transforms import Preprocessing
from metamixer.errors import MetamixerError
from metamixer.models import create_model, list_models
from metamixer.printing import Table
from metamixer.weights import list_weights


def models_command(pattern: Positional[Annotated[str, arg(metavar="PATTERN")]] = "*") -> None:
    """List models: parameters, input size, and tags of their weights.

    Args:
        pattern: names to list, with ``*`` and ``?`` for any characters, such as 'casvit*'.
    """
    names = list_models(pattern)
    if not names:
        near = get_close_matches(pattern.strip("*?"), list_models(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise MetamixerError(f"no model's name matches {pattern!r}{hint}")
    weights = "weights (default first)"
    table = Table(("model", "parameters (M)", "input size", weights), left=(weights,))
    for name in names:
        tags = [weights.partition(".")[2] for weights in list_weights(name)]
        model = _without_memory(name)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        cfg = getattr(model, "pretrained_cfg", None)
        side = "–" if cfg is None else str(Preprocessing.of(cfg).image_size)  # other networks take no squares
        table.add(name, f"{parameters / 1e6:.2f}", side, ", ".join(tags) or "–")
    table.show()


def _without_memory(name: str) -> nn.Module:
    with torch.device("meta"), _WithoutInitialisation():
        return create_model(name, pretrained=False)


class _WithoutInitialisation(TorchFunctionMode):
    """Leaves out in-place operations: they change no shape, and take seconds per model on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and name != "requires_grad_":
            return args[0] if args else kwargs["tensor"]  # torch.nn.init passes its tensor by name
        return func(*args, **kwargs)
