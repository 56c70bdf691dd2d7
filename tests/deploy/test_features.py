"""Backbones without a classifier: one output for every map, in every runtime that is installed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import metamixer as mm
from metamixer.cli import main
from metamixer.deploy.report import as_list
from metamixer.deploy.runtime_process import RuntimeProcess
from metamixer.deploy.targets import TARGETS, target_module
from metamixer.errors import MetamixerError

PICTURES = [Image.effect_noise((50, 60), 80)]
SMALL = dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))


def _outputs(path: Path) -> list[str]:
    return [output.name for output in onnx.load(path).graph.output]


@pytest.mark.filterwarnings("ignore:os.fork")  # of OpenVINO, which JAX does not like where LiteRT has imported it
@pytest.mark.promise("exports", "a features-only model is exported with one output for every map, in every runtime")
@pytest.mark.parametrize("target", ["onnx", "torch", "openvino", "executorch", "litert", "ncnn"])
def test_maps_in_every_runtime(target: str, tmp_path: Path) -> None:
    try:
        target_module(target).check()
    except MetamixerError as error:
        pytest.skip(str(error))
    model = mm.create_model("casvit_nano", features_only=True, **SMALL).eval()
    path = tmp_path / f"m{TARGETS[target].suffix}"
    any_batch = target in ("onnx", "torch", "openvino")
    report = mm.export(model, target, path, 64, pictures=PICTURES, repeats=1, dynamic_batch=any_batch)
    assert report.max_relative_difference < 1e-4
    assert np.isnan(report.top1_agreement)
    pictures = torch.randn(3 if any_batch else 1, 3, 64, 64)
    with torch.no_grad():
        expected = model(pictures)
    with RuntimeProcess(TARGETS[target], path) as runtime:
        answer = as_list(runtime(pictures.numpy()))
    assert [output.shape for output in answer] == [output.shape for output in expected]
    for output, wanted in zip(answer, expected, strict=True):
        np.testing.assert_allclose(output, wanted, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    "name", ["affnet_nano", "resnet10t", *(pytest.param(n, marks=pytest.mark.slow) for n in ("ffnet_nano", "dsm_nano"))]
)
def test_maps_of_other_families_and_of_peers(name: str, tmp_path: Path) -> None:
    """Ours by what timm makes of them, and peers."""
    model = timm.create_model(name, features_only=True)
    report = mm.export(model, "onnx", tmp_path / "m.onnx", 64, pictures=PICTURES, repeats=0)
    assert (report.model, report.max_relative_difference < 1e-4) == (name, True)
    assert _outputs(tmp_path / "m.onnx") == [f"stage_{i}" for i in model.feature_info.out_indices]


def test_stages_keep_their_numbers(tmp_path: Path) -> None:
    model = mm.create_model("casvit_nano", features_only=True, out_indices=(1, -1), **SMALL)
    mm.export(model, "onnx", tmp_path / "m.onnx", 64, normalise=True, pictures=PICTURES, repeats=0)
    assert _outputs(tmp_path / "m.onnx") == ["stage_1", "stage_3"]
    metadata = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert metadata["output"] == "stage_1, stage_3"
    assert json.loads(metadata["feature_info"]) == [
        {"num_chs": 16, "reduction": 8},
        {"num_chs": 32, "reduction": 32},
    ]
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 3, 64, 64)).astype(np.float32)
    maps = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(["stage_1", "stage_3"], {"pictures": pixels})
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        expected = model.eval()((torch.from_numpy(pixels) / 255 - mean) / std)
    for found, wanted in zip(maps, expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))


def test_command_exports_the_maps_of_trained_weights(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "pictures").mkdir()
    PICTURES[0].convert("RGB").save(tmp_path / "pictures" / "a.png")
    options = ["--out", str(tmp_path / "exported"), "--pictures", str(tmp_path / "pictures")]
    assert main(["export", "casvit_nano.cifar10", "--features", "--dynamic-batch", *options]) == 0
    path = tmp_path / "exported" / "casvit_nano.cifar10-features.onnx"
    assert str(path) in capsys.readouterr().out
    assert _outputs(path) == [f"stage_{i}" for i in range(4)]
    assert max(tensor.dims[0] for tensor in onnx.load(path).graph.initializer if tensor.dims) < 1000
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = (
            mm.create_model("casvit_nano.cifar10").eval().forward_intermediates(pictures, intermediates_only=True)
        )
    found = onnxruntime.InferenceSession(str(path)).run(None, {"pictures": pictures.numpy()})
    for output, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(output, wanted, atol=1e-4 * float(wanted.abs().max()))


class Several(nn.Module):
    def __init__(self, give: type) -> None:
        super().__init__()
        self.give, self.layer = give, nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> object:
        y = self.layer(x)
        return {"a": y} if self.give is dict else self.give([y, y])


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("casvit_nano", dict(softmax=True), "know no softmax: its outputs are no classes"),
        ("casvit_nano", dict(weights="int8", calibration=PICTURES), "know no int8: .* it names none"),
        ("ffnet_sr_nano", {}, "ffnet_sr_nano exports know no features"),
        (nn.Conv2d(3, 4, 1), dict(image_size=16), "conv2d does not give the maps after its stages"),
        (Several(tuple), dict(image_size=16, features=False), "several gives 2 outputs where 1 can be exported"),
        (Several(dict), dict(image_size=16, features=False), "outputs are tensors, and the model gives a dict"),
    ],
)
def test_what_does_not_go_together(model: str | nn.Module, options: dict, said: str, tmp_path: Path) -> None:
    model = mm.create_model(model) if isinstance(model, str) else model
    with pytest.raises(MetamixerError, match=said):
        mm.export(model, "onnx", tmp_path / "m.onnx", **{"features": True, **options})
    assert list(tmp_path.iterdir()) == []
