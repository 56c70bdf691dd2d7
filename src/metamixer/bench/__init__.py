"""Bench: how long models take, how much they compute, on which machine."""

from metamixer.bench.command import bench_command
from metamixer.bench.latency import RUNTIMES, LatencyReport, LatencyRow, benchmark
from metamixer.bench.machine import Machine, this_machine
from metamixer.bench.macs import count_macs
from metamixer.bench.published_top1 import published_top1

__all__ = [
    "RUNTIMES",
    "LatencyReport",
    "LatencyRow",
    "Machine",
    "bench_command",
    "benchmark",
    "count_macs",
    "published_top1",
    "this_machine",
]
