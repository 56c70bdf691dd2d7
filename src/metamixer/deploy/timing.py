"""Time several functions fairly: in turns within one process, so that a slow moment of the machine hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

Name = TypeVar("Name")


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: the median, and the quartiles as its spread."""

    median_ms: float
    low: float
    high: float


def time_interleaved(
    functions: Mapping[Name, Callable[[], object]], repeats: int, warmup: int = 3
) -> dict[Name, Timing]:
    """Call each function once per round, for ``repeats`` rounds after ``warmup`` rounds that do not count.

    Every round starts with another function, so that none always follows the same neighbour. Raises ValueError for
    fewer than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, not {repeats}")
    names = list(functions)
    seconds: dict[Name, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, repeats):
        first = turn % len(names) if names else 0
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            functions[name]()
            elapsed = time.perf_counter() - started
            if turn >= 0:
                seconds[name].append(elapsed)
    return {name: _summary(values) for name, values in seconds.items()}


def _summary(seconds: list[float]) -> Timing:
    if len(seconds) == 1:
        return Timing(*[seconds[0] * 1e3] * 3)
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median * 1e3, low * 1e3, high * 1e3)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let PyTorch compute with that many threads inside a ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
