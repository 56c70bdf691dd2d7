"""Checkpoints of every layout go in; whatever does not fit, or cannot be trusted, is one sentence."""

from __future__ import annotations

import argparse
import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from metamixer import MetamixerError, create_model, limits
from metamixer.data.pickles import load_pickle
from metamixer.weights.load import adapt_input_channels, load_into, read_state

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    return create_model("casvit_nano", num_classes=5)


@pytest.fixture(scope="module")
def weights(trained: nn.Module) -> Weights:
    return trained.state_dict()


def loaded(path: Path, **kwargs: object) -> Weights:
    return create_model("casvit_nano", checkpoint=path, **{"num_classes": 5, **kwargs}).state_dict()


def assert_same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


OTHER = {"anything": torch.zeros(3)}
WRAPPINGS = {
    "raw": lambda w: w,
    "model": lambda w: {"model": w, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}, "epoch": 3},
    "state_dict": lambda w: {"state_dict": w, "arch": "casvit_nano"},
    "model_ema": lambda w: {"model": OTHER, "model_ema": w},
    "state_dict_ema": lambda w: {"state_dict": OTHER, "state_dict_ema": w},
    "cvnets": lambda w: {"model_state_dict": OTHER, "ema_state_dict": w},
    "timm": lambda w: {"state_dict": w, "args": argparse.Namespace(lr=0.1)},
    "module": lambda w: {f"module.{key}": tensor for key, tensor in w.items()},
    "compiled": lambda w: {"model": {f"module._orig_mod.{key}": tensor for key, tensor in w.items()}},
    "backbone": lambda w: {"state_dict": {**{f"backbone.{k}": t for k, t in w.items()}, "neck.conv.weight": OTHER}},
    "encoder": lambda w: (
        {f"module.encoder.{key}": tensor for key, tensor in w.items()} | {"seg_head.bias": torch.ones(1)}
    ),
    "no counters": lambda w: {key: tensor for key, tensor in w.items() if "num_batches" not in key},
    "half precision": lambda w: {key: t.half() if t.is_floating_point() else t for key, t in w.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("legacy", [False, True])
def test_wrappings(wrapping: str, legacy: bool, weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "file.pth.tar"
    torch.save(WRAPPINGS[wrapping](weights), path, _use_new_zipfile_serialization=not legacy)
    expected = weights
    if wrapping == "half precision":
        expected = {key: t.half().float() if t.is_floating_point() else t for key, t in weights.items()}
    assert_same(loaded(path), expected)


def test_plain_safetensors(weights: Weights, tmp_path: Path) -> None:
    save_file(weights, tmp_path / "file.safetensors")
    assert_same(loaded(tmp_path / "file.safetensors"), weights)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "ckpt"])
def test_files_larger_than_memory_are_refused(
    suffix: str, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"file.{suffix}"
    save_file(weights, file) if suffix == "safetensors" else torch.save(weights, file)
    monkeypatch.setattr(limits, "available_memory", lambda: file.stat().st_size - 1)
    read = load_pickle if suffix == "ckpt" else read_state  # the one asks for itself
    with pytest.raises(MetamixerError, match=rf"too little memory for .*file\.{suffix}: .* needed"):
        read(file)
    monkeypatch.setattr(limits, "available_memory", lambda: file.stat().st_size)
    read(file)


def test_another_number_of_classes_keeps_the_backbone(
    weights: Weights, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(weights, tmp_path / "file.pth")
    found = loaded(tmp_path / "file.pth", num_classes=7)
    assert found["head.fc.weight"].shape == (7, 160)
    assert torch.equal(found["stages.3.blocks.0.norm1.weight"], weights["stages.3.blocks.0.norm1.weight"])
    assert torch.equal(found["stem.0.conv.weight"], weights["stem.0.conv.weight"])
    assert "holds a classifier of 5 classes, not 7: the model's own stays" in caplog.text


def test_nothing_is_said_where_everything_fits(
    weights: Weights, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(weights, tmp_path / "file.pth")
    with caplog.at_level(logging.INFO, "metamixer"):
        loaded(tmp_path / "file.pth")
    assert not caplog.records


@pytest.mark.parametrize(("held", "wanted"), [(False, True), (True, False), (True, True)])
def test_one_and_two_classifiers(held: bool, wanted: bool, tmp_path: Path) -> None:
    """Whatever the numbers of classifiers, the network computes what the file's network computes."""
    source = create_model("casvit_nano", num_classes=5, distilled=held).eval()
    model = create_model("casvit_nano", num_classes=5, distilled=wanted).eval()
    load_into(model, source.state_dict())
    picture = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(picture), source(picture))


def test_features_and_headless_models_need_no_classifier(weights: Weights, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "file.pth")
    features = create_model("casvit_nano", features_only=True, out_indices=(1, 2), checkpoint=tmp_path / "file.pth")
    assert torch.equal(features.state_dict()["model.stem.0.conv.weight"], weights["stem.0.conv.weight"])
    assert torch.equal(loaded(tmp_path / "file.pth", num_classes=0)["final.bias"], weights["final.bias"])


def test_other_input_channels_are_adapted(weights: Weights, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(weights, tmp_path / "file.pth")
    found = loaded(tmp_path / "file.pth", in_chans=1)
    torch.testing.assert_close(found["stem.0.conv.weight"], weights["stem.0.conv.weight"].sum(1, keepdim=True))
    assert "adapted to 1" in caplog.text


@pytest.mark.parametrize("wanted", [1, 2, 4, 7])
def test_adapted_channels_are_timms(wanted: int) -> None:
    weight = torch.randn(4, 3, 3, 3).half()
    torch.testing.assert_close(adapt_input_channels(weight, wanted), adapt_input_conv(wanted, weight))


@pytest.mark.parametrize(("held", "wanted"), [(4, 3), (1, 3), (2, 5)])
def test_adapted_channels_answer_alike_to_equal_ones(held: int, wanted: int) -> None:
    weight = torch.randn(4, 1, 3, 3).expand(4, held, 3, 3)
    adapted = adapt_input_channels(weight, wanted)
    assert adapted.shape == (4, wanted, 3, 3)
    torch.testing.assert_close(adapted.sum(1), weight.sum(1))


def refused(path: Path, message: str, name: str = "casvit_nano") -> None:
    with pytest.raises(MetamixerError, match=message) as caught:
        create_model(name, checkpoint=path, num_classes=5)
    assert "\n" not in str(caught.value)


def test_another_models_file_names_the_first_keys(weights: Weights, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "file.pth")
    refused(
        tmp_path / "file.pth", r"does not fit ffnet_nano \(missing: .*, .*, .* and \d+ more; unexpected: ", "ffnet_nano"
    )
    torch.save({"layer1.weight": torch.zeros(2)}, tmp_path / "resnet.pth")
    refused(tmp_path / "resnet.pth", "does not fit casvit_nano .*unexpected: layer1.weight")


def test_other_shapes_are_named(weights: Weights, tmp_path: Path) -> None:
    torch.save({**weights, "final.bias": torch.zeros(3)}, tmp_path / "file.pth")
    refused(tmp_path / "file.pth", r"misshapen: final.bias \(3,\) instead of \(160,\)")


def test_a_refused_file_leaves_the_model_alone(trained: nn.Module, weights: Weights) -> None:
    before = {key: tensor.clone() for key, tensor in weights.items()}
    wrong = {key: tensor + 1 for key, tensor in weights.items() if key != "final.bias"}
    with pytest.raises(MetamixerError, match=r"missing: final\.bias"):
        load_into(trained, wrong)
    assert_same(trained.state_dict(), before)


@pytest.mark.parametrize("legacy", [False, True])
def test_files_cut_short(legacy: bool, weights: Weights, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save(weights, whole, _use_new_zipfile_serialization=not legacy)
    contents = whole.read_bytes()
    for length in (9, 100, len(contents) // 2, len(contents) - 100):
        cut.write_bytes(contents[:length])
        refused(cut, "cut.pth is cut short or damaged")


def test_safetensors_cut_short(weights: Weights, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    save_file(weights, whole)
    contents = whole.read_bytes()
    for length in (4, 100, len(contents) // 2, len(contents) - 1):
        cut.write_bytes(contents[:length])
        refused(cut, "cut.safetensors is cut short, damaged or no safetensors file")
    renamed = tmp_path / "cut.pth"
    renamed.write_bytes(contents[:-1])
    refused(renamed, "cut.pth is cut short or damaged")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_checkpoints(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{suffix}"
    refused(path, "no such file|cannot be read")
    path.write_bytes(b"")
    refused(path, "is empty|no safetensors file")
    path.write_text("These are not the weights you are looking for.")
    refused(path, "is no checkpoint|no safetensors file")
    refused(tmp_path, "is a folder, not a checkpoint")


@pytest.mark.parametrize("contents", [[torch.zeros(2)], {"epoch": 3}, torch.zeros(2)])
def test_checkpoints_without_weights(contents: object, tmp_path: Path) -> None:
    torch.save(contents, tmp_path / "file.pth")
    refused(tmp_path / "file.pth", "holds no weights")


class Hostile:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle"])
def test_a_hostile_pickle_does_not_run(kind: str, weights: Weights, tmp_path: Path) -> None:
    path, victim = tmp_path / "file.pth", tmp_path / "was here"
    contents = {"state_dict": weights, "extra": Hostile(victim)}
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps({"extra": Hostile(victim)}))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=kind == "zip")
    refused(path, r"was not opened, because reading it could run code.*weights_only=False.*save only its state dict")
    assert not victim.exists()
    if kind == "zip":  # the trap is a real one
        torch.load(path, weights_only=False)
        assert victim.is_dir()


def test_reading_gives_our_names(weights: Weights, tmp_path: Path) -> None:
    torch.save({"module.final.bias": weights["final.bias"]}, tmp_path / "file.pth")
    assert read_state(tmp_path / "file.pth").keys() == {"final.bias"}
