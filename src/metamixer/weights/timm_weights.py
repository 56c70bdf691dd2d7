"""The weights of timm's own networks, fetched before timm is asked for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
import torch

from metamixer.data.download import download
from metamixer.data.hub import hub_file
from metamixer.errors import MetamixerError

# What timm looks for in a repository where it names no file, in its order.
_USUAL_FILES = ("model.safetensors", "pytorch_model.bin")


def timm_weights(name: str) -> dict[str, Any]:
    """A ``pretrained_cfg_overlay`` with which ``timm.create_model(name, pretrained=True)`` needs no network.

    timm by itself waits for most of a minute where there is none, and for ever for a server that does not answer.

    Args:
        name: a network that timm knows, with a tag or without.

    Raises MetamixerError where there are no weights or they cannot be had.
    """
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        raise MetamixerError(f"timm has no weights of {name}")
    if cfg.file or cfg.state_dict:
        return {}
    if cfg.hf_hub_id:
        # On the hub, weights that another library wrote are stored as timm's unless this says "hf".
        return {"file": str(_from_hub(cfg)), "custom_load": cfg.custom_load == "hf"}
    file_name = Path(urlsplit(cfg.url).path).name
    there = Path(torch.hub.get_dir(), "checkpoints", file_name)
    return {"file": str(there if there.is_file() else download(cfg.url, f"timm/{file_name}"))}


def _from_hub(cfg: Any) -> Path:
    repository, _, revision = cfg.hf_hub_id.partition("@")
    names = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else _USUAL_FILES
    for name in names:
        file = hub_file(repository, name, revision or None)
        if file is not None:
            return file
    raise MetamixerError(f"{repository} on the Hugging Face hub has no {' and no '.join(names)}")
