"""Our own checkpoint: one safetensors file that says which network it belongs to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from metamixer.data.files import replace_when_done, require_regular
from metamixer.data.preprocessing import Preprocessing
from metamixer.data.tensors import plain_tensors
from metamixer.errors import MetamixerError
from metamixer.limits import CHECKPOINT_BYTES
from metamixer.printing import notices
from metamixer.schemas import FileMetadata, validated, validated_arguments


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint says of itself.

    Attributes:
        architecture: the network's name, such as ``casvit_xs``.
        classes: names of the classes in the order of the logits, where known.
        preprocessing: what the network expects of a picture, where known.
        arguments: keyword arguments of ``create_model`` beyond the defaults (``num_classes``, ``mixer`` …); whoever
            passes them on checks them first (:func:`metamixer.schemas.validated_arguments`).
        about: what else the use of a network needs, of those that classify no pictures.
    """

    architecture: str
    classes: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def pretrained_cfg(self) -> dict[str, Any]:
        """The fields of a timm ``pretrained_cfg`` that the metadata decides."""
        cfg: dict[str, Any] = {}
        if "num_classes" in self.arguments:
            cfg["num_classes"] = self.arguments["num_classes"]
        if self.classes is not None:
            cfg |= {"num_classes": len(self.classes), "label_names": self.classes}
        if self.preprocessing is not None:
            pre = self.preprocessing
            size = pre.image_size
            cfg |= {
                "input_size": (self.arguments.get("in_chans", 3), size, size),
                "pool_size": (-(-size // 32), -(-size // 32)),
                "crop_pct": pre.crop_pct,
                "mean": pre.mean,
                "std": pre.std,
                "interpolation": pre.interpolation,
                "crop_mode": pre.crop_mode,
            }
        return cfg


def save_checkpoint(
    model: nn.Module,
    path: str | Path,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model's weights with its architecture, classes and preprocessing as metadata.

    ``classes`` and ``preprocessing`` default to what the model's ``pretrained_cfg`` says; names that do not match the
    number of classes are left out. ``dtype`` (say ``torch.float16``) converts floating-point tensors. The file
    appears whole or not at all.

    Raises MetamixerError where the place cannot be written, for weights that cannot (on the meta device, sparse,
    quantised …), for arguments that no file may ask for, and for a part of a network, such as a features-only model.
    """
    if not hasattr(model, "num_classes"):
        raise MetamixerError(
            f"{type(model).__name__} is a part of a network; save the network that it was taken from, and take the "
            "part after loading"
        )
    cfg = cast(dict[str, Any], model.pretrained_cfg)
    classes = cfg.get("label_names") if classes is None else classes
    named = classes is not None and len(classes) == model.num_classes
    preprocessing = Preprocessing.of(cfg) if preprocessing is None else preprocessing
    arguments = _arguments(model)
    own = {name: value for name, value in arguments.items() if name not in ("backbone", "backbone_kwargs")}
    validated_arguments(own, type(model), path)  # what could not be read again is not written
    metadata = Metadata(
        cfg["architecture"], tuple(cast(Sequence[str], classes)) if named else None, preprocessing, arguments
    )
    write_weights(model.state_dict(), path, metadata, dtype)


def write_weights(
    state: Mapping[str, Tensor], path: str | Path, metadata: Metadata, dtype: torch.dtype | None = None
) -> None:
    """Write tensors and what they say of themselves as one safetensors file, whole or not at all.

    ``dtype`` converts floating-point tensors. Raises MetamixerError where the place cannot be written, for metadata
    that could not be read again, for tensors that are none on a device, and for numbers too large for ``dtype``.
    """
    entries = _as_entries(metadata)
    validated(FileMetadata, entries, path)
    converted: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in plain_tensors(state, path).items():
        changed = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        if changed is not tensor and bool((changed.isinf() & tensor.isfinite()).any()):
            raise MetamixerError(f"{path} is not written, since {name} holds numbers too large for {_named(dtype)}")
        changed = changed.detach().cpu().contiguous()
        storage = changed.untyped_storage().data_ptr()
        converted[name] = changed.clone() if storage in storages else changed  # the format stores every tensor apart
        storages.add(storage)
    with replace_when_done(path) as temporary:
        save_file(converted, temporary, entries)


def _named(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def _as_entries(metadata: Metadata) -> dict[str, str]:
    entries = {"format": "pt", "architecture": metadata.architecture, "arguments": json.dumps(metadata.arguments)}
    if metadata.classes is not None:
        entries["classes"] = json.dumps(metadata.classes)
    if metadata.preprocessing is not None:
        said = asdict(metadata.preprocessing)
        if said["crop_mode"] == "center":  # which earlier versions do not know, and do
            del said["crop_mode"]
        entries["preprocessing"] = json.dumps(said, default=_numbers)
    if metadata.about:
        entries["about"] = json.dumps(metadata.about)
    return entries


def _arguments(model: nn.Module) -> dict[str, Any]:
    """The arguments that shaped the model, as far as JSON can hold them; a notice says which it cannot."""
    arguments = {**getattr(model, "arguments", {}), "num_classes": model.num_classes}
    written = {}
    for name, value in arguments.items():
        if "drop" in name:  # belongs to its training
            continue
        try:
            written[name] = json.loads(json.dumps(value, default=_numbers))
        except TypeError:  # a function as mixer, say
            notices.warning("the argument %s is not kept in the file: whoever loads it passes it again", name)
    return written


def _numbers(value: Any) -> Any:
    """NumPy's and PyTorch's numbers and arrays as Python's."""
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return value.tolist()
    raise TypeError


def read_metadata(path: str | Path) -> Metadata | None:
    """What a checkpoint of our layout says of itself; None for a safetensors file that says nothing.

    Reads the header alone. Raises MetamixerError for a file that is missing, cut short or no safetensors file, and for
    metadata that it cannot have.
    """
    path = Path(path)
    with open_weights(path) as file:
        return metadata_from(file.metadata() or {}, path)


def metadata_from(said: Mapping[str, str], path: Path) -> Metadata | None:
    """The same from the entries of a header. Raises MetamixerError for entries that it cannot have."""
    if "architecture" not in said:
        return None
    entries = validated(FileMetadata, said, path)
    said_of_pictures = entries.preprocessing
    preprocessing = None if said_of_pictures is None else Preprocessing(**said_of_pictures.model_dump())
    return Metadata(entries.architecture, entries.classes, preprocessing, entries.arguments, entries.about)


@contextmanager
def open_weights(path: str | Path) -> Iterator[Any]:
    """A safetensors file, opened. Raises MetamixerError where it is missing, cut short, damaged or none."""
    require_regular(path, CHECKPOINT_BYTES, "a checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError):
        raise MetamixerError(f"{path} is cut short, damaged or no safetensors file") from None


def read_shapes(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by its own names, on the meta device: shapes alone, from the header."""
    with open_weights(path) as file:
        return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118
