"""Our own checkpoint: one safetensors file that says which network it belongs to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from metamixer.data.files import replace_when_done
from metamixer.data.transforms import Preprocessing
from metamixer.errors import MetamixerError


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint says of itself.

    Attributes:
        architecture: the network's name, such as ``casvit_xs``.
        classes: names of the classes in the order of the logits, where known.
        preprocessing: what the network expects of a picture, where known.
        arguments: keyword arguments of ``create_model`` beyond the defaults (``num_classes``, ``mixer`` …).
    """

    architecture: str
    classes: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

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
    appears whole or not at all. Raises MetamixerError where the place cannot be written.
    """
    state = {}
    for name, tensor in model.state_dict().items():
        converted = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        state[name] = converted.detach().cpu().contiguous()
    cfg = cast(dict[str, Any], model.pretrained_cfg)
    classes = cfg.get("label_names") if classes is None else classes
    preprocessing = Preprocessing.of(cfg) if preprocessing is None else preprocessing
    metadata: dict[str, str] = {
        "format": "pt",
        "architecture": cfg["architecture"],
        "preprocessing": json.dumps(asdict(preprocessing)),
        "arguments": json.dumps(_arguments(model)),
    }
    if classes is not None and len(classes) == model.num_classes:
        metadata["classes"] = json.dumps(list(classes))
    with replace_when_done(path) as temporary:
        save_file(state, temporary, metadata)


def _arguments(model: nn.Module) -> dict[str, Any]:
    """The arguments that shaped the model, as far as JSON can hold them."""
    arguments = {**getattr(model, "_model_args", {}), "num_classes": model.num_classes}
    written = {}
    for name, value in arguments.items():
        if "drop" in name:  # belongs to its training
            continue
        try:
            written[name] = json.loads(json.dumps(value))
        except TypeError:  # a function as mixer, say: whoever loads the file passes it again
            continue
    return written


def read_metadata(path: str | Path) -> Metadata | None:
    """What a checkpoint of our layout says of itself; None for a safetensors file that says nothing.

    Reads the header alone. Raises MetamixerError for a file that is missing, cut short or no safetensors file.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="np") as file:
            said = file.metadata() or {}
    except FileNotFoundError:
        raise MetamixerError(f"{path}: no such file") from None
    except (OSError, SafetensorError):
        raise MetamixerError(f"{path} is cut short, damaged or no safetensors file") from None
    if "architecture" not in said:
        return None
    try:
        classes = json.loads(said["classes"]) if "classes" in said else None
        preprocessing = json.loads(said["preprocessing"]) if "preprocessing" in said else None
        if preprocessing is not None:
            preprocessing |= {key: tuple(preprocessing[key]) for key in ("mean", "std") if key in preprocessing}
            preprocessing = Preprocessing(**preprocessing)
        arguments = json.loads(said.get("arguments", "{}"))
        return Metadata(said["architecture"], None if classes is None else tuple(classes), preprocessing, arguments)
    except (TypeError, ValueError):
        raise MetamixerError(f"{path} carries metadata that this version of metamixer cannot read") from None
