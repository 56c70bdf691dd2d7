"""Models side by side: one real run, and what is made of its rows."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

import metamixer as mm
from metamixer.bench import (
    RUNTIMES,
    LatencyReport,
    LatencyRow,
    bench_command,
    benchmark,
    command,
    count_macs,
    latency,
    pareto,
    published_top1,
    this_machine,
)
from metamixer.deploy.targets import Target
from metamixer.errors import MetamixerError

ROW = LatencyRow(
    model="casvit_xs", runtime="torch", image_size=224, batch=1, threads=1, parameters=2_970_668, macs=546_784_968,
    median_ms=20.0, low=19.5, high=21.0, repeats=50, memory_mb=43.4, top1=78.3,
)  # fmt: skip
PEER = replace(ROW, model="mobilenetv4_conv_small", parameters=3_774_024, median_ms=6.0, low=5.9, high=6.2, top1=73.76)
NANO = replace(ROW, model="affnet_nano", image_size=64, median_ms=3.0, low=3.0, high=3.0, top1=None, memory_mb=None)
ROWS = [row for model in (ROW, PEER, NANO) for row in (model, replace(model, runtime="onnx", median_ms=model.low))]


@pytest.fixture
def report() -> LatencyReport:
    return LatencyReport(ROWS, {}, this_machine(), load=0.1)


@pytest.fixture
def found(report, monkeypatch):
    """What the command asks :func:`benchmark` for, answered with the report."""
    asked = []

    def answer(*arguments):
        asked.append(arguments)
        return report

    monkeypatch.setattr(command, "benchmark", answer)
    return asked


def test_two_runtimes_in_turns():
    report = benchmark(["affnet_nano"], ["torch", "onnx"], image_size=32, repeats=2)
    assert report.failed == {}
    assert [(row.model, row.runtime) for row in report.rows] == [("affnet_nano", "torch"), ("affnet_nano", "onnx")]
    merged = mm.merge(mm.create_model("affnet_nano"))
    for row in report.rows:
        assert 0 < row.low <= row.median_ms <= row.high
        assert (row.image_size, row.batch, row.threads, row.repeats, row.top1) == (32, 1, 1, 2, None)
        assert row.parameters == sum(p.numel() for p in merged.parameters())
        assert row.macs == count_macs(merged, 32)
        # More than the weights alone, less than the library that the runtime is.
        assert row.memory_mb is None or 4 * row.parameters / 1e6 < row.memory_mb < 150


def test_pair_that_fails_does_not_end_the_others(monkeypatch, tmp_path):
    def refuse(target, *_):
        raise (MetamixerError if target.extra is None else OSError)(f"{target.runtime} says no")

    monkeypatch.setattr(latency, "convert", refuse)
    report = benchmark(["affnet_nano"], ["torch", "onnx"], image_size=32, repeats=1)
    assert report.rows == []
    assert report.failed == {
        ("affnet_nano", "torch"): "PyTorch (eager) says no",
        ("affnet_nano", "onnx"): "ONNX Runtime says no",
    }
    with pytest.raises(MetamixerError, match=r"1 of 1 pairs could not be timed: affnet_nano in ONNX Runtime: ONNX"):
        bench_command(("affnet_nano",), runtimes="onnx", image_size=32, repeats=1, out=tmp_path / "rows.csv")
    assert list(tmp_path.iterdir()) == []


RUNTIME = """
import os

RUNS_ON = ()


def check():
    pass


def write(model, example, path, settings):
    path.write_text("")


def load(path, threads):
    calls = iter(range({calls}))

    def run(pictures):
        if next(calls, None) is None:
            os._exit(7)
        return pictures

    return run
"""


def test_process_that_dies_while_it_is_timed_does_not_end_the_others(tmp_path, monkeypatch):
    """One runtime lasts, the other dies in a round that counts."""
    for name, calls in {"lasting": 100, "dying": 2 * latency.WARMUP + 3}.items():
        (tmp_path / f"{name}_runtime.py").write_text(RUNTIME.format(calls=calls))
        monkeypatch.setitem(RUNTIMES, name, Target(f"{name}_runtime", ".txt", name, None))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    report = benchmark(["affnet_nano"], ["dying", "lasting"], image_size=32, repeats=4)
    assert [(row.runtime, row.repeats) for row in report.rows] == [("lasting", 4)]
    assert report.rows[0].median_ms > 0
    assert report.failed == {("affnet_nano", "dying"): "dying failed with exit code 7; its last lines: nothing"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(models=[]), "at least one model"),
        (dict(models=["affnet_nan"]), "unknown model 'affnet_nan'; did you mean 'affnet_nano'?"),
        (dict(models=["affnet_nano.wrong"]), "unknown weights 'affnet_nano.wrong'; known: affnet_nano.cifar10"),
        (dict(models=["levit_128s.wrong"]), "unknown weights 'levit_128s.wrong'; known: levit_128s.fb_dist_in1k"),
        (dict(models=["affnet_nano"], runtimes=[]), "at least one runtime"),
        (dict(models=["affnet_nano"], runtimes=["onxx"]), "unknown runtime 'onxx'; did you mean 'onnx'?"),
        (dict(models=["affnet_nano"], runtimes=["tensorrt"]), "unknown runtime 'tensorrt'; .*torch"),
        (dict(models=["affnet_nano"], threads=0), "threads must be a whole number from 1"),
        (dict(models=["affnet_nano"], threads=1024), "1024 threads cannot be timed on the [0-9]+ cores"),
        (dict(models=["affnet_nano"], image_size=-1), "image_size must be a whole number from 1"),
        (
            dict(models=["levit_128s"], runtimes=["torch"], image_size=32),
            "levit_128s does not take pictures of size 32",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(MetamixerError, match=message):
        benchmark(**arguments)


def test_runtimes_that_are_missing_or_cannot(monkeypatch):
    monkeypatch.setattr("metamixer.deploy.targets.find_spec", lambda package: None)
    with pytest.raises(MetamixerError, match=r"needs the package openvino; .* 'metamixer\[openvino\]'"):
        benchmark(["affnet_nano"], ["torch", "openvino"])
    monkeypatch.setattr("metamixer.deploy.ncnn.check", lambda: None)
    with pytest.raises(MetamixerError, match="ncnn takes one picture at a time"):
        benchmark(["affnet_nano"], ["ncnn"], batch=2)
    monkeypatch.setattr("metamixer.deploy.coreml.check", lambda: None)
    monkeypatch.setattr("metamixer.deploy.coreml.RUNS_HERE", False)
    with pytest.raises(MetamixerError, match="Core ML does not run on this machine's system"):
        benchmark(["affnet_nano"], ["coreml"])


@pytest.mark.parametrize(
    ("model", "size", "expected"),
    [
        ("casvit_xs", None, 78.3),
        ("casvit_xs", 384, None),  # published for other weights
        ("casvit_xs.in1k_384", None, 78.7),
        ("ffnet_1.dist_in1k", 256, 82.1),
        ("mobilenetv4_conv_small", 224, 73.76),
        ("mobilenetv4_conv_small", 192, None),
        ("affnet_nano", None, None),
        ("dsm_t", None, None),  # our reconstruction: the paper's number is not its
        ("no_such_model", None, None),
    ],
)
def test_published_accuracy(model, size, expected):
    assert published_top1(model, size) == expected


def test_command_names_peers_and_prints_a_table(found, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    bench_command(("casvit_xs", "affnet_nano"), against="mobilenetv4_conv_small, repvit_m0_9", runtimes="torch,onnx")
    assert found == [
        (["casvit_xs", "affnet_nano", "mobilenetv4_conv_small", "repvit_m0_9"], ["torch", "onnx"], 1, 1, None, 50)
    ]
    said = capsys.readouterr().out
    assert "20.00 (19.50–21.00)" in said
    assert "78.3" in said
    assert this_machine().processor in said
    assert "Other work was running" not in said


def test_command_says_when_the_machine_was_busy(report, monkeypatch, capsys):
    monkeypatch.setattr(command, "benchmark", lambda *_: replace(report, load=3.2))
    bench_command(("casvit_xs",))
    assert "Other work was running (load average 3.2)" in capsys.readouterr().out


def test_files_hold_the_rows(found, tmp_path):
    bench_command(("casvit_xs",), out=tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["model"], r["runtime"], r["median_ms"], r["top1"]) for r in rows[:2]] == [
        ("casvit_xs", "torch", "20.0", "78.3"),
        ("casvit_xs", "onnx", "19.5", "78.3"),
    ]
    bench_command(("casvit_xs",), out=tmp_path / "rows.json")
    content = json.loads((tmp_path / "rows.json").read_text())
    assert [row["memory_mb"] for row in content["rows"]] == [43.4] * 4 + [None] * 2
    assert content["machine"]["versions"]["torch"] == torch.__version__.split("+")[0]


def test_picture_has_a_panel_for_each_runtime(found, tmp_path, monkeypatch):
    panels = {}

    def keep_points(axes, points, colours):
        panels[axes.get_title(loc="left")] = points

    monkeypatch.setattr(pareto, "label_points", keep_points)
    bench_command(("casvit_xs",), picture=tmp_path / "pareto.png")
    assert panels == {
        "PyTorch (eager)": {"casvit_xs": (20.0, 78.3), "mobilenetv4_conv_small": (6.0, 73.76)},
        "ONNX Runtime": {"casvit_xs": (19.5, 78.3), "mobilenetv4_conv_small": (5.9, 73.76)},
    }
    with Image.open(tmp_path / "pareto.png") as picture:
        assert picture.width > 1.5 * picture.height


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(out="rows.txt"), r"must end in \.csv or \.json"),
        (dict(picture="pareto.bmp"), r"must end in \.png, \.svg or \.pdf"),
        (dict(out="absent/rows.csv"), "no such folder"),
        (dict(picture="pareto.png", image_size=100), "there is nothing to draw"),
    ],
)
def test_command_checks_its_files_before_timing(options, message, found, tmp_path):
    options = {key: tmp_path / value if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises(MetamixerError, match=message):
        bench_command(("casvit_xs",), **options)
    assert found == []


def test_command_finds_out_before_timing_that_a_file_cannot_be_written(found, tmp_path, monkeypatch):
    (tmp_path / "rows.csv").mkdir()
    with pytest.raises(MetamixerError, match=r"rows.csv is a folder where a file is to be written"):
        bench_command(("casvit_xs",), out=tmp_path / "rows.csv")
    monkeypatch.setattr(command.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(MetamixerError, match="is a folder that cannot be written to"):
        bench_command(("casvit_xs",), picture=tmp_path / "pareto.png")
    assert found == []


def test_help_names_every_runtime():
    assert set(RUNTIMES) <= set(re.split(r"\W+", bench_command.__doc__))


def test_machine_is_described():
    machine = this_machine()
    assert machine.cores >= 1
    assert {"Python", "metamixer", "torch", "timm", "onnxruntime"} <= set(machine.versions)
    assert machine.processor in str(machine)
