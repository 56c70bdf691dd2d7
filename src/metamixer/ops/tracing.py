"""Whether a graph is being recorded."""

from __future__ import annotations

import torch


def is_tracing() -> bool:
    """True while ``torch.compile``, ``torch.export`` or ``torch.jit.trace`` (or an exporter built on them) records."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
