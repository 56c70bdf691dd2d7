"""Checkpoints hold all that changes while a run goes on: it can be taken up as if nothing had happened."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from metamixer.data.files import replace_when_done
from metamixer.errors import MetamixerError
from metamixer.train.config import NOT_PART_OF_THE_RESULT, TrainConfig

KEPT = 2
"""How many of the newest checkpoints stay in the folder."""


def write(state: dict[str, Any], folder: Path, step: int) -> Path:
    """Write a checkpoint, whole or not at all, and delete all but the last few. Raises MetamixerError."""
    path = folder / f"step_{step:09}.pt"
    with suppress(OSError):  # said below; the run's folder is not made again where somebody has deleted it
        folder.mkdir(exist_ok=True)
    with replace_when_done(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)
    for old in checkpoints(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step_*.pt"))


def read(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint. Raises MetamixerError for what is none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise MetamixerError(f"{path}: no such file") from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError):
        raise MetamixerError(f"{path} is cut short, damaged or no checkpoint of a training run") from None
    if not isinstance(state, dict) or not {"config", "model", "optimizer", "progress"} <= state.keys():
        raise MetamixerError(f"{path} holds weights alone; only a checkpoint of a training run can be resumed")
    return state


def check_same(config: TrainConfig, earlier: Mapping[str, Any], where: Path) -> None:
    """Raise MetamixerError, listing the differing fields, where a run began with another configuration."""
    now = json.loads(json.dumps(config.to_dict()))
    names = [name for name in dict.fromkeys((*earlier, *now)) if name not in NOT_PART_OF_THE_RESULT]
    changed = [name for name in names if earlier.get(name) != now.get(name)]
    if changed and not config.allow_changes:
        listed = ", ".join(f"{name} (was {earlier.get(name)!r}, is {now.get(name)!r})" for name in changed)
        raise MetamixerError(f"{where} was made with other settings: {listed}; --allow-changes resumes all the same")


def load_weights(model: nn.Module, state: Mapping[str, Any], where: Path) -> None:
    """Load weights. Raises MetamixerError for those of another architecture."""
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise MetamixerError(f"{where} is of another architecture and cannot be resumed") from None


def generators(device: torch.device) -> dict[str, Any]:
    """The state of every global generator of this process, in types that ``torch.load`` trusts."""
    numpy_state: Any = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    states = {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = _rng(device).get_rng_state(*_index(device))
    return states


def restore_generators(states: Mapping[str, Any], device: torch.device) -> None:
    """The inverse of :func:`generators`."""
    random.setstate(states["python"])
    numpy_state = states["numpy"]
    key = numpy_state["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy_state, "state": {**numpy_state["state"], "key": key}})
    torch.set_rng_state(states["torch"])
    if device.type in states:
        _rng(device).set_rng_state(states[device.type], *_index(device))


def _rng(device: torch.device) -> Any:
    """``torch.cuda`` and its like."""
    return getattr(torch, device.type)


def _index(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # of which there is but one
