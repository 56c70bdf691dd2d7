"""Names, sizes and errors of the model factory."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import metamixer as mm
from metamixer import MetamixerError
from metamixer.models import class_names, load_model

# Millions of parameters of the released networks.
PARAMETERS = {
    "affnet_et": 1.436, "affnet_t": 2.654, "affnet": 5.569,
    "ffnet_1": 13.776, "ffnet_2": 27.208, "ffnet_3": 48.818, "ffnet_4": 79.869,
    "casvit_xs": 3.201, "casvit_s": 5.764, "casvit_m": 12.422, "casvit_t": 21.763,
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_releases(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(PARAMETERS[name], rel=1e-3)


def test_list_models() -> None:
    assert mm.list_models("casvit*") == ["casvit_m", "casvit_nano", "casvit_s", "casvit_t", "casvit_xs"]
    everything = mm.list_models()
    assert set(PARAMETERS) <= set(everything)
    assert {"affnet_nano", "ffnet_nano", "dsm_nano", "dsm_b", "metaformer_nano"} <= set(everything)
    assert "resnet18" not in everything
    assert "poolformer_s12" not in everything  # timm's, from a module of the same name as one of ours
    assert mm.list_models("nothing*") == []


def test_list_weights() -> None:
    assert mm.list_weights("ffnet_1") == ["ffnet_1.in1k", "ffnet_1.dist_in1k"]
    assert "casvit_xs.in1k_384" in mm.list_weights()
    assert mm.list_weights("*384") == [name for name in mm.list_weights() if name.endswith("_384")] != []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("casvit_sx", "unknown model 'casvit_sx'; did you mean 'casvit_(xs|s)'"),
        ("AFFNet_ET.in1k", "unknown model 'AFFNet_ET'"),
        ("qqqq", "unknown model 'qqqq'; `metamixer models` lists them"),
        ("", "unknown model ''"),
        ("ffnet_1.imagenet", r"unknown weights 'ffnet_1.imagenet'; known: ffnet_1.in1k, ffnet_1.dist_in1k"),
        ("dsm_t.in1k", "unknown weights 'dsm_t.in1k'; there are none"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    for make in (mm.create_model, load_model):
        with pytest.raises(MetamixerError, match=message):
            make(name)


def test_arguments_pass_through() -> None:
    model = mm.create_model("metaformer_nano", mixer="ffnified", num_classes=4, in_chans=2).eval()
    assert model(torch.zeros(1, 2, 32, 32)).shape == (1, 4)
    features = mm.create_model("casvit_nano", features_only=True, out_indices=(0, 3)).eval()
    assert [map_.shape[1] for map_ in features(torch.zeros(1, 3, 64, 64))] == features.feature_info.channels()
    assert mm.create_model("ffnet_nano", num_classes=3, drop_rate=0.5, pretrained=False).drop_rate == 0.5


def test_asking_for_weights_that_do_not_exist() -> None:
    with pytest.raises(MetamixerError, match="there are no weights of dsm_t yet"):
        mm.create_model("dsm_t", pretrained=True)


def test_a_bare_name_without_weights_is_untrained_with_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "metamixer"):
        assert load_model("casvit_xs").num_classes == 1000
    assert "casvit_xs is untrained" in caplog.text
    assert "MODEL_ZOO.md" in caplog.text


def test_class_names_of_an_untrained_model_are_unknown() -> None:
    assert class_names(mm.create_model("casvit_xs")) is None
    assert class_names(torch.nn.Linear(2, 2)) is None


@pytest.mark.parametrize("path", ["nothing.pth", "no/such/file", "nothing.safetensors"])
def test_missing_files(path: str) -> None:
    with pytest.raises(MetamixerError, match=r"no such file|No such file"):
        load_model(path)


def test_pictures_have_three_channels(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    grey = mm.create_model("ffnet_nano", num_classes=2, in_chans=1)
    for use in (lambda: mm.predict(grey, tmp_path / "a.png"), lambda: mm.evaluate(grey, tmp_path)):
        with pytest.raises(MetamixerError, match="reads 1 channels, and pictures have three"):
            use()
