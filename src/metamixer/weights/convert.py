"""From any layout to ours: one safetensors file that says which network it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import model_entrypoint
from torch import Tensor

from metamixer.data.transforms import Preprocessing
from metamixer.errors import MetamixerError
from metamixer.limits import require_memory
from metamixer.schemas import validated_arguments
from metamixer.weights.checkpoint import Metadata, read_metadata, save_checkpoint, write_weights
from metamixer.weights.load import (
    check_size,
    fits,
    is_merged,
    load_into,
    made_by,
    read_network,
    read_state,
    shapes_alone,
)

# Part of a key that every network of a family has and no other family's.
_MARKS = {"affnet": ".fuse_maps.", "casvit": ".local_perception.", "ffnet": ".downsample.1.norm."}
_KEPT = ("affnet", "casvit")  # merging keeps their marks


def convert(source: Path, target: Path, model: str | None = None, half: bool = False) -> None:
    """Write a checkpoint of any layout in ours.

    Args:
        source: a checkpoint that ``create_model(checkpoint=…)`` would take.
        target: a ``.safetensors`` file to be written.
        model: the architecture, with a tag where its preprocessing differs (``casvit_m.in1k_384``); by default what
            the file says of itself, or what its keys and shapes tell.
        half: store numbers in half precision, as in the weights shipped with the package.

    Raises MetamixerError for files that cannot be read or written, that fit no network, or not the one named, and for
    weights that are NaN or, with ``half``, too large.
    """
    source, target = Path(source), Path(target)
    if target.suffix != ".safetensors":
        raise MetamixerError(f"{target} must end in .safetensors")
    metadata = read_metadata(source) if source.suffix == ".safetensors" else None
    half_or_as_it_is = torch.float16 if half else None
    if model is None and metadata is not None and metadata.architecture not in timm.list_models():
        # No backbone, but a detector, say, or a network for super-resolution: as it is.
        write_weights(_require_numbers(read_network(source), source), target, metadata, half_or_as_it_is)
        return
    state = _require_numbers(read_state(source), source)
    name = model or (metadata.architecture if metadata else None) or infer_architecture(state)
    if name is None:
        raise MetamixerError(f"{source} does not tell which network it belongs to; name it with --model")
    architecture, _, tag = name.partition(".")
    if name not in timm.list_models(include_tags=True) and architecture not in timm.list_models():
        raise MetamixerError(f"unknown model {name!r}")
    arguments = arguments_of(state)
    if metadata is not None:
        arguments |= backbone_arguments(architecture, metadata, source)
    network = timm.create_model(architecture, pretrained_cfg=tag or None, **arguments)
    load_into(network, state, source)
    preprocessing = metadata.preprocessing if metadata else None
    classes = metadata.classes if metadata else None
    preprocessing = preprocessing or Preprocessing.of(network.pretrained_cfg)
    save_checkpoint(network, target, classes, preprocessing, half_or_as_it_is)


def _require_numbers(state: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The tensors. Raises MetamixerError where one holds NaN; infinity may be meant, as in a mask."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.is_meta and bool(tensor.isnan().any()):
            raise MetamixerError(f"{file}: {name} holds values that are no numbers")
    return state


def backbone_arguments(architecture: str, metadata: Metadata, file: Path) -> dict[str, Any]:
    """What a file of ours says of its backbone's arguments, once it is known to be neither wrong nor too large.

    Raises MetamixerError where it is.
    """
    entry = model_entrypoint(architecture)
    arguments = validated_arguments(metadata.arguments, made_by(entry), file)
    check_size(lambda: entry(**arguments), file)
    return arguments


def chosen_arguments(architecture: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A user's arguments of a backbone (``--model-args``), once each is known to be one, in its range.

    Raises MetamixerError for others, such as those by which timm would open files, for what makes no network together,
    and for a network whose weights do not fit into memory as often as a training holds them.
    """
    entry = model_entrypoint(architecture)
    checked = validated_arguments(arguments, made_by(entry), "--model-args", entry="")
    try:
        with shapes_alone():
            numbers = sum(tensor.numel() for tensor in entry(**checked).state_dict().values())
    except MetamixerError:
        raise
    except Exception as error:  # whatever a constructor makes of values that do not go together
        raise MetamixerError(f"{architecture} refuses its arguments ({' '.join(str(error).split())[:200]})") from None
    require_memory(
        4 * 4 * numbers, f"training {architecture} with {numbers} weights"
    )  # gradients, two of the optimiser
    return checked


def infer_architecture(state: Mapping[str, Tensor]) -> str | None:
    """The one of our architectures, in its usual form, that a state dict (by our names) fits; None if there is none."""
    if not any(key.startswith("stem.") for key in state):
        return None
    arguments = arguments_of(state)
    marked = [family for family, mark in _MARKS.items() if any(mark in key for key in state)]
    for name in timm.list_models():
        entry = model_entrypoint(name)
        package, _, family = entry.__module__.rpartition(".")
        if not package.startswith("metamixer") or (family not in marked if marked else family in _KEPT):
            continue
        try:
            with shapes_alone():
                network = entry(**arguments)
        except TypeError:  # the family does not know one of the arguments
            continue
        if fits(network, state) or is_merged(network, state):
            return name
    return None


def arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of a network that a state dict (by our names) tells: its classes, and norms of feature maps."""
    head = state.get("head.fc.weight")
    arguments: dict[str, Any] = {}
    if head is None or (head.ndim == 2 and len(head)):  # another one is refused later, when it does not fit
        arguments["num_classes"] = 0 if head is None else len(head)
    if any(name.startswith("feature_norms.") for name in state):
        arguments["feature_norms"] = True
    return arguments
