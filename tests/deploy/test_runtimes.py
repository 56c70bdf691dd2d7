"""Every runtime that is installed takes a spectral and a convolutional network, and says what PyTorch says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import metamixer as mm
from metamixer.deploy.pictures import photographs
from metamixer.deploy.targets import TARGETS, target_module
from metamixer.errors import MetamixerError

NOISE = np.random.default_rng(0).integers(0, 256, (3, 60, 50, 3), dtype=np.uint8)
PICTURES = [Image.fromarray(pixels) for pixels in NOISE]
SMALL = dict(depths=(1, 1, 1, 1), dims=(16, 16, 32, 64), num_classes=5)


def _available(target: str) -> None:
    try:
        target_module(target).check()
    except MetamixerError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=["affnet_nano", "casvit_nano", "ffnet_nano", "dsm_nano"])
def model(request) -> torch.nn.Module:
    torch.manual_seed(0)
    extra = {} if request.param == "affnet_nano" else {"depths": SMALL["depths"], "dims": SMALL["dims"]}
    return mm.create_model(request.param, num_classes=5, **extra)


@pytest.mark.parametrize("target", ["openvino", "executorch", "litert", "ncnn"])
def test_agrees_with_pytorch(target, model, tmp_path):
    _available(target)
    path = tmp_path / f"m{TARGETS[target].suffix}"
    report = mm.export(model, target, path, 48, pictures=PICTURES, repeats=2, normalise=True)
    assert report.ran
    assert report.max_relative_difference < 1e-4
    assert report.top1_agreement == 1
    assert report.latency_runtime_ms > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, f"{path.name}.json"]


def test_torch_program_keeps_its_metadata_and_neither_source_lines_nor_pictures(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "m.pt2"
    report = mm.export(mm.create_model("casvit_nano", **SMALL), "torch", path, 48, pictures=PICTURES, repeats=0)
    assert report.max_relative_difference < 1e-5
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra)
    assert json.loads(extra["metadata.json"])["image_size"] == "48"
    assert not any("stack_trace" in node.meta for node in program.graph.nodes)
    assert program.example_inputs is None  # no picture of the user's


@pytest.mark.parametrize("target", ["openvino", "ncnn"])
def test_metadata_goes_along(target, tmp_path):
    _available(target)
    torch.manual_seed(0)
    path = tmp_path / f"m{TARGETS[target].suffix}"
    mm.export(mm.create_model("casvit_nano", **SMALL), target, path, 48, pictures=PICTURES, repeats=0, softmax=True)
    metadata = json.loads((path / "metadata.json").read_text())
    assert (metadata["architecture"], metadata["image_size"]) == ("casvit_nano", "48")
    assert (metadata["input"], metadata["output"]) == ("normalised", "probabilities")


@pytest.mark.parametrize("target", ["openvino", "torch"])
def test_range_of_sizes_and_batches(target, tmp_path):
    """Five sizes, odd ones among them, and maps that are no squares."""
    _available(target)
    torch.manual_seed(0)
    model = mm.create_model("dsm_nano", num_classes=7, depths=(1, 1), dims=(16, 24)).eval()
    path = tmp_path / f"m{TARGETS[target].suffix}"
    report = mm.export(model, target, path, sizes=(33, 80), dynamic_batch=True, pictures=PICTURES, repeats=0)
    assert report.checked_sizes == sorted({33, 45, 57, 69, 80, model.pretrained_cfg["input_size"][-1]})
    pictures = torch.randn(3, 3, 47, 70, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(pictures).numpy()
    np.testing.assert_allclose(target_module(target).load(path)(pictures.numpy()), expected, atol=1e-4)


@pytest.mark.parametrize("weights", ["fp32", "fp16"])
def test_core_ml_takes_it_and_names_what_the_neural_engine_may_not(model, tmp_path, weights):
    _available("coreml")
    path = tmp_path / "m.mlpackage"
    report = mm.export(model, "coreml", path, 48, pictures=PICTURES, repeats=0, weights=weights)
    assert "every operation is on the neural engine's list" in report.format
    assert ("float32 runs on CPU and GPU alone" in report.format) == (weights == "fp32")
    if not report.ran:
        assert json.loads((tmp_path / "m.mlpackage.json").read_text())["max_abs_difference"] is None


@pytest.mark.parametrize(
    ("target", "name"),
    [
        *((target, "casvit_nano") for target in ("openvino", "litert", "ncnn", "executorch", "torch")),
        ("litert", "dsm_nano"),  # layers share matrices, over which LiteRT's quantiser stumbles
    ],
)
def test_half_precision(name, target, tmp_path):
    _available(target)
    torch.manual_seed(0)
    model = mm.create_model(name, **SMALL)
    path = tmp_path / f"m{TARGETS[target].suffix}"
    report = mm.export(model, target, path, 48, pictures=PICTURES, repeats=0, weights="fp16")
    assert 1e-6 < report.max_relative_difference < 2e-2


@pytest.mark.parametrize(
    ("target", "name", "share"),
    [
        ("openvino", "casvit_nano.cifar10", 0.31),
        ("executorch", "casvit_nano.cifar10", 0.35),
        ("litert", "casvit_nano.cifar10", 0.35),
        ("litert", "affnet_nano.cifar10", 0.5),  # the filters' maps stay in float32
        ("litert", "dsm_nano.cifar10", 0.35),
    ],
)
def test_eight_bits(target, name, share, tmp_path):
    _available(target)
    path, some = tmp_path / f"m{TARGETS[target].suffix}", photographs(16)
    report = mm.export(name, target, path, weights="int8", calibration=some, pictures=some, repeats=0)
    weights = path / "model.bin" if target == "openvino" else path
    assert weights.stat().st_size < share * 4 * report.parameters_after


def test_core_ml_wants_its_suffix(tmp_path):
    _available("coreml")
    with pytest.raises(MetamixerError, match=r"ends in .mlpackage"):
        mm.export("casvit_nano", "coreml", tmp_path / "m.coreml", pictures=PICTURES)


@pytest.mark.parametrize(
    ("target", "name"),
    [("executorch_coreml", "affnet_nano"), ("executorch_coreml", "casvit_nano"), ("executorch_vulkan", "casvit_nano")],
)
def test_delegates_of_executorch_take_all_of_a_network(name, target, tmp_path):
    """Nothing here runs their programs; what can be seen is that no operation falls to a phone's processor."""
    _available(target)
    torch.manual_seed(0)
    model = mm.create_model(name, **(dict(num_classes=5) if name == "affnet_nano" else SMALL))
    path = tmp_path / f"m{TARGETS[target].suffix}"
    report = mm.export(model, target, path, 48, pictures=PICTURES, repeats=0, weights="fp16")
    assert not report.ran
    assert report.format.endswith("; every operation in it")


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["fp32", "fp16"])
def test_aotinductor(weights, tmp_path):
    _available("aotinductor")
    torch.manual_seed(0)
    path = tmp_path / "m.pt2"
    model = mm.create_model("casvit_nano", **SMALL)
    report = mm.export(model, "aotinductor", path, 48, pictures=PICTURES, repeats=0, weights=weights)
    assert report.max_relative_difference < (1e-5 if weights == "fp32" else 1e-2)
    assert json.loads(torch._inductor.aoti_load_package(str(path)).get_metadata()["preprocessing"])


def test_aotinductor_wants_its_suffix_and_a_compiler(tmp_path, monkeypatch):
    _available("aotinductor")
    with pytest.raises(MetamixerError, match=r"ends in .pt2"):
        mm.export(mm.create_model("casvit_nano", **SMALL), "aotinductor", tmp_path / "m.so", 48, pictures=PICTURES)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MetamixerError, match=r"needs a C\+\+ compiler"):
        mm.export("casvit_nano", "aotinductor", tmp_path / "m.pt2", pictures=PICTURES)
