"""From any layout to ours: one safetensors file that says which network it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models import model_entrypoint
from torch import Tensor

from metamixer.data.files import replace_when_done
from metamixer.data.transforms import Preprocessing
from metamixer.errors import MetamixerError
from metamixer.weights.checkpoint import read_metadata, save_checkpoint
from metamixer.weights.load import fit, load_into, read_state

# Part of a key that every network of a family has and no other family's.
_MARKS = {"affnet": ".fuse_maps.", "casvit": ".local_perception.", "ffnet": ".downsample.1.norm."}


def convert(source: Path, target: Path, model: str | None = None, half: bool = False) -> None:
    """Write a checkpoint of any layout in ours.

    Args:
        source: a checkpoint that ``create_model(checkpoint=…)`` would take.
        target: a ``.safetensors`` file to be written.
        model: the architecture, with a tag where its preprocessing differs (``casvit_m.in1k_384``); by default what
            the file says of itself, or what its keys and shapes tell.
        half: store numbers in half precision, as in the weights shipped with the package.

    Raises MetamixerError for files that cannot be read or written, that fit no network, or not the one named.
    """
    source, target = Path(source), Path(target)
    if target.suffix != ".safetensors":
        raise MetamixerError(f"{target} must end in .safetensors")
    if model is None and _is_of_another_kind(source):
        _copy(source, target, half)
        return
    state = read_state(source)
    metadata = read_metadata(source) if source.suffix == ".safetensors" else None
    name = model or (metadata.architecture if metadata else None) or infer_architecture(state)
    if name is None:
        raise MetamixerError(f"{source} does not tell which network it belongs to; name it with --model")
    architecture, _, tag = name.partition(".")
    if name not in timm.list_models(include_tags=True) and architecture not in timm.list_models():
        raise MetamixerError(f"unknown model {name!r}")
    arguments = arguments_of(state) | (metadata.arguments if metadata else {})
    network = timm.create_model(architecture, pretrained_cfg=tag or None, **arguments)
    load_into(network, state, source)
    preprocessing = metadata.preprocessing if metadata else None
    classes = metadata.classes if metadata else None
    preprocessing = preprocessing or Preprocessing.of(network.pretrained_cfg)
    save_checkpoint(network, target, classes, preprocessing, torch.float16 if half else None)


def _is_of_another_kind(source: Path) -> bool:
    """Whether a file of ours holds what is no backbone: a detector, say, or a network for super-resolution."""
    metadata = read_metadata(source) if source.suffix == ".safetensors" else None
    return metadata is not None and metadata.architecture not in timm.list_models()


def _copy(source: Path, target: Path, half: bool) -> None:
    """A file of ours as it is, what it says of itself included; in half precision if asked for."""
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    if half:
        state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    with replace_when_done(target) as temporary:
        save_file(state, temporary, metadata)


def infer_architecture(state: Mapping[str, Tensor]) -> str | None:
    """The one of our architectures, in its usual form, that a state dict (by our names) fits; None if there is none."""
    if not any(key.startswith("stem.") for key in state):
        return None
    arguments = arguments_of(state)
    marked = [family for family, mark in _MARKS.items() if any(mark in key for key in state)]
    for name in timm.list_models():
        entry = model_entrypoint(name)
        package, _, family = entry.__module__.rpartition(".")
        if not package.startswith("metamixer") or (family not in marked if marked else family in _MARKS):
            continue
        try:
            with torch.device("meta"):  # shapes only
                fit(entry(**arguments), state)
        except (MetamixerError, TypeError):  # TypeError: the family does not know one of the arguments
            continue
        return name
    return None


def arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of a network that a state dict (by our names) tells: its classes, and norms of feature maps."""
    head = state.get("head.fc.weight")
    arguments: dict[str, Any] = {"num_classes": 0 if head is None else len(head)}
    if any(name.startswith("feature_norms.") for name in state):
        arguments["feature_norms"] = True
    return arguments
