"""Backbones: one file per family, each registered with timm when it is imported (``_timm_registration.py``)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import timm  # noqa: F401  before any module here is half imported: it has all families imported

# Class → module, imported on first use: a family that cannot be loaded does not take the others with it.
_CLASSES = {"AFFNet": "affnet", "CASViT": "casvit", "DSMNet": "dsm", "FFNet": "ffnet", "MetaFormer": "metaformer"}
__all__ = ["AFFNet", "CASViT", "DSMNet", "FFNet", "MetaFormer"]

if TYPE_CHECKING:
    from metamixer.backbones.affnet import AFFNet
    from metamixer.backbones.casvit import CASViT
    from metamixer.backbones.dsm import DSMNet
    from metamixer.backbones.ffnet import FFNet
    from metamixer.backbones.metaformer import MetaFormer


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module 'metamixer.backbones' has no attribute {name!r}")
    return getattr(import_module(f"metamixer.backbones.{_CLASSES[name]}"), name)
