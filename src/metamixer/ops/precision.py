"""Transforms run in float32 whatever autocast says: half-precision sums over a whole map lose the high frequencies.

What runs so is one node to ``torch.fx``, which cannot follow a choice by type or size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy


def autocast_is_on(x: Tensor) -> bool:
    """Does autocast work on the device of ``x``? Devices that do not know it, such as ``meta``, raise if asked."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run ``function(x, ...)`` outside autocast with ``x`` in float32 at least (float64 stays float64)."""

    @wraps(function)
    def wrapper(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(x, Proxy):
            return x.tracer.create_proxy("call_function", wrapper, (x, *args), kwargs)
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        # Entered only where needed: an autocast region would show up as an extra node in exported graphs.
        if autocast_is_on(x):
            with torch.autocast(x.device.type, enabled=False):
                return function(x, *args, **kwargs)
        return function(x, *args, **kwargs)

    return wrapper
