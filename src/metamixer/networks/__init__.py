"""Networks that classify no pictures: super-resolution, forecasting, point clouds.

They are created by name as the backbones are, but timm does not know them: its users expect classifiers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from metamixer.data.files import replace_when_done
from metamixer.errors import MetamixerError
from metamixer.networks.forecasting import FFNetTSF
from metamixer.networks.point_clouds import FFNetPoints
from metamixer.networks.super_resolution import FFNetSR, tiled, upscale
from metamixer.weights.load import load_into, read_network
from metamixer.weights.released import to_our_layout

__all__ = [
    "NETWORKS",
    "FFNetPoints",
    "FFNetSR",
    "FFNetTSF",
    "about",
    "create_network",
    "save_network",
    "tiled",
    "upscale",
]

#: "nano" and "tiny" are our own sizes, for a laptop and for what is shipped with the package; the others the authors'.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "ffnet_points": FFNetPoints,
    "ffnet_points_tiny": partial(
        FFNetPoints,
        enc_depths=(1, 1, 1, 1),
        enc_channels=(16, 32, 64, 128),
        dec_depths=(1, 1, 1),
        dec_channels=(32, 32, 64),
        mlp_ratio=2.0,
    ),
    "ffnet_sr": partial(FFNetSR, depth=48),
    "ffnet_sr_light": FFNetSR,
    "ffnet_sr_nano": partial(FFNetSR, dim=32, depth=8, large_init=True),
    "ffnet_tsf": FFNetTSF,
}


def create_network(name: str, checkpoint: str | Path | None = None, **kwargs: Any) -> nn.Module:
    """The network of that name, one of ``NETWORKS``.

    Args:
        name: the network.
        checkpoint: file with its weights, in the authors' layout or by our names. A file that :func:`save_network`
            wrote also tells the arguments, of which ``kwargs`` may change some.
        kwargs: the network's own arguments.

    Raises MetamixerError for arguments that the network does not know or cannot take, and a checkpoint that does not
    fit.
    """
    builder = NETWORKS[name]
    file = None if checkpoint is None else Path(checkpoint).expanduser()
    written = {} if file is None else _written(file)
    if written.get("architecture", name) != name:
        raise MetamixerError(f"{file} belongs to {written['architecture']}, not to {name}")
    kwargs = json.loads(written.get("arguments", "{}")) | kwargs
    known = signature(builder).parameters
    unknown = [argument for argument in kwargs if argument not in known]
    if unknown:
        raise MetamixerError(f"{name} takes no argument {unknown[0]!r}; it takes {', '.join(known)}")
    for argument, value in kwargs.items():
        if not _is_like(value, known[argument].default):
            raise MetamixerError(
                f"{name}: {argument} cannot be {value!r}; it is {known[argument].default!r} by default"
            )
    network = builder(**kwargs)
    network.made_by = (name, kwargs)
    network.about = json.loads(written.get("about", "{}"))
    if file is not None:
        load_into(network, to_our_layout(read_network(file)), file)
    return network


def _is_like(value: object, default: object) -> bool:
    """Is it of the default's kind: true or false, a whole number, a number, or several whole numbers?"""
    if isinstance(default, tuple):
        return isinstance(value, tuple | list) and all(_is_like(entry, 0) for entry in value)
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    return isinstance(value, Integral if isinstance(default, int) else Real)


def save_network(network: nn.Module, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
    """Write a network of :func:`create_network`: a safetensors file that tells its name and arguments.

    Args:
        network: the network.
        path: the file; it appears whole or not at all.
        about: what its use needs beside the weights, such as the names of classes, as far as JSON can hold it; by
            default what the network already carries (:func:`about`).

    Raises MetamixerError where the place cannot be written.
    """
    name, arguments = cast(tuple[str, dict[str, Any]], network.made_by)
    metadata = {
        "format": "pt",
        "architecture": name,
        "arguments": json.dumps(arguments),
        "about": json.dumps(getattr(network, "about", {}) if about is None else dict(about)),
    }
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    with replace_when_done(path) as temporary:
        save_file(state, temporary, metadata)


def about(network: nn.Module) -> dict[str, Any]:
    """What a trained network's file says beside its weights; empty for a fresh one."""
    return getattr(network, "about", {})


def _written(file: Path) -> dict[str, str]:
    """The metadata of a safetensors file; none for any other, which is read later with its weights."""
    if file.suffix != ".safetensors":
        return {}
    try:
        with safe_open(file, framework="np") as opened:
            return opened.metadata() or {}
    except FileNotFoundError:
        raise MetamixerError(f"{file}: no such file") from None
    except (OSError, SafetensorError):
        raise MetamixerError(f"{file} is cut short, damaged or no safetensors file") from None
