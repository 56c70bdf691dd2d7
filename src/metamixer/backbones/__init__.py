"""Backbones: one file per family, each registered with timm when it is imported."""

from metamixer.backbones.affnet import AFFNet
from metamixer.backbones.casvit import CASViT
from metamixer.backbones.dsm import DSMNet
from metamixer.backbones.ffnet import FFNet
from metamixer.backbones.metaformer import MetaFormer

__all__ = ["AFFNet", "CASViT", "DSMNet", "FFNet", "MetaFormer"]
