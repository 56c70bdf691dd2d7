"""Networks that classify no pictures: super-resolution, forecasting, point clouds.

They are created by name as the backbones are, but timm does not know them: its users expect classifiers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from torch import nn

from metamixer.errors import MetamixerError
from metamixer.networks.forecasting import FFNetTSF
from metamixer.networks.point_clouds import FFNetPoints
from metamixer.networks.super_resolution import FFNetSR, tiled, upscale
from metamixer.weights.load import load_into, read_network
from metamixer.weights.released import to_our_layout

__all__ = ["NETWORKS", "FFNetPoints", "FFNetSR", "FFNetTSF", "create_network", "tiled", "upscale"]

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "ffnet_points": FFNetPoints,
    "ffnet_sr": partial(FFNetSR, depth=48),
    "ffnet_sr_light": FFNetSR,
    "ffnet_tsf": FFNetTSF,
}


def create_network(name: str, checkpoint: str | Path | None = None, **kwargs: Any) -> nn.Module:
    """The network of that name, one of ``NETWORKS``.

    Args:
        name: the network.
        checkpoint: file with its weights, in the authors' layout or by our names.
        kwargs: the network's own arguments.

    Raises MetamixerError for arguments that the network does not know or cannot take, and a checkpoint that does not
    fit.
    """
    builder = NETWORKS[name]
    known = signature(builder).parameters
    unknown = [argument for argument in kwargs if argument not in known]
    if unknown:
        raise MetamixerError(f"{name} takes no argument {unknown[0]!r}; it takes {', '.join(known)}")
    network = builder(**kwargs)
    if checkpoint is not None:
        file = Path(checkpoint).expanduser()
        load_into(network, to_our_layout(read_network(file)), file)
    return network
