"""Token mixers: every one maps ``B × C × H × W`` to the same shape, for any height and width."""

from metamixer.mixers.additive import ConvAdditiveTokenMixer
from metamixer.mixers.aff import AdaptiveFrequencyFilter
from metamixer.mixers.attention import SoftmaxAttention
from metamixer.mixers.dsm import DynamicSpectrumMixer
from metamixer.mixers.ffnified import FFNifiedAttention
from metamixer.mixers.framework import MetaMixer
from metamixer.mixers.registry import create_mixer, list_mixers, register_mixer
from metamixer.mixers.simple import IdentityMixer, Pooling

__all__ = [
    "AdaptiveFrequencyFilter",
    "ConvAdditiveTokenMixer",
    "DynamicSpectrumMixer",
    "FFNifiedAttention",
    "IdentityMixer",
    "MetaMixer",
    "Pooling",
    "SoftmaxAttention",
    "create_mixer",
    "list_mixers",
    "register_mixer",
]
