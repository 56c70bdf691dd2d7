"""Export and timing of the networks that classify no pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import metamixer as mm
from metamixer.bench.macs import count_macs, count_macs_of
from metamixer.deploy import onnx
from metamixer.deploy.coreml import unfolded
from metamixer.deploy.export import source_of
from metamixer.deploy.other_inputs import windows
from metamixer.deploy.targets import TARGETS, target_module
from metamixer.errors import MetamixerError

SMALL_SERIES = dict(channels=3, lookback=24, horizon=6, dim=8, kernel_size=11, small_kernel=3)


@pytest.fixture(scope="module")
def enlarging() -> torch.nn.Module:
    torch.manual_seed(0)
    return mm.create_model("ffnet_sr_nano", scale=3, dim=8, depth=2).eval()


def test_super_resolution_as_onnx(enlarging: torch.nn.Module, tmp_path: Path) -> None:
    Image.effect_noise((50, 40), 60).save(tmp_path / "a.png")
    options = dict(sizes=(33, 70), dynamic_batch=True, pictures=[tmp_path / "a.png"], repeats=0)
    report = mm.export(enlarging, "onnx", tmp_path / "m.onnx", **options)
    assert report.model == "ffnet_sr_nano"
    assert report.checked_sizes[::4] == [33, 70]
    assert report.max_relative_difference < 1e-5
    assert np.isnan(report.top1_agreement)  # it names no class
    assert json.loads((tmp_path / "m.onnx.json").read_text())["top1_agreement"] is None
    pictures = torch.rand(2, 3, 35, 68)
    with torch.no_grad():
        expected = enlarging(pictures).numpy()
    np.testing.assert_allclose(onnx.load(tmp_path / "m.onnx")(pictures.numpy()), expected, atol=1e-5)


def test_forecasting_as_onnx(tmp_path: Path) -> None:
    model = mm.create_model("ffnet_tsf", **SMALL_SERIES)
    with torch.no_grad():  # statistics as after a training, so that merging has something to do
        model.train()(windows(model, 16))
    report = mm.export(model, "onnx", tmp_path / "m.onnx", dynamic_batch=True, repeats=0)
    assert (report.model, report.image_size) == ("ffnet_tsf", 24)
    assert report.parameters_after < report.parameters_before
    assert max(report.max_relative_difference, report.merge_difference) < 1e-4
    inputs = windows(model, 3)
    with torch.no_grad():
        expected = model.eval()(inputs).numpy()
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    np.testing.assert_allclose(session.run(["forecast"], {"series": inputs.numpy()})[0], expected, atol=1e-4)


@pytest.mark.parametrize("target", ["openvino", "executorch", "litert", "ncnn"])
def test_super_resolution_in_other_runtimes(target: str, enlarging: torch.nn.Module, tmp_path: Path) -> None:
    path = _artefact(target, tmp_path)
    pictures = [Image.effect_noise((50, 40), 60)]
    assert mm.export(enlarging, target, path, 33, pictures=pictures, repeats=0).max_relative_difference < 1e-5


@pytest.mark.parametrize("target", ["torch", "openvino", "executorch", "litert", "coreml"])
def test_forecasting_in_other_runtimes(target: str, tmp_path: Path) -> None:
    path = _artefact(target, tmp_path)
    report = mm.export(mm.create_model("ffnet_tsf", **SMALL_SERIES), target, path, repeats=0)
    assert not report.ran or report.max_relative_difference < 1e-4


def test_windows_of_slices() -> None:
    x = torch.rand(2, 9, 4)
    for dimension, size, step in ((1, 3, 2), (2, 4, 1), (0, 1, 1)):
        assert torch.equal(unfolded(x, dimension, size, step), x.unfold(dimension, size, step))


def test_ncnn_lacks_layers_for_forecasting(tmp_path: Path) -> None:
    path = _artefact("ncnn", tmp_path)
    with pytest.raises(MetamixerError, match=r"^ncnn has no layer for .*torch\.baddbmm"):
        mm.export(mm.create_model("ffnet_tsf", **SMALL_SERIES), "ncnn", path, repeats=0)
    assert list(tmp_path.iterdir()) == []


def _artefact(target: str, folder: Path) -> Path:
    try:
        target_module(target).check()
    except MetamixerError as error:
        pytest.skip(str(error))
    return folder / f"m{TARGETS[target].suffix}"


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("ffnet_points_tiny", {}, "ffnet_points_tiny cannot be exported: .* it runs with PyTorch alone"),
        ("ffnet_sr_nano", dict(softmax=True), "ffnet_sr_nano exports know no softmax: its outputs are no classes"),
        ("ffnet_sr_nano", dict(weights="int8", calibration="x"), "know no int8"),
        ("ffnet_sr_nano", dict(image_size=(48, 64)), "takes squares"),
        ("ffnet_tsf", dict(image_size=48), "reads windows of 96 rows and of no other size"),
        ("ffnet_tsf", dict(sizes=(48, 64)), "its windows have one length"),
        ("ffnet_tsf", dict(pictures="x"), "no pictures"),
    ],
)
def test_what_cannot_be_exported(name: str, options: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(MetamixerError, match=said):
        mm.export(mm.create_model(name), "onnx", tmp_path / "m", **options)
    assert list(tmp_path.iterdir()) == []


def test_inputs_to_time_on(enlarging: torch.nn.Module) -> None:
    assert source_of(enlarging, "sr").example(2, None).shape == (2, 3, 64, 64)
    forecasting = source_of(mm.create_model("ffnet_tsf", **SMALL_SERIES), "tsf")
    assert forecasting.example(2, None).shape == (2, 24, 3)
    with pytest.raises(MetamixerError, match="windows of 24 rows and of no other size"):
        forecasting.example(1, 30)
    network = mm.create_model("ffnet_points_tiny").eval()
    points = source_of(network, "points")
    clouds = points.example(2, 300)
    assert clouds.shape == (2, 300, 9)
    assert points.side(clouds) == 300
    packed = points.graph(network)
    with torch.no_grad():
        torch.testing.assert_close(packed(clouds)[300:], packed(clouds[1:]))


def test_benchmark_of_other_networks() -> None:
    report = mm.benchmark(["ffnet_points_tiny"], ["torch"], image_size=36, repeats=1)
    assert report.failed == {}
    assert [(row.model, row.image_size) for row in report.rows] == [("ffnet_points_tiny", 36)]
    assert report.rows[0].macs > 0


def test_macs_of_any_input() -> None:
    nano = mm.create_model("ffnet_sr_nano")
    assert count_macs_of(nano, torch.rand(1, 3, 36, 36)) == count_macs(nano, 36)
