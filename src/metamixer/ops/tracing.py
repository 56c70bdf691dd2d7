"""Whether a graph is being recorded, and which sizes are numbers in it."""

from __future__ import annotations

import torch
from torch.fx.experimental.symbolic_shapes import has_static_value


def is_tracing() -> bool:
    """True while ``torch.compile``, ``torch.export`` or ``torch.jit.trace`` (or an exporter built on them) records."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def is_number(size: int) -> bool:
    """True for a size that is a number, False for one that is a symbol of the graph being recorded.

    ``torch.compile`` gives out its symbols as integers: to use one as such would tie the graph to that size.
    """
    return isinstance(size, int) and has_static_value(size)
