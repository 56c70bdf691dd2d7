"""Bench: how long models take, how much they compute, on which machine."""

from metamixer.bench.latency import LatencyRow, bench_command, benchmark
from metamixer.bench.machine import Machine, this_machine
from metamixer.bench.macs import count_macs
from metamixer.deploy.timing import Timing, time_interleaved

__all__ = [
    "LatencyRow",
    "Machine",
    "Timing",
    "bench_command",
    "benchmark",
    "count_macs",
    "this_machine",
    "time_interleaved",
]
