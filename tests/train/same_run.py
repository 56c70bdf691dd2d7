"""Whether two runs left the same, to the last bit."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from metamixer.train import checkpointing
from metamixer.train.config import NOT_PART_OF_THE_RESULT

TIMES = ("images_per_second", "seconds")


def metrics(run: Path) -> list[dict[str, str]]:
    """``metrics.csv`` without the columns that are times."""
    rows = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Equal to the last bit, in tensors, dicts and lists."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for name in a:
            if name not in (*TIMES, *NOT_PART_OF_THE_RESULT):
                assert_equal(a[name], b[name], f"{where}.{name}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    else:
        assert a == b or (a != a and b != b), where  # NaN, as of large objects where there are none


def weights(path: Path) -> dict[str, Any]:
    """All that a file of weights holds. (The order of the metadata in the file is chance.)"""
    with safe_open(path, framework="pt") as file:
        return {"metadata": file.metadata(), **{name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("best.safetensors", "last.safetensors"):
        assert_equal(weights(one / name), weights(other / name), name)
    assert metrics(one) == metrics(other)
    states = [checkpointing.read(checkpointing.checkpoints(run / "checkpoints")[-1]) for run in (one, other)]
    assert_equal(*states)
