"""Checkpoints hold all that changes while a run goes on: it can be taken up as if nothing had happened."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metamixer.data.files import read_regular, replace_when_done
from metamixer.data.pickles import load_pickle
from metamixer.data.tensors import plain_tensors
from metamixer.errors import MetamixerError
from metamixer.limits import CONFIG_BYTES, shortened
from metamixer.schemas import CheckpointEntries, Settings, validated
from metamixer.train.config import NOT_PART_OF_THE_RESULT, TrainConfig, without_gone
from metamixer.weights.load import check_fit

KEPT = 2
"""How many of the newest checkpoints stay in the folder."""


def write(state: dict[str, Any], folder: Path, step: int) -> Path:
    """Write a checkpoint, whole or not at all, and delete all others but the last few. Raises MetamixerError."""
    path = folder / _name(step)
    with suppress(OSError):  # said below; the run's folder is not made again where somebody has deleted it
        folder.mkdir(exist_ok=True)
    with replace_when_done(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)
    _delete([other for other in checkpoints(folder) if other != path][: 1 - KEPT])
    return path


def delete_later(folder: Path, step: int) -> None:
    """Delete the checkpoints of steps after this one, of a run that is given up. Raises MetamixerError."""
    _delete([path for path in checkpoints(folder) if path.name > _name(step)])


def _name(step: int) -> str:
    return f"step_{step:09}.pt"


def _delete(paths: list[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise MetamixerError(f"{path} cannot be deleted ({error.strerror or error})") from None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step_*.pt"))


def read(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint, each entry of its type and in its range.

    Raises MetamixerError for what is none.
    """
    state = {} if path.suffix == ".safetensors" else load_pickle(path)
    if not isinstance(state, dict) or not {"config", "model", "optimizer", "progress"} <= state.keys():
        raise MetamixerError(f"{path} holds weights alone; only a checkpoint of a training run can be resumed")
    if state.get("optimizer_by_name") is False:  # of earlier versions, beside the same optimizer as today
        del state["optimizer_by_name"]
    validated(CheckpointEntries, state, path)
    plain_tensors(state["model"], path)
    plain_tensors(state["ema"] or {}, path)
    for index, values in state["optimizer"]["state"].items():
        tensors = {f"optimizer.state.{index}.{name}": held for name, held in values.items() if isinstance(held, Tensor)}
        plain_tensors(tensors, path)
    return state


def read_settings(path: Path) -> dict[str, Any]:
    """A run's ``config.json``. Raises MetamixerError for what is none."""
    return validated(Settings, read_regular(path, CONFIG_BYTES, "the settings of a run"), path, json=True)


def check_same(config: TrainConfig, earlier: Mapping[str, Any], where: Path) -> None:
    """Raise MetamixerError, listing the differing fields, where a run began with another configuration."""
    now = config.as_read()
    earlier = without_gone(earlier)
    names = [name for name in dict.fromkeys((*earlier, *now)) if name not in NOT_PART_OF_THE_RESULT]
    changed = [name for name in names if earlier.get(name) != now.get(name)]
    if changed and not config.allow_changes:
        listed = ", ".join(
            f"{name} (was {shortened(earlier.get(name))}, is {shortened(now.get(name))})" for name in changed
        )
        raise MetamixerError(f"{where} was made with other settings: {listed}; --allow-changes resumes all the same")


def load_weights(model: nn.Module, state: Mapping[str, Tensor], where: Path) -> None:
    """Load weights. Raises MetamixerError for those of another architecture."""
    try:
        check_fit(state, model.state_dict(), type(model).__name__, where)
        model.load_state_dict(state)
    except (MetamixerError, RuntimeError):
        raise MetamixerError(f"{where} is of another architecture and cannot be resumed") from None


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any], where: Path) -> None:
    """Load an optimiser's state, once it is known to be one that this optimiser can go on from.

    How that looks, a step without gradients shows, which may move the weights.

    Raises MetamixerError for the state of another optimiser, or of other weights.
    """
    _step_on_nothing(optimizer)
    own = optimizer.state_dict()
    groups = [_like(said, group) for said, group in zip(state["param_groups"], own["param_groups"], strict=False)]
    fits = len(state["param_groups"]) == len(own["param_groups"]) and all(group is not None for group in groups)
    known = {index for group in own["param_groups"] for index in group["params"]}
    for index, values in state["state"].items():
        wanted = own["state"].get(index)
        fits = fits and index in known and (wanted is None or _like(values, wanted, all_of_it=True) is not None)
    if not fits:
        raise MetamixerError(f"{where} holds the state of another optimiser and cannot be resumed with this one")
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


def _step_on_nothing(optimizer: Optimizer) -> None:
    """A step with gradients of zero, which gives every weight the state that the optimiser keeps of it."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _like(said: Mapping[str, Any], own: Mapping[str, Any], all_of_it: bool = False) -> dict[str, Any] | None:
    """``said``, completed by ``own``; None where a value is of another kind or an entry is not known."""
    if not said.keys() <= own.keys() or (all_of_it and said.keys() != own.keys()):
        return None
    if not all(_is_like(value, own[name]) for name, value in said.items()):
        return None
    return {**own, **said}


def _is_like(value: Any, own: Any) -> bool:
    """Is it of the same kind: a tensor of equal shape, a finite number, as many of those …?"""
    if isinstance(own, Tensor):
        return (
            isinstance(value, Tensor)
            and value.shape == own.shape
            and value.is_floating_point() == own.is_floating_point()
        )
    if isinstance(own, list | tuple):
        return isinstance(value, list | tuple) and len(value) == len(own) and all(map(_is_like, value, own))
    if own is None:
        return value is None or isinstance(value, bool)
    if isinstance(own, float):
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is type(own)


def generators(device: torch.device) -> dict[str, Any]:
    """The state of every global generator of this process, in types that ``torch.load`` trusts."""
    numpy_state: Any = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    states = {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = _rng(device).get_rng_state(*_index(device))
    return states


def restore_generators(states: Mapping[str, Any], device: torch.device, where: Path) -> None:
    """The inverse of :func:`generators`. Raises MetamixerError for states of other kinds of generators."""
    numpy_state = states["numpy"]
    try:
        random.setstate(states["python"])
        key = numpy_state["state"]["key"].numpy().astype(np.uint32)
        np.random.set_state({**numpy_state, "state": {**numpy_state["state"], "key": key}})
        torch.set_rng_state(states["torch"])
        if device.type in states:
            _rng(device).set_rng_state(states[device.type], *_index(device))
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise MetamixerError(f"{where} holds the state of other random generators ({error})") from None


def _rng(device: torch.device) -> Any:
    """``torch.cuda`` and its like."""
    return getattr(torch, device.type)


def _index(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # of which there is but one
