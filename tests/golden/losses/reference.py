"""Reads the reference losses of this folder: what the authors' frameworks computed in float32 on a CPU.

mmdet 2.28.2 with CAS-ViT's and FFNet's configurations, mmsegmentation 0.30.0, FFNet's own segmentation head, and the
CVNets files of AFFNet's release; widths and numbers of classes are small (``changed`` in each JSON). Heads read
deterministic maps, so no backbone or neck runs. ``NAME.json`` describes the head and its cases, ``NAME.npz`` holds
``CASE/WHAT``; arrays of more than 1024 numbers are 512 evenly spaced ones where ``WHAT`` is a map or a gradient.
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent
SAMPLES, WHOLE = 512, 1024
weights = SimpleNamespace(**runpy.run_path(str(HERE.parent / "weights.py")))


@cache
def describe(name: str) -> dict[str, Any]:
    """The head ``name``: its configuration, weights and cases."""
    return json.loads((HERE / f"{name}.json").read_text())


@cache
def arrays_of(name: str, case: str) -> dict[str, np.ndarray]:
    """All arrays of a case, by what they are."""
    with np.load(HERE / f"{name}.npz") as held:
        return {key.removeprefix(f"{case}/"): held[key] for key in held.files if key.startswith(f"{case}/")}


@cache
def shared_array(name: str, key: str) -> np.ndarray:
    """An array that several cases share: anchors, or labels as ``CASE/labels``."""
    with np.load(HERE / f"{name}.npz") as held:
        return held[key]


@cache
def state_dict(name: str) -> dict[str, Tensor]:
    """The head's weights by the authors' names."""
    return weights.checkpoint(HERE / f"{name}.json")


def feature_maps(case: dict[str, Any]) -> list[Tensor]:
    """The maps that the head reads, finest first, as leaves that take gradients."""
    return [weights.image(*one["shape"], one["salt"]).requires_grad_() for one in case["maps"]]


def spread(count: int, **_: Any) -> Tensor:
    """0 … count − 1 in the order of the fractional part of i times the golden ratio: the first are spread over all."""
    return torch.from_numpy(np.argsort((np.arange(count) * 0.6180339887498949) % 1.0, kind="stable"))


@contextmanager
def deterministic_sampling() -> Iterator[None]:
    """``torch.randperm`` replaced by :func:`spread`, as when the references were computed."""
    own, torch.randperm = torch.randperm, spread
    try:
        yield
    finally:
        torch.randperm = own


def difference(found: Tensor | np.ndarray, stored: np.ndarray, least: float = 1e-6, share: float = 1.0) -> float:
    """Largest difference among the best ``share`` of the entries, over the reference's largest magnitude (``least`` or
    more); infinite for another shape and where something is not finite."""
    found = np.asarray(found.detach() if isinstance(found, Tensor) else found, np.float64)
    if found.size > WHOLE and stored.shape == (SAMPLES,):
        found = found.ravel()[np.linspace(0, found.size - 1, SAMPLES).round().astype(int)]
    if found.shape != stored.shape or not np.isfinite(found).all():
        return float("inf")
    if not stored.size:
        return 0.0
    return float(np.quantile(np.abs(found - stored), share, method="higher") / max(np.abs(stored).max(), least))
