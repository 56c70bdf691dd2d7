"""Time several things fairly: in turns, so that a slow moment of the machine hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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
    """Time each function once per round; arguments and rounds as of :func:`take_turns`."""
    return take_turns({name: partial(milliseconds, function) for name, function in functions.items()}, repeats, warmup)


def take_turns(clocks: Mapping[Name, Callable[[], float]], repeats: int, warmup: int = 3) -> dict[Name, Timing]:
    """Ask each clock once per round, for ``repeats`` rounds after ``warmup`` rounds that do not count.

    Args:
        clocks: functions that run their subject and return the milliseconds it took.
        repeats: rounds that count.
        warmup: rounds before them.

    Every round starts with another clock, so that none always follows the same neighbour. Raises ValueError for
    fewer than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, not {repeats}")
    names = list(clocks)
    measured: dict[Name, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, repeats):
        first = turn % len(names) if names else 0
        for name in names[first:] + names[:first]:
            elapsed = clocks[name]()
            if turn >= 0:
                measured[name].append(elapsed)
    return {name: _summary(values) for name, values in measured.items()}


def milliseconds(function: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - started)


def _summary(measured: list[float]) -> Timing:
    if len(measured) == 1:
        return Timing(*measured * 3)
    low, median, high = statistics.quantiles(measured, n=4, method="inclusive")
    return Timing(median, low, high)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let PyTorch compute with that many threads inside a ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
