"""ONNX exports: verified, self-contained, in real arithmetic, and gone when they are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import metamixer as mm
from metamixer.deploy import onnx as target
from metamixer.deploy.export import _divergence, export_command
from metamixer.deploy.onnx_graph import drop_zero_points, in_eight_bits, in_half_precision
from metamixer.deploy.pictures import photographs
from metamixer.deploy.report import report_path
from metamixer.deploy.settings import PLAIN, Settings
from metamixer.errors import MetamixerError

NOISE = np.random.default_rng(0).integers(0, 256, (2, 90, 120, 3), dtype=np.uint8)
PICTURES = [Image.fromarray(pixels) for pixels in NOISE]
REAL = {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}


@pytest.fixture(scope="module")
def affnet() -> torch.nn.Module:
    torch.manual_seed(0)
    return mm.create_model("affnet_nano", num_classes=4)


@pytest.fixture(scope="module")
def exported(affnet, tmp_path_factory):
    """A small spectral model at an odd size, checked on two pictures and timed."""
    path = tmp_path_factory.mktemp("onnx") / "affnet_nano.onnx"
    report = mm.export(affnet, "onnx", path, image_size=65, pictures=PICTURES, repeats=3)
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
    assert report.load_ms > 0
    assert report.checked_sizes == [65]
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
    monkeypatch.setitem(affnet.pretrained_cfg, "label_names", ("ant", "bee", "n02123045", "dog"))
    written = {}

    def keep_metadata(model, example, path, settings):
        written.update(settings.metadata)
        raise MetamixerError("seen enough")

    monkeypatch.setattr(target, "write", keep_metadata)
    with pytest.raises(MetamixerError, match="seen enough"):
        mm.export(affnet, "onnx", tmp_path / "a.onnx", pictures=PICTURES)
    assert json.loads(written["classes"]) == ["ant", "bee", "n02123045", "dog"]
    assert "tabby" in json.loads(written["class_names"])[2]


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


def test_range_of_sizes_and_batches(tmp_path):
    """Five sizes, odd ones among them, and maps that are no squares; pictures go in as pixels."""
    torch.manual_seed(0)
    model = mm.create_model("dsm_nano", num_classes=7, depths=(1, 1), dims=(16, 24))
    path = tmp_path / "m.onnx"
    report = mm.export(
        model, "onnx", path, sizes=(33, 80), dynamic_batch=True, normalise=True, softmax=True, pictures=PICTURES,
        repeats=0,
    )  # fmt: skip
    assert report.checked_sizes == sorted({33, 45, 57, 69, 80, model.pretrained_cfg["input_size"][-1]})
    assert report.max_relative_difference < 1e-4
    assert report.latency_torch_ms is None
    assert (report.count, report.top1_agreement) == (2, 1)
    run = target.load(path)
    pixels = np.random.default_rng(0).uniform(0, 255, (3, 3, 47, 70)).astype(np.float32)
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        expected = model.eval()((torch.from_numpy(pixels) / 255 - mean) / std).softmax(1).numpy()
    np.testing.assert_allclose(run(pixels), expected, atol=1e-5)
    metadata = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert (metadata["image_size"], metadata["input"]) == ("33-80", "RGB, 0 to 255")
    assert [output.name for output in onnx.load(path).graph.output] == ["probabilities"]


@pytest.fixture(scope="module")
def small() -> torch.nn.Module:
    torch.manual_seed(0)
    return mm.create_model("casvit_nano", num_classes=4, depths=(1, 1, 1, 1), dims=(16, 16, 24, 32))


def test_half_precision_weights(small, tmp_path):
    report = mm.export(small, "onnx", tmp_path / "h.onnx", 48, weights="fp16", pictures=PICTURES, repeats=0)
    graph = onnx.load(tmp_path / "h.onnx").graph
    halves = sum(np.prod(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT16)
    assert halves > 0.7 * report.parameters_after
    assert 1e-6 < report.max_relative_difference < 1e-2
    assert {v.type.tensor_type.elem_type for v in [*graph.input, *graph.output]} == {onnx.TensorProto.FLOAT}


def test_eight_bits(tmp_path):
    """Real weights and photographs: answers stay, weights are bytes, and the file shrinks."""
    model = mm.create_model("casvit_nano.cifar10")
    path = tmp_path / "i.onnx"
    report = mm.export(model, "onnx", path, weights="int8", calibration=photographs(8), repeats=0)
    assert report.weights == "int8"
    assert report.top1_agreement >= 0.8
    graph = onnx.load(path).graph
    sizes = {tensor.data_type: 0 for tensor in graph.initializer}
    for tensor in graph.initializer:
        sizes[tensor.data_type] += int(np.prod(tensor.dims))
    assert sizes[onnx.TensorProto.INT8] > 0.9 * sum(sizes.values())
    assert report.size_bytes < 0.35 * 4 * report.parameters_after


def test_zero_points_of_zero_are_left_out(tmp_path):
    """A missing zero point is zero; one that is not zero stays."""
    helper, types = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["bias", "scale", "zeros"], ["left"], axis=0),
            helper.make_node("DequantizeLinear", ["bias", "scale", "points"], ["right"], axis=0),
        ],
        "two",
        [],
        [helper.make_tensor_value_info(name, types.FLOAT, (3,)) for name in ("left", "right")],
        [
            onnx.numpy_helper.from_array(np.array(values, dtype), name)
            for name, values, dtype in (
                ("bias", [1, -2, 3], np.int8),
                ("scale", [0.5, 1, 2], np.float32),
                ("zeros", [0, 0, 0], np.int8),
                ("points", [0, 1, 0], np.int8),
            )
        ],
    )
    drop_zero_points(graph)
    assert [tensor.name for tensor in graph.initializer] == ["bias", "scale", "points"]
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    left, right = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {})
    np.testing.assert_array_equal(left, [0.5, -2, 6])
    np.testing.assert_array_equal(right, [0.5, -3, 6])


@pytest.mark.parametrize(
    ("change", "stored", "most"), [(in_half_precision, "FLOAT16", 0.55), (in_eight_bits, "INT8", 0.3)]
)
def test_batched_matrices_are_stored_short(change, stored, most, tmp_path):
    """The filters' linear maps: a matrix for every block of channels."""
    helper, random = onnx.helper, np.random.default_rng(0)
    matrices = (
        random.standard_normal((4, 32, 32)).astype(np.float32) * np.linspace(0.1, 10, 32, dtype=np.float32)[:, None]
    )
    taken, given = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (4, 5, 32)) for name in ("pictures", "y")
    )
    constant = onnx.numpy_helper.from_array(matrices, "matrices")
    node = helper.make_node("MatMul", ["pictures", "matrices"], ["y"])
    graph = helper.make_graph([node], "g", [taken], [given], [constant])
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", target.OPSET)], ir_version=10)
    change(file.graph)
    onnx.save(file, tmp_path / "m.onnx")
    numbers = {tensor.data_type: int(np.prod(tensor.dims)) for tensor in file.graph.initializer}
    assert numbers[getattr(onnx.TensorProto, stored)] == matrices.size
    assert (tmp_path / "m.onnx").stat().st_size < most * matrices.nbytes
    pictures = random.standard_normal((4, 5, 32)).astype(np.float32)
    expected = pictures @ matrices
    np.testing.assert_allclose(target.load(tmp_path / "m.onnx")(pictures), expected, atol=0.02 * np.abs(expected).max())


def test_split_convolutions_compute_the_same(tmp_path):
    """Query, key and value come from three convolutions; no split is left in the graph."""
    torch.manual_seed(0)
    mixer = mm.create_mixer("additive", 24).eval()
    example = torch.randn(1, 24, 9, 7)
    program = target.to_onnx(mixer, example, PLAIN)
    assert [node.op_type for node in program.model_proto.graph.node].count("Split") == 1
    target.write(mixer, example, tmp_path / "m.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert "Split" not in operators
    with torch.no_grad():
        expected = mixer(example).numpy()
    np.testing.assert_allclose(target.load(tmp_path / "m.onnx")(example.numpy()), expected, atol=1e-5)


def test_export_that_disagrees_names_the_layer_and_leaves_no_file(small, tmp_path, monkeypatch):
    write = target.write

    def write_a_wrong_one(model, example, path, settings):
        with torch.no_grad():
            model.stages[2].blocks[0].mixer.project.bias += 1.0
            result = write(model, example, path, settings)
            model.stages[2].blocks[0].mixer.project.bias -= 1.0
        return result

    monkeypatch.setattr(target, "write", write_a_wrong_one)
    with pytest.raises(
        MetamixerError, match=r"differs from PyTorch by .*, first in .*stages.2.*blocks.0.*mixer.* and was not kept"
    ):
        mm.export(small, "onnx", tmp_path / "wrong.onnx", 48, pictures=PICTURES, repeats=0)
    assert list(tmp_path.iterdir()) == []


def test_search_for_the_layer_takes_the_limit_of_the_weights_and_may_fail():
    """A search that fails must not replace the message that it is to be part of."""
    asked = []

    def search(model, example, path, settings, tolerance):
        asked.append(tolerance)
        if settings.weights == "fp32":
            raise RuntimeError("no such value")
        return "stages.2"

    module = SimpleNamespace(first_divergence=search)
    said = [_divergence(module, None, None, Path(), Settings(weights)) for weights in ("fp32", "fp16", "int8")]
    assert said == ["", ", first in stages.2", ""]
    assert asked == [1e-4, 3e-2]


def test_command_writes_file_and_report_quietly(tmp_path, capfd):
    (tmp_path / "pictures").mkdir()
    PICTURES[0].save(tmp_path / "pictures" / "a.png")
    export_command("casvit_nano", out=tmp_path / "exported", image_size=32, pictures=tmp_path / "pictures")
    out, err = capfd.readouterr()
    assert err == ""
    assert "casvit_nano.onnx.json" in out
    assert json.loads((tmp_path / "exported" / "casvit_nano.onnx.json").read_text())["image_size"] == 32
