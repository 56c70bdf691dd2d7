"""Create models by name: a thin layer over timm's factory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from torch import nn

import metamixer.backbones  # noqa: F401  registers with timm


def create_model(name: str, *, pretrained: bool = False, checkpoint: str | Path | None = None, **kwargs: Any) -> nn.Module:
    return timm.create_model(name, pretrained=pretrained, **kwargs)
