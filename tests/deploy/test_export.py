"""What all exports share: options, refusals, reports, and a runtime that lives in another process."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console

import metamixer as mm
from metamixer.deploy import onnx as target
from metamixer.deploy import pictures as pictures_module
from metamixer.deploy import targets
from metamixer.deploy.artefact import artefact
from metamixer.deploy.export import _sizes_between, export_command
from metamixer.deploy.pictures import photographs, pictures_in
from metamixer.deploy.report import Agreement, ExportReport, agreement, complaint, different, report_path, table
from metamixer.deploy.runtime_process import RuntimeProcess
from metamixer.errors import MetamixerError


@pytest.fixture(scope="module")
def casvit() -> torch.nn.Module:
    torch.manual_seed(0)
    return mm.create_model("casvit_nano", num_classes=4)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of three small pictures, one of them in a folder of its own."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (3, 50, 40, 3), dtype=np.uint8)
    for name, pixels in zip(("a.png", "b.png", "more/c.png"), noise, strict=True):
        Image.fromarray(pixels).save(folder / name)
    return folder


def test_agreement():
    reference = np.array([[1.0, -4.0, 2.0], [3.0, 0.0, 1.0]])
    same = agreement(reference, reference)
    assert (same.max_abs, same.max_relative, same.top1) == (0, 0, 1)
    other = agreement(reference, reference + np.array([[2.0, 0, 0], [0, 0, 0]]))
    assert (other.max_abs, other.max_relative, other.top1) == (2, 0.5, 0.5)
    shorter, strange = agreement(reference, reference[:1], "logits"), agreement(reference, reference * np.nan, "logits")
    assert shorter.max_relative == strange.max_relative == np.inf
    assert shorter.fault == "gives logits of shape 1 × 3 where PyTorch's has 2 × 3"
    assert strange.fault == "gives values that are not finite in logits"
    assert same.worse(strange).fault == strange.worse(same).fault == strange.fault
    assert same.worse(other) == other.worse(same) == other


@pytest.mark.parametrize(
    ("found", "weights", "said"),
    [
        (Agreement(0.1, 9e-5, 1.0), "fp32", None),
        (Agreement(0.1, 3e-4, 1.0), "fp32", "differs from PyTorch by 3.0e-04"),
        (Agreement(0.1, 2e-3, 1.0), "fp16", None),
        (Agreement(0.1, 2e-1, 0.9), "int8", None),
        (Agreement(0.1, 2e-1, 0.7), "int8", "first class in 70%"),
        (different("gives values that are not finite in logits"), "int8", "not finite in logits"),
        (different("gives 2 outputs where PyTorch gives 1"), "fp16", "gives 2 outputs"),
    ],
)
def test_what_is_accepted(found, weights, said):
    result = complaint(found, weights)
    assert result is None if said is None else said in result


def test_unknown_target_names_the_known_ones():
    with pytest.raises(MetamixerError, match=r"unknown export target 'tflite'; known: onnx, openvino"):
        mm.export("affnet_nano", "tflite", "x")


@pytest.mark.parametrize(
    "name", sorted(name for name in targets.TARGETS if name != "web" and targets.TARGETS[name].extra)
)
def test_missing_package_names_the_extra(name, monkeypatch):
    monkeypatch.setattr(targets, "find_spec", lambda package: None)
    with pytest.raises(MetamixerError, match=rf"pip install 'metamixer\[{targets.TARGETS[name].extra}\]'"):
        mm.export("affnet_nano", name, "x")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(weights="int4"), "unknown weights 'int4'; known: fp32, fp16, int8"),
        (dict(weights="int8"), "int8 learns its ranges from pictures"),
        (dict(sizes=(16, 64)), "start at 33 pixels"),
        (dict(sizes=(64, 48)), "must rise"),
        (dict(sizes=(40, 64), image_size=32), "outside the sizes 40 to 64"),
        (dict(image_size=0), "image_size must be a whole number from 1"),
        (dict(target="torch", weights="int8", calibration="x"), "torch exports know no int8: "),
    ],
)
def test_options_that_make_no_sense(options, said, casvit, tmp_path):
    with pytest.raises(MetamixerError, match=said):
        mm.export(casvit, **{"target": "onnx", "path": tmp_path / "m", **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(targets.TARGETS))
def test_page_says_what_is_refused(name):
    """The table of options in the documentation: a cell begins with "no" where the target refuses."""
    page = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()
    table = page.split("| target | range of sizes, any batch |")[1].split("\n\n")[0]
    (row,) = [line for line in table.splitlines() if line.startswith(f"| `{name}` |")]
    _, _, any_size, fp16, int8, _ = (cell.strip() for cell in row.split("|"))
    refused = targets.target_module(name).REFUSES
    assert any_size.startswith("no:") == ("sizes" in refused) == ("dynamic_batch" in refused)
    assert fp16.startswith("no:") == ("fp16" in refused)
    assert int8.startswith("no:") == ("int8" in refused)


def test_folder_of_pictures(pictures, tmp_path):
    assert [p.name for p in pictures_in(pictures, 10)] == ["a.png", "b.png", "c.png"]
    assert [p.name for p in pictures_in(pictures, 2)] == ["a.png", "b.png"]
    with pytest.raises(MetamixerError, match="no such folder"):
        pictures_in(tmp_path / "absent", 1)
    with pytest.raises(MetamixerError, match="holds no pictures"):
        pictures_in(tmp_path, 1)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(MetamixerError, match=r"notes.txt is no picture"):
        pictures_in(tmp_path, 1)


def test_photographs_are_different_pictures(monkeypatch):
    """As many as are asked for, also where matplotlib alone brings one along."""
    alone = [(package, file) for package, file in pictures_module._PHOTOGRAPHS if package == "matplotlib"]
    for installed in (pictures_module._PHOTOGRAPHS, alone):
        monkeypatch.setattr(pictures_module, "_PHOTOGRAPHS", installed)
        found = photographs()
        assert len({picture.tobytes() for picture in found}) == len(found) == 50
    monkeypatch.setattr(pictures_module, "_PHOTOGRAPHS", ())
    with pytest.raises(MetamixerError, match="name pictures of your own"):
        photographs()


def test_sizes_between():
    assert _sizes_between(None) == []
    sizes = _sizes_between((48, 256))
    assert len(sizes) == 5
    assert (sizes[0], sizes[-1]) == (48, 256)
    assert sum(size % 2 for size in sizes) == 3
    assert _sizes_between((40, 41)) == [40, 41]


def test_artefact_is_whole_or_absent(tmp_path):
    path = tmp_path / "a.pte"

    def be_interrupted():
        with artefact(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        be_interrupted()
    assert list(tmp_path.iterdir()) == []
    for content in ("one", "two"):
        with artefact(path) as temporary:
            assert temporary.name == path.name
            temporary.write_text(content)
        assert path.read_text() == content
        assert list(tmp_path.iterdir()) == [path]


def test_folder_artefact_replaces_an_earlier_export_alone(tmp_path):
    path = tmp_path / "a.ncnn"

    def make(content):
        with artefact(path) as temporary:
            temporary.mkdir()
            (temporary / "model.bin").write_text(content)

    make("one")
    with pytest.raises(MetamixerError, match="no earlier export"):
        make("two")
    report_path(path).write_text("{}")
    make("two")
    assert [(p.name, p.read_text()) for p in path.iterdir()] == [("model.bin", "two")]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ncnn", "a.ncnn.json"]


def test_artefact_and_report_come_together(tmp_path):
    path = tmp_path / "a.pte"

    def make(and_then=None):
        with artefact(path) as temporary:
            temporary.write_text("whole")
            report_path(temporary).write_text("{}")
            if and_then:
                and_then(report_path(path))

    with pytest.raises(MetamixerError, match=r"a.pte cannot be written"):
        make(Path.mkdir)
    assert list(tmp_path.iterdir()) == [report_path(path)]
    with pytest.raises(MetamixerError, match=r"a.pte.json is a folder where the report is to be written"):
        make()
    report_path(path).rmdir()
    make()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pte", "a.pte.json"]


def test_missing_folder_and_pictures(casvit, tmp_path):
    with pytest.raises(MetamixerError, match="no such folder"):
        mm.export(casvit, "onnx", tmp_path / "absent" / "m.onnx", pictures=[Image.new("RGB", (9, 9))])
    with pytest.raises(MetamixerError, match="no such file"):
        mm.export(casvit, "onnx", tmp_path / "m.onnx", pictures=[tmp_path / "absent.jpg"])


def test_plain_module_needs_a_size(tmp_path):
    with pytest.raises(MetamixerError, match="image_size"):
        mm.export(torch.nn.Conv2d(3, 4, 3), "onnx", tmp_path / "m.onnx")
    with pytest.raises(MetamixerError, match="does not say how its pictures are normalised"):
        mm.export(torch.nn.Conv2d(3, 4, 3), "onnx", tmp_path / "m.onnx", image_size=8, normalise=True)


def test_size_that_the_model_cannot_take(tmp_path):
    with pytest.raises(MetamixerError, match=r"levit_128s does not take pictures of size 32 \(RuntimeError: "):
        mm.export(timm.create_model("levit_128s"), "onnx", tmp_path / "m.onnx", 32, pictures=[Image.new("RGB", (9, 9))])
    assert list(tmp_path.iterdir()) == []


def test_model_is_left_as_it_was(casvit, tmp_path, monkeypatch):
    def refuse(*_):
        raise MetamixerError("no")

    monkeypatch.setattr(target, "write", refuse)
    casvit.train()
    before = {name: tensor.clone() for name, tensor in casvit.state_dict().items()}
    with pytest.raises(MetamixerError, match="no"):
        mm.export(casvit, "onnx", tmp_path / "a.onnx", pictures=[Image.new("RGB", (9, 9))])
    assert casvit.training
    assert before.keys() == casvit.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in casvit.state_dict().items())


def test_converter_that_fails_is_one_sentence(casvit, tmp_path, monkeypatch):
    def fail(*_):
        print("a long story")
        raise RuntimeError("cannot\nlower aten.fft")

    monkeypatch.setattr(target, "write", fail)
    with pytest.raises(
        MetamixerError, match=r"casvit_nano cannot be exported to ONNX Runtime \(RuntimeError: cannot lower aten.fft\)"
    ):
        mm.export(casvit, "onnx", tmp_path / "a.onnx", pictures=[Image.new("RGB", (9, 9))])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"a.onnx cannot be written \(No space left on device\)"),
        (FileNotFoundError(errno.ENOENT, "no such file", "other.table"), r"be exported to .*FileNotFoundError.*table"),
    ],
)
def test_a_full_disk_is_told_from_a_file_that_a_converter_misses(error, said, casvit, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(target, "write", fail)
    with pytest.raises(MetamixerError, match=said):
        mm.export(casvit, "onnx", tmp_path / "a.onnx", pictures=[Image.new("RGB", (9, 9))])
    assert list(tmp_path.iterdir()) == []


def test_runtime_that_fails_to_load_says_why(tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model at all")
    with pytest.raises(MetamixerError, match=r"ONNX Runtime failed with exit code 1; .* InvalidProtobuf: "):
        RuntimeProcess(targets.TARGETS["onnx"], broken)


def test_process_tells_its_memory_and_keeps_to_its_core(tmp_path):
    """Eight million numbers in the file, and as many in the result: 32 MB each."""
    wide = 8_000_000
    helper = onnx.helper
    numbers = onnx.numpy_helper.from_array(np.ones((1, wide), np.float32), "numbers")
    taken = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 1))
    given = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1, wide))
    graph = helper.make_graph([helper.make_node("Mul", ["x", "numbers"], ["y"])], "g", [taken], [given], [numbers])
    path = tmp_path / "wide.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    with RuntimeProcess(targets.TARGETS["onnx"], path, threads=1, pinned=True) as runtime:
        loaded = runtime.peak_memory()
        assert runtime(np.full((1, 1), 3.0, np.float32)).sum() == 3.0 * wide
        assert runtime.time_again() > 0
        if loaded is None:
            pytest.skip("this system does not tell how much memory a process takes")
        assert 4 * wide < loaded < 2**29
        assert runtime.peak_memory() > loaded
        assert len(os.sched_getaffinity(runtime._process.pid)) == 1


def test_runtime_that_crashes_is_one_sentence(tmp_path, monkeypatch):
    """A native crash, here provoked by the kernel's own signal, ends the other process alone."""
    crash = "import os, signal, sys; sys.stderr.write('bad kernel\\n'); sys.stderr.flush(); os.kill(os.getpid(), 11)"
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec "{__import__("sys").executable}" -c "{crash}"\n')
    program.chmod(0o755)
    monkeypatch.setattr("metamixer.deploy.runtime_process.sys.executable", str(program))
    with pytest.raises(MetamixerError, match=r"crashed with signal SIGSEGV; its last lines: bad kernel"):
        RuntimeProcess(targets.TARGETS["onnx"], tmp_path / "m.onnx")


def test_command_refuses_a_file_as_folder(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(MetamixerError, match="taken"):
        export_command("ffnet_nano", out=tmp_path / "taken")
    with pytest.raises(MetamixerError, match="name a target"):
        export_command("ffnet_nano", to=",", out=tmp_path)


def test_table_fits_into_eighty_columns():
    report = ExportReport(
        target="onnx", path="m.onnx", model="casvit_nano.cifar10", image_size=224, weights="fp16", format="ONNX",
        ran=True, size_bytes=102_850_000, count=50, checked_sizes=[224], max_abs_difference=3.3e-6,
        max_relative_difference=4.4e-7, top1_agreement=1.0, parameters_before=2, parameters_after=1,
        merge_difference=1e-7, load_ms=1234.56, latency_torch_ms=2345.67, latency_runtime_ms=3456.78,
    )  # fmt: skip
    console = Console(width=80)
    with console.capture() as shown:
        console.print(table([report, replace(report, target="executorch_vulkan", ran=False)]))
    rows = {row[0]: row[1:] for line in shown.get().splitlines() if (row := line.split())}
    assert rows["onnx"] == ["102.85", "3.3e-06", "4.4e-07", "100%", "1234.56", "2345.67", "3456.78"]
    assert rows["executorch_vulkan"][:3] == ["102.85", "not", "run"]


def test_command_with_all_targets_leaves_out_what_is_not_installed(tmp_path, pictures, monkeypatch, capsys, caplog):
    installed = targets.find_spec
    monkeypatch.setattr(targets, "find_spec", lambda p: installed(p) if "onnx" in p else None)
    monkeypatch.setitem(targets.TARGETS, "torch", targets.Target("metamixer.deploy.openvino", ".pt2", "PyTorch", "x"))
    for always_there in ("web", "aotinductor"):
        monkeypatch.delitem(targets.TARGETS, always_there)
    caplog.set_level(logging.INFO, "metamixer")
    export_command("casvit_nano.cifar10", to="all", out=tmp_path, pictures=pictures)
    said = capsys.readouterr().out
    (merged,) = [line for line in said.splitlines() if " merged: " in line]
    change = r"0.994 → 0.9\d\d M parameters, outputs moved by at most \de-0\d of the largest"
    assert re.fullmatch(f"casvit_nano.cifar10 merged: {change}", merged)
    assert merged in caplog.messages
    assert "openvino was left out: export to OpenVINO needs the package openvino" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["casvit_nano.cifar10.onnx", "casvit_nano.cifar10.onnx.json"]
    report = json.loads((tmp_path / "casvit_nano.cifar10.onnx.json").read_text())
    assert report["count"] == 3
    assert report["ran"] is True
