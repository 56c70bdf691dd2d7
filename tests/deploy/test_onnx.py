"""ONNX exports: verified, self-contained, in real arithmetic, and gone when they are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import metamixer as mm
from metamixer.deploy import onnx as target
from metamixer.deploy.export import export_command
from metamixer.deploy.report import agreement, report_path
from metamixer.errors import MetamixerError

REAL = {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}


@pytest.fixture(scope="module")
def affnet() -> torch.nn.Module:
    torch.manual_seed(0)
    return mm.create_model("affnet_nano", num_classes=4)


@pytest.fixture(scope="module")
def exported(affnet, tmp_path_factory):
    """A small spectral model at an odd size, checked on two pictures and timed."""
    path = tmp_path_factory.mktemp("onnx") / "affnet_nano.onnx"
    noise = np.random.default_rng(0).integers(0, 256, (2, 90, 120, 3), dtype=np.uint8)
    report = mm.export(affnet, "onnx", path, image_size=65, pictures=[Image.fromarray(p) for p in noise], repeats=3)
    return path, report


def test_report_describes_the_file(affnet, exported):
    path, report = exported
    assert report.size_bytes == path.stat().st_size
    assert (report.target, report.model, report.image_size, report.count) == ("onnx", "affnet_nano", 65, 2)
    assert report.parameters_before == sum(p.numel() for p in affnet.parameters()) > report.parameters_after > 0
    assert 0 <= report.max_relative_difference < 1e-4
    assert report.merge_difference < 1e-4
    assert report.top1_agreement == 1
    assert report.latency_torch_ms > 0 < report.latency_runtime_ms
    assert json.loads(report_path(path).read_text()) == {**report.__dict__}
    assert sorted(p.name for p in path.parent.iterdir()) == ["affnet_nano.onnx", "affnet_nano.onnx.json"]


def test_file_agrees_with_the_unmerged_model(affnet, exported):
    inputs = torch.randn(1, 3, 65, 65)
    session = onnxruntime.InferenceSession(str(exported[0]))
    with torch.no_grad():
        expected = affnet.eval()(inputs).numpy()
    np.testing.assert_allclose(
        session.run(["logits"], {"pictures": inputs.numpy()})[0], expected, atol=1e-4 * abs(expected).max()
    )


def test_metadata_tell_how_to_use_the_file(exported):
    metadata = {p.key: p.value for p in onnx.load(exported[0]).metadata_props}
    assert metadata["architecture"] == "affnet_nano"
    preprocessing = json.loads(metadata["preprocessing"])
    assert preprocessing["image_size"] == 65
    assert len(preprocessing["mean"]) == 3


def test_class_names_are_written(affnet, tmp_path, monkeypatch):
    monkeypatch.setitem(affnet.pretrained_cfg, "label_names", ("ant", "bee", "cat", "dog"))
    written = {}

    def keep_metadata(model, example, path, metadata, dynamic_batch):
        written.update(metadata)
        raise MetamixerError("seen enough")

    monkeypatch.setattr(target, "write", keep_metadata)
    with pytest.raises(MetamixerError, match="seen enough"):
        mm.export(affnet, "onnx", tmp_path / "a.onnx")
    assert json.loads(written["classes"]) == ["ant", "bee", "cat", "dog"]


def test_graph_is_real_and_its_matrices_are_constants(exported):
    graph = onnx.shape_inference.infer_shapes(onnx.load(exported[0])).graph
    operators = {node.op_type for node in graph.node}
    assert {"Conv", "MatMul"} <= operators
    assert not operators & {"DFT", "STFT", "Cos", "Sin", "Range", "Mod", "Loop", "If"}
    types = {tensor.data_type for tensor in graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input, *graph.output]}
    assert types <= REAL
    # No node depends on constants alone: all of that was computed at export.
    constants = {tensor.name for tensor in graph.initializer}
    assert [node.op_type for node in graph.node if set(node.input) <= constants] == []


def test_file_names_no_source_of_the_exporting_machine(exported):
    content = exported[0].read_bytes()
    assert str(Path(mm.__file__).parent).encode() not in content
    assert b"stack_trace" not in content


def test_dynamic_batch(tmp_path):
    torch.manual_seed(0)
    model = mm.create_model("dsm_nano", num_classes=7)
    report = mm.export(model, "onnx", tmp_path / "m.onnx", 32, dynamic_batch=True, repeats=0)
    assert report.max_relative_difference < 1e-4
    assert report.latency_torch_ms is None
    run = target.load(tmp_path / "m.onnx")
    assert [run(np.zeros((n, 3, 32, 32), np.float32)).shape for n in (1, 3)] == [(1, 7), (3, 7)]


def test_export_that_disagrees_leaves_no_file(affnet, tmp_path, monkeypatch):
    def write_another(model, example, path, metadata, dynamic_batch):
        path.write_bytes(b"not this one")

    monkeypatch.setattr(target, "write", write_another)
    monkeypatch.setattr(target, "load", lambda path, threads: lambda x: np.full((len(x), 4), 7, np.float32))
    with pytest.raises(MetamixerError, match=r"differs from PyTorch by .* and was not kept"):
        mm.export(affnet, "onnx", tmp_path / "wrong.onnx", repeats=0)
    assert list(tmp_path.iterdir()) == []


def test_model_is_left_as_it_was(affnet, tmp_path, monkeypatch):
    def refuse(*_):
        raise MetamixerError("no")

    monkeypatch.setattr(target, "write", refuse)
    affnet.train()
    before = {name: tensor.clone() for name, tensor in affnet.state_dict().items()}
    with pytest.raises(MetamixerError, match="no"):
        mm.export(affnet, "onnx", tmp_path / "a.onnx")
    assert affnet.training
    assert before.keys() == affnet.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in affnet.state_dict().items())


def test_unknown_target_names_the_known_ones():
    with pytest.raises(MetamixerError, match=r"unknown export target 'tflite'; known: onnx"):
        mm.export("affnet_nano", "tflite", "x")


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MetamixerError, match=r"onnxscript.*metamixer\[deploy\]"):
        mm.export("affnet_nano", "onnx", "x")


def test_missing_folder_and_pictures(affnet, tmp_path):
    with pytest.raises(MetamixerError, match="no such folder"):
        mm.export(affnet, "onnx", tmp_path / "absent" / "m.onnx")
    with pytest.raises(MetamixerError, match="no such file"):
        mm.export(affnet, "onnx", tmp_path / "m.onnx", pictures=[tmp_path / "absent.jpg"])


def test_plain_module_needs_a_size(tmp_path):
    with pytest.raises(MetamixerError, match="image_size"):
        mm.export(torch.nn.Conv2d(3, 4, 3), "onnx", tmp_path / "m.onnx")


def test_command_writes_file_and_report_quietly(tmp_path, capfd):
    export_command("casvit_nano", out=tmp_path / "exported", image_size=32)
    out, err = capfd.readouterr()
    assert err == ""
    assert "casvit_nano.onnx.json" in out
    assert json.loads((tmp_path / "exported" / "casvit_nano.onnx.json").read_text())["image_size"] == 32


def test_command_refuses_a_file_as_folder(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(MetamixerError, match="taken"):
        export_command("ffnet_nano", out=tmp_path / "taken")


def test_agreement():
    reference = np.array([[1.0, -4.0, 2.0], [3.0, 0.0, 1.0]])
    same = agreement(reference, reference)
    assert (same.max_abs, same.max_relative, same.top1) == (0, 0, 1)
    other = agreement(reference, reference + np.array([[2.0, 0, 0], [0, 0, 0]]))
    assert (other.max_abs, other.max_relative, other.top1) == (2, 0.5, 0.5)
    assert agreement(reference, reference[:1]).max_relative == np.inf
    assert agreement(reference, reference * np.nan).max_relative == np.inf
