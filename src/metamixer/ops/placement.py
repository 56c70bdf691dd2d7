"""``device=`` and ``dtype=`` for constructors, as timm's and PyTorch's layers take them."""

from __future__ import annotations

from contextlib import nullcontext
from functools import wraps
from inspect import signature
from typing import Any, TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def placed(cls: type[ModuleT]) -> type[ModuleT]:
    """Class decorator: the constructor also takes ``device`` and ``dtype``, for all parameters and buffers.

    They are made on that device and then converted, so ``"meta"`` takes no memory. Without them, or with None, all is
    as PyTorch's defaults and ``with torch.device(...)`` say. A constructor with arguments of these names keeps its own.
    """
    build = cls.__init__
    if "device" in signature(build).parameters:
        return cls

    @wraps(build)
    def build_there(
        self: ModuleT,
        *args: Any,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        with nullcontext() if device is None else torch.device(device):
            build(self, *args, **kwargs)
        if dtype is not None:
            self.to(dtype)

    cls.__init__ = build_there  # type: ignore[method-assign, assignment]
    return cls
