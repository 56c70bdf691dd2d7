"""Weights and outputs that are no numbers are said as such, by every verb that runs a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

import metamixer as mm
from metamixer import finite
from metamixer.cli import main
from metamixer.deploy import onnx as target
from metamixer.errors import MetamixerError
from metamixer.finite import first_strange, strange_weight
from metamixer.weights import save_checkpoint

SMALL = dict(num_classes=3, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
PICTURE = Image.effect_noise((40, 40), 80).convert("RGB")
NAN = "the weights of casvit_nano hold values that are not finite, first in stages.1.blocks.0."
OVERFLOW = "casvit_nano gives values that are not finite in "


def _casvit(spoil: Callable[[torch.Tensor], object]) -> nn.Module:
    model = mm.create_model("casvit_nano", **SMALL)
    with torch.no_grad():
        for parameter in model.stages[1].blocks[0].parameters():
            spoil(parameter)
    return model


def _nan() -> nn.Module:
    return _casvit(lambda weight: weight.view(-1)[:1].fill_(float("nan")))


def _overflowing() -> nn.Module:
    return _casvit(lambda weight: weight.fill_(1e15))


@pytest.mark.promise(
    "faults", "weights or outputs that are not finite are named by predict, evaluate, merge, export, bench"
)
@pytest.mark.parametrize(("make", "said"), [(_nan, NAN), (_overflowing, OVERFLOW)])
def test_every_verb_says_so(
    make: Callable[[], nn.Module], said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = make()
    with pytest.raises(MetamixerError, match=said):
        mm.predict(model, PICTURE)
    assert not model._forward_hooks
    with pytest.raises(MetamixerError, match=said):
        mm.export(model, "onnx", tmp_path / "m.onnx", 32, pictures=[PICTURE])
    assert list(tmp_path.iterdir()) == []
    if make is _nan:
        with pytest.raises(MetamixerError, match=said):
            mm.merge(model)
    checkpoint = tmp_path / "m.safetensors"
    save_checkpoint(model, checkpoint, classes=("a", "b", "c"))
    for name in ("a", "b", "c"):
        (tmp_path / "data" / name).mkdir(parents=True)
        PICTURE.save(tmp_path / "data" / name / "0.png")
    with pytest.raises(MetamixerError, match=said.partition("casvit_nano")[2]):  # which is called by the file's path
        mm.benchmark([str(checkpoint)], ["torch"], image_size=32, repeats=1)
    for verb in (["predict", str(tmp_path / "data" / "a" / "0.png")], ["evaluate", "--data", str(tmp_path / "data")]):
        assert main([verb[0], str(checkpoint), *verb[1:]]) == 1
        error = capsys.readouterr().err
        assert said in error
        assert "Traceback" not in error


def test_every_output_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, calls = tmp_path / "m.safetensors", []
    model = mm.create_model("casvit_nano", **SMALL)
    save_checkpoint(model, checkpoint, classes=("a", "b", "c"))
    (tmp_path / "data" / "a").mkdir(parents=True)
    PICTURE.save(tmp_path / "data" / "a" / "0.png")
    monkeypatch.setattr(finite, "check_outputs", lambda outputs, module: calls.append(module))
    assert main(["predict", str(checkpoint), str(tmp_path / "data" / "a" / "0.png"), "--image-size", "32"]) == 0
    assert len(calls) == 1
    asked = ["evaluate", str(checkpoint), "--data", str(tmp_path / "data"), "--image-size", "32", "--workers", "0"]
    assert main(asked) == 0
    assert len(calls) == 2


@pytest.mark.parametrize("build", ["semantic_fpn", "retinanet", "ffnet_sr_nano"])
def test_other_networks_say_so(build: str) -> None:
    if build.startswith("ffnet"):
        model: nn.Module = mm.create_model(build, scale=2, dim=8, depth=1)
    else:
        model = mm.build(build, "test_resnet", num_classes=2, channels=8)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(MetamixerError, match=r"the weights of .* not finite, first in "):
        mm.predict(model, PICTURE)


def test_an_impossible_variance_is_named() -> None:
    model = mm.create_model("casvit_nano", **SMALL)
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    norm.running_var.fill_(-1)
    assert strange_weight(model) is None
    with pytest.raises(MetamixerError, match=r"merging casvit_nano makes values that are not finite in .*variance"):
        mm.merge(model)


def test_an_artefact_that_overflows_is_refused_by_the_name_of_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = target.write

    def write_with_inf(model, example, path, settings):
        result = write(model, example, path, settings)
        file = onnx.load(path)
        weight = max(file.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
        weight.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(weight.dims), np.inf, np.float32), weight.name))
        onnx.save(file, path)
        return result

    monkeypatch.setattr(target, "write", write_with_inf)
    with pytest.raises(MetamixerError, match="of casvit_nano gives values that are not finite in logits, first in"):
        mm.export(
            mm.create_model("casvit_nano", **SMALL), "onnx", tmp_path / "m.onnx", 48, pictures=[PICTURE], repeats=0
        )


def test_where_it_is() -> None:
    good, bad = torch.zeros(2), torch.tensor([0.0, float("inf")])
    assert first_strange(good) is first_strange([good, {"a": good}]) is first_strange(torch.arange(3)) is None
    assert first_strange(bad) == "its output"
    assert first_strange([good, bad], ("logits", "boxes")) == "boxes"
    assert first_strange([good, bad]) == "output 1"
    assert first_strange({"logits": good, "maps": (good, bad)}) == "maps"
    assert first_strange([np.array([np.nan])], ("scores",)) == "scores"
    masked = nn.Linear(2, 2)
    masked.register_buffer("mask", torch.tensor([float("-inf"), 0.0]))
    assert strange_weight(masked) is None  # an infinite mask is meant
    masked.register_buffer("statistics", torch.tensor([float("nan")]))
    assert strange_weight(masked) == "statistics"
