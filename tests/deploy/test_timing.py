"""Timing in turns."""

from __future__ import annotations

import time

import pytest

from metamixer.deploy.timing import take_turns, time_interleaved


def test_functions_take_turns():
    calls = []
    timings = time_interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=4, warmup=1)
    rounds = ["".join(calls[i : i + 2]) for i in range(0, 10, 2)]
    assert len(calls) == 10
    assert all(sorted(turn) == ["a", "b"] for turn in rounds)
    assert {"ab", "ba"} == set(rounds)  # neither always goes first
    assert list(timings) == ["a", "b"]


def test_median_and_quartiles_are_milliseconds():
    timing = time_interleaved({"sleep": lambda: time.sleep(0.004)}, repeats=5, warmup=0)["sleep"]
    assert 4 <= timing.low <= timing.median_ms <= timing.high


def test_clocks_say_themselves_how_long_it_took():
    told = iter([1000.0, 5.0, 1.0, 3.0, 2.0, 4.0])
    timing = take_turns({"told": lambda: next(told)}, repeats=5, warmup=1)["told"]
    assert (timing.low, timing.median_ms, timing.high) == (2, 3, 4)


def test_repeats_must_be_positive():
    with pytest.raises(ValueError, match="repeats"):
        time_interleaved({"a": lambda: None}, repeats=0)
