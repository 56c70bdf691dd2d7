"""Networks that classify no pictures: super-resolution, forecasting, point clouds.

They are created by name as the backbones are, but timm does not know them: its users expect classifiers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast

from torch import nn

from metamixer.errors import MetamixerError
from metamixer.networks.forecasting import FFNetTSF
from metamixer.networks.point_clouds import FFNetPoints
from metamixer.networks.super_resolution import FFNetSR, tiled, upscale
from metamixer.schemas import AboutClouds, AboutEntries, AboutSeries, validated, validated_arguments
from metamixer.weights.checkpoint import Metadata, read_metadata, write_weights
from metamixer.weights.load import check_size, load_into, read_network
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
        kwargs: the network's own arguments, and ``device`` and ``dtype``: where and of which type its weights are made.

    Raises MetamixerError for arguments that the network does not know or cannot take, and a checkpoint that does not
    fit.
    """
    builder = NETWORKS[name]
    place = {key: kwargs.pop(key, None) for key in ("device", "dtype")}
    file = None if checkpoint is None else Path(os.path.expanduser(checkpoint))
    written = None if file is None else _written(file, name)
    if written is not None:
        kwargs = written.arguments | kwargs
    known = signature(builder).parameters
    unknown = [argument for argument in kwargs if argument not in known]
    if unknown:
        raise MetamixerError(f"{name} takes no argument {unknown[0]!r}; it takes {', '.join(known)}")
    for argument, value in kwargs.items():
        if not _is_like(value, known[argument].default):
            raise MetamixerError(
                f"{name}: {argument} cannot be {value!r}; it is {known[argument].default!r} by default"
            )
    network = builder(**kwargs, **place)
    network.made_by = (name, kwargs)
    network.about = {} if written is None else written.about
    _check_about(network, file)
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
        about: what its use needs beside the weights, such as the names of classes (:mod:`metamixer.schemas` lists the
            entries of each kind of network), and a ``note``; by default what the network already carries
            (:func:`about`).

    Raises MetamixerError where the place cannot be written, for facts of another kind, and for arguments that no file
    may ask for.
    """
    name, arguments = cast(tuple[str, dict[str, Any]], network.made_by)
    validated_arguments(arguments, NETWORKS[name], path)  # what could not be read again is not written
    facts = _about_of(name, getattr(network, "about", {}) if about is None else dict(about), path)
    write_weights(network.state_dict(), path, Metadata(name, arguments=arguments, about=facts))


def about(network: nn.Module) -> dict[str, Any]:
    """What a trained network's file says beside its weights; empty for a fresh one."""
    return getattr(network, "about", {})


def _written(file: Path, name: str) -> Metadata | None:
    """What a safetensors file of ours says, checked; nothing of any other, which is read later with its weights."""
    written = read_metadata(file) if file.suffix == ".safetensors" else None
    if written is None:
        return None
    if written.architecture != name:
        raise MetamixerError(f"{file} belongs to {written.architecture}, not to {name}")
    arguments = validated_arguments(written.arguments, NETWORKS[name], file)
    check_size(lambda: NETWORKS[name](**arguments), file)
    return Metadata(name, arguments=arguments, about=_about_of(name, written.about, file))


def _about_of(name: str, facts: Mapping[str, Any], file: str | Path) -> dict[str, Any]:
    """Facts that a network of that name can have. Raises MetamixerError for others."""
    schema = next((schema for prefix, schema in _ABOUT.items() if name.startswith(prefix)), AboutEntries)
    return validated(schema, json.dumps(facts), file, entry="about", json=True).model_dump(exclude_unset=True)


def _check_about(network: nn.Module, file: Path | None) -> None:
    """Raise MetamixerError for lists of another length than the network has variables or classes."""
    wanted = {FFNetTSF: ("channels", ("columns", "mean", "deviation")), FFNetPoints: ("num_classes", ("classes",))}
    count, names = wanted.get(type(network), ("", ()))
    for name in names:
        listed = about(network).get(name)
        if listed is not None and len(listed) != getattr(network, count):
            raise MetamixerError(
                f"{file}: about.{name} has {len(listed)} entries where {count} is {getattr(network, count)}"
            )


_ABOUT: dict[str, type[AboutEntries]] = {"ffnet_tsf": AboutSeries, "ffnet_points": AboutClouds}
