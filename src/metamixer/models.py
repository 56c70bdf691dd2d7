"""Create models by name, with weights by tag or by path: a thin layer over timm's factory and the other networks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
from timm.data.imagenet_info import ImageNetInfo
from timm.models import get_arch_pretrained_cfgs, model_entrypoint
from torch import nn

from metamixer.errors import MetamixerError
from metamixer.networks import NETWORKS, create_network
from metamixer.printing import notices
from metamixer.weights.checkpoint import Metadata, read_metadata
from metamixer.weights.convert import arguments_of, backbone_arguments, infer_architecture
from metamixer.weights.embedded import embedded_weights
from metamixer.weights.load import read_state
from metamixer.weights.published import PUBLISHED, published_file
from metamixer.weights.tags import list_weights

_SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".ckpt", ".bin")


def create_model(
    name: str, *, pretrained: bool | None = None, checkpoint: str | Path | None = None, **kwargs: Any
) -> nn.Module:
    """A network of this library: a backbone as ``timm.create_model`` makes it, or one of ``metamixer.networks``.

    Args:
        name: an architecture (see :func:`list_models`), or ``architecture.tag`` for particular weights (see
            :func:`metamixer.list_weights`).
        pretrained: load the weights of the tag, or the architecture's default ones. By default True for a name with a
            tag and False for one without.
        checkpoint: file to load instead: ours, or in any layout of the papers' authors. Another number of classes
            keeps the backbone and leaves the classifier fresh, with a notice in the log.
        kwargs: timm's and the architecture's own: ``num_classes``, ``in_chans``, ``features_only``, ``out_indices``,
            ``drop_path_rate``, ``mixer`` …; ``scale``, ``channels``, ``lookback`` … of the other networks.

    A backbone's ``pretrained_cfg`` holds what it expects of a picture, and ``label_names`` where the classes are known.

    Raises MetamixerError for an unknown name or tag, weights that cannot be had, and a checkpoint that does not fit.
    """
    architecture, _, tag = name.partition(".")
    _check_name(architecture, tag)
    if architecture in NETWORKS:
        if checkpoint is None and (pretrained or (tag and pretrained is None)):
            checkpoint = _network_weights(architecture, tag)
        return create_network(architecture, checkpoint, **kwargs)
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    file: Path | None = None
    if checkpoint is not None:
        file = Path(os.path.expanduser(checkpoint))
        metadata = _metadata_of(file)
        if metadata is not None:
            if metadata.architecture != architecture:
                raise MetamixerError(f"{file} belongs to {metadata.architecture}, not to {architecture}")
            overlay = {**metadata.pretrained_cfg(), **overlay}
            kwargs = {**backbone_arguments(architecture, metadata, file), **kwargs}
    elif pretrained or (tag and pretrained is None):
        file = _weights_file(architecture, tag)
    if file is not None:
        # timm hands the file to Backbone.load_pretrained, before it cuts a feature extractor out of the network.
        overlay |= {"file": str(file), "custom_load": True}
    return timm.create_model(
        architecture,
        pretrained=file is not None,
        pretrained_cfg=tag or None,
        pretrained_cfg_overlay=overlay,
        **kwargs,
    )


def load_model(spec: str | Path) -> nn.Module:
    """The model that a user of the command line means.

    Args:
        spec: the path of a checkpoint; ``architecture.tag``; or an architecture, which means its default weights
            (shipped ones first, else published ones that can be downloaded) or, with a notice, an untrained network.

    Raises MetamixerError as :func:`create_model` does, and for a checkpoint that does not tell its architecture.
    """
    path = Path(os.path.expanduser(spec))
    if os.path.isfile(path) or path.suffix in _SUFFIXES or isinstance(spec, Path) or len(path.parts) > 1:
        return _load_file(path)
    architecture, _, tag = str(spec).partition(".")
    _check_name(architecture, tag)
    if tag:
        return create_model(str(spec))
    own = architecture in NETWORKS
    if list_weights(architecture) if own else timm.models.is_model_pretrained(architecture):
        return create_model(architecture, pretrained=True)
    pages = {PUBLISHED[name].page for name in list_weights(architecture) if name in PUBLISHED}
    hint = f"; its authors' weights are at {pages.pop()}, pass the downloaded file's path" if pages else ""
    notices.warning("%s is untrained: no weights of it can be loaded by name%s", architecture, hint)
    return create_model(architecture)


def _load_file(path: Path) -> nn.Module:
    metadata = _metadata_of(path)
    if metadata is not None:
        return create_model(metadata.architecture, checkpoint=path)
    state = read_state(path)
    architecture = infer_architecture(state)
    if architecture is None:
        raise MetamixerError(
            f"{path} does not tell which network it belongs to; `metamixer convert {path} OUT.safetensors --model NAME`"
            " writes one that does"
        )
    return create_model(architecture, checkpoint=path, **arguments_of(state))


def list_models(pattern: str = "*") -> list[str]:
    """Names of this library's networks that match a shell pattern, such as ``"casvit*"``.

    Backbones come first, in natural order, then the networks that classify no pictures.
    """
    backbones = [name for name in timm.list_models() if model_entrypoint(name).__module__.startswith("metamixer.")]
    return [name for name in (*backbones, *NETWORKS) if fnmatch(name, pattern)]


def require_rgb(model: nn.Module) -> None:
    """Raise MetamixerError for a network that reads pictures of other channels than red, green and blue."""
    channels = getattr(getattr(model, "inner_backbone", model), "in_chans", 3)
    if channels != 3:
        raise MetamixerError(f"the network reads {channels} channels, and pictures have three: red, green and blue")


def class_names(model: nn.Module, readable: bool = False) -> list[str] | None:
    """Names of a classifier's classes in the order of its logits; None where they are not known.

    Args:
        model: a model with a ``pretrained_cfg``.
        readable: WordNet numbers (``n01440764``), by which ImageNet's folders are called, become words.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    names: Sequence[str] | None = cfg.get("label_names")
    if names is None and cfg.get("file") and "in1k" in (cfg.get("tag") or ""):
        names = _imagenet().label_names()  # the authors' files, which hold no names
    if names is None or len(names) != getattr(model, "num_classes", len(names)):
        return None
    return [_in_words(name) for name in names] if readable else list(names)


def _in_words(name: str) -> str:
    try:
        return _imagenet().label_name_to_description(name)
    except KeyError:  # not a WordNet number
        return name


@lru_cache
def _imagenet() -> ImageNetInfo:
    return ImageNetInfo()


def _check_name(architecture: str, tag: str) -> None:
    known = list_models()
    if architecture not in known:
        near = get_close_matches(architecture, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`metamixer models` lists them"
        raise MetamixerError(f"unknown model {architecture!r}; {hint}")
    check_tag(f"{architecture}.{tag}")


def check_tag(name: str) -> None:
    """Raises MetamixerError for a tag that an architecture, of ours or of timm, does not have."""
    architecture, _, tag = name.partition(".")
    tags = list_weights(architecture) if architecture in NETWORKS else get_arch_pretrained_cfgs(architecture)
    if tag and f"{architecture}.{tag}" not in tags:
        weights = [name for name in tags if "." in name]
        hint = f"known: {', '.join(weights)}" if weights else "there are none"
        raise MetamixerError(f"unknown weights '{architecture}.{tag}'; {hint}")


def _weights_file(architecture: str, tag: str) -> Path:
    """The file of the tag, or of the default one: shipped with the package, or published and downloaded."""
    cfg = timm.get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture, allow_unregistered=False)
    assert cfg is not None  # every architecture of ours is registered with one
    if cfg.file:
        return Path(cfg.file)
    name = f"{architecture}.{cfg.tag}"
    if name not in PUBLISHED:
        raise _no_weights(architecture)
    return published_file(name)


def _network_weights(architecture: str, tag: str) -> Path:
    """The file of the tag, or of the first one, of a network that timm does not know."""
    names = [f"{architecture}.{tag}"] if tag else list_weights(architecture)
    if not names:
        raise _no_weights(architecture)
    return embedded_weights()[names[0]].path


def _no_weights(architecture: str) -> MetamixerError:
    return MetamixerError(f"there are no weights of {architecture} yet; pass checkpoint=PATH or leave pretrained out")


def _metadata_of(path: Path) -> Metadata | None:
    return read_metadata(path) if path.suffix == ".safetensors" else None
