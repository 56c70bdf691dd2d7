"""Timing in turns, counting MACs, and the table of latencies."""

from __future__ import annotations

import csv
import json
import time

import pytest
import torch
from torch import nn

import metamixer as mm
from metamixer.bench import bench_command, benchmark, count_macs, this_machine, time_interleaved
from metamixer.errors import MetamixerError
from metamixer.ops import irdft2, rdft2


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


def test_repeats_must_be_positive():
    with pytest.raises(ValueError, match="repeats"):
        time_interleaved({"a": lambda: None}, repeats=0)


def test_macs_of_layers_known_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    assert count_macs(model.train(), 16) == 8 * 8 * 8 * 3 * 9 + 8 * 5
    assert model.training


class ThereAndBack(nn.Module):
    """A Fourier transform and its inverse; the weight only tells the device."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return irdft2(rdft2(x), x.shape[-1]) * self.weight


@pytest.mark.parametrize("size", [16, 128])  # the larger one runs as an FFT on a CPU, and is counted as matrix products
def test_macs_count_the_transforms(size):
    half = size // 2 + 1
    one_way = size * size * 2 * half + 2 * size * 2 * size * half
    assert count_macs(ThereAndBack(), size) == 3 * 2 * one_way


def test_rows_of_a_benchmark_with_a_peer(tmp_path, capsys):
    threads = torch.get_num_threads()
    bench_command(
        ("affnet_nano",), against=("test_efficientnet",), image_size=32, repeats=2, out=tmp_path / "rows.json"
    )
    content = json.loads((tmp_path / "rows.json").read_text())
    rows = content["rows"]
    assert [(r["model"], r["runtime"]) for r in rows] == [
        (name, runtime) for name in ("affnet_nano", "test_efficientnet") for runtime in ("torch", "onnx")
    ]
    assert all(0 < r["low"] <= r["median_ms"] <= r["high"] and r["image_size"] == 32 for r in rows)
    merged = mm.merge(mm.create_model("affnet_nano"))
    assert rows[0]["parameters"] == sum(p.numel() for p in merged.parameters())
    assert rows[0]["macs"] == count_macs(merged, 32)
    assert content["machine"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "affnet_nano" in capsys.readouterr().out
    assert torch.get_num_threads() == threads


def test_csv_holds_the_same_rows(tmp_path):
    bench_command(("ffnet_nano",), runtimes="torch", image_size=32, batch=2, repeats=2, out=tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["model"], r["runtime"], r["batch"], r["repeats"]) for r in rows] == [("ffnet_nano", "torch", "2", "2")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(models=[]), "at least one model"),
        (dict(models=["affnet_nan"]), "unknown model 'affnet_nan'"),
        (dict(models=["affnet_nano"], runtimes=["tensorrt"]), "unknown runtime 'tensorrt'; known: torch, onnx"),
        (dict(models=["affnet_nano"], threads=0), "threads must be at least 1"),
        (dict(models=["affnet_nano"], image_size=-1), "image_size must be at least 1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(MetamixerError, match=message):
        benchmark(**arguments)


def test_command_checks_its_output_before_timing(tmp_path):
    with pytest.raises(MetamixerError, match=r"\.csv or \.json"):
        bench_command(("affnet_nano",), out=tmp_path / "rows.txt")
    with pytest.raises(MetamixerError, match="no such folder"):
        bench_command(("affnet_nano",), out=tmp_path / "absent" / "rows.csv")


def test_machine_is_described():
    machine = this_machine()
    assert machine.cores >= 1
    assert {"Python", "metamixer", "torch", "timm", "onnxruntime"} <= set(machine.versions)
    assert machine.processor in str(machine)
