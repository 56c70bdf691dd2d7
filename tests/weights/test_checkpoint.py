"""Our own layout: what is written comes back, with everything a user needs to use the network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from metamixer import MetamixerError, build, create_model
from metamixer.data.transforms import Preprocessing
from metamixer.models import class_names, load_model
from metamixer.weights import read_metadata, save_checkpoint
from metamixer.weights.convert import convert, infer_architecture
from metamixer.weights.released import to_our_layout

GOLDEN = Path(__file__).parents[1] / "golden"
PREPROCESSING = Preprocessing(48, 0.8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    trained = create_model("metaformer_nano", mixer=["pooling", "ffnified", "aff", "attention"], num_classes=3).eval()
    save_checkpoint(trained, path, ["cat", "dog", "eel"], PREPROCESSING)
    model = load_model(path).eval()
    picture = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(picture), trained(picture))
    cfg = model.pretrained_cfg
    assert cfg["architecture"] == "metaformer_nano"
    assert cfg["label_names"] == ("cat", "dog", "eel")
    assert cfg["num_classes"] == model.num_classes == 3
    assert cfg["input_size"] == (3, 48, 48)
    assert Preprocessing.of(cfg) == PREPROCESSING
    assert class_names(model) == ["cat", "dog", "eel"]
    # A second round changes nothing.
    save_checkpoint(model, tmp_path / "again.safetensors")
    assert read_metadata(tmp_path / "again.safetensors") == read_metadata(path)


def test_other_classes_forget_the_names(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_checkpoint(create_model("ffnet_nano", num_classes=2), path, ["cat", "dog"])
    model = create_model("ffnet_nano", checkpoint=path, num_classes=4)
    assert model.num_classes == 4
    assert class_names(model) is None
    save_checkpoint(model, tmp_path / "again.safetensors")
    assert read_metadata(tmp_path / "again.safetensors").classes is None


def test_half_precision_is_loaded_into_single(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    trained = create_model("affnet_nano", num_classes=2)
    save_checkpoint(trained, path, dtype=torch.float16)
    with safe_open(path, framework="pt") as file:
        assert file.get_tensor("head.fc.weight").dtype == torch.float16
    weight = create_model("affnet_nano", checkpoint=path).head.fc.weight
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, trained.head.fc.weight, atol=1e-3, rtol=1e-3)


def test_a_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    save_checkpoint(create_model("ffnet_nano", num_classes=2), tmp_path / "own.safetensors")
    with pytest.raises(MetamixerError, match="belongs to ffnet_nano, not to casvit_nano"):
        create_model("casvit_nano", checkpoint=tmp_path / "own.safetensors")


def test_metadata_of_strangers(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    assert read_metadata(path) is None
    save_file({"a": torch.zeros(1)}, path, {"architecture": "x", "classes": "{nonsense"})
    with pytest.raises(MetamixerError, match=r"file.safetensors: classes is no valid JSON"):
        read_metadata(path)
    save_file({"a": torch.zeros(1)}, path, {"architecture": "x", "preprocessing": json.dumps({"colour": "blue"})})
    with pytest.raises(MetamixerError, match=r"file.safetensors: preprocessing.image_size is missing"):
        read_metadata(path)


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MetamixerError, match="no such folder"):
        save_checkpoint(create_model("ffnet_nano"), tmp_path / "none" / "own.safetensors")


@pytest.mark.parametrize("name", ["casvit_nano", "affnet_nano", "dsm_nano"])
def test_convert_infers_the_architecture(name: str, tmp_path: Path) -> None:
    trained = create_model(name, num_classes=6).eval()
    torch.save(
        {"model": {f"module.{key}": tensor for key, tensor in trained.state_dict().items()}}, tmp_path / "in.pth"
    )
    convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    metadata = read_metadata(tmp_path / "out.safetensors")
    assert metadata is not None
    assert (metadata.architecture, metadata.arguments["num_classes"]) == (name, 6)
    picture = torch.randn(1, 3, 64, 64)
    assert torch.equal(load_model(tmp_path / "out.safetensors").eval()(picture), trained(picture))
    assert torch.equal(load_model(tmp_path / "in.pth").eval()(picture), trained(picture))


@pytest.mark.parametrize("name", ["ffnet_1", "casvit_xs_features"])
def test_released_files_tell_their_architecture(name: str) -> None:
    described = json.loads((GOLDEN / f"{name}.json").read_text())["state_dict"]
    released = {key: torch.empty(shape, device="meta") for key, (shape, _) in described.items()}
    assert infer_architecture(to_our_layout(released)) == name.removesuffix("_features")


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shaped = dict(dims=np.array([16] * 4), mlp_ratio=np.float32(2), num_classes=torch.tensor(5))
    model = create_model("casvit_nano", **shaped)
    save_checkpoint(model, tmp_path / "own.safetensors", preprocessing=Preprocessing(np.int64(64), mean=np.zeros(3)))
    again = load_model(tmp_path / "own.safetensors").eval()
    assert again.num_classes == 5
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    metadata = read_metadata(tmp_path / "own.safetensors")
    assert metadata is not None
    assert metadata.preprocessing == Preprocessing(64, mean=(0.0, 0.0, 0.0))
    assert not caplog.records


def test_what_a_file_cannot_keep_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build("semantic_fpn", backbone="resnet18", backbone_kwargs=dict(act_layer=nn.SiLU))
    save_checkpoint(model, tmp_path / "own.safetensors")
    assert "the argument backbone_kwargs is not kept in the file" in caplog.text


def test_a_part_of_a_network_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(MetamixerError, match="is a part of a network; save the network that it was taken from"):
        save_checkpoint(create_model("affnet_nano", features_only=True), tmp_path / "part.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_convert_takes_a_tags_preprocessing(tmp_path: Path) -> None:
    torch.save(create_model("casvit_xs").state_dict(), tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "out.safetensors", "casvit_xs.in1k_384")
    metadata = read_metadata(tmp_path / "out.safetensors")
    assert metadata is not None
    assert metadata.preprocessing is not None
    assert metadata.preprocessing == Preprocessing(384, 1.0, crop_mode="squash")
    # What the file says is what is done with a picture.
    assert Preprocessing.of(load_model(tmp_path / "out.safetensors").pretrained_cfg) == metadata.preprocessing


def test_convert_refuses(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "in.pth")
    with pytest.raises(MetamixerError, match=r"must end in \.safetensors"):
        convert(tmp_path / "in.pth", tmp_path / "out.pth")
    with pytest.raises(MetamixerError, match="name it with --model"):
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    with pytest.raises(MetamixerError, match="does not fit ffnet_nano"):
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors", "ffnet_nano")
    with pytest.raises(MetamixerError, match="unknown model 'nonsense'"):
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors", "nonsense")
    assert not (tmp_path / "out.safetensors").exists()
    with pytest.raises(MetamixerError, match="metamixer convert"):
        load_model(tmp_path / "in.pth")
