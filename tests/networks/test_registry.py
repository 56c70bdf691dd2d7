"""The networks by name, beside the backbones and out of timm's sight."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import timm
import torch

import metamixer as mm
from metamixer import MetamixerError
from metamixer.deploy.pictures import photographs
from metamixer.model_table import models_command
from metamixer.models import load_model
from metamixer.networks import NETWORKS
from metamixer.weights.released import FFNET_TSF, rename

# Of the released code; the classifier of the point network has 20 classes.
PARAMETERS = {
    "ffnet_sr_light": 1_789_452,
    "ffnet_points": 103_211_136 + 64 * 20 + 20,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_releases(name: str) -> None:
    with torch.device("meta"):
        model = mm.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_they_are_listed_but_not_by_timm() -> None:
    assert mm.list_models("ffnet_sr*") == ["ffnet_sr", "ffnet_sr_light", "ffnet_sr_nano"]
    assert set(NETWORKS) <= set(mm.list_models())
    assert not set(NETWORKS) & set(timm.list_models())


def test_the_table_of_models_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    models_command("ffnet_sr*")
    assert "1.79" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("ffnet_tfs", {}, "unknown model 'ffnet_tfs'; did you mean 'ffnet_tsf'"),
        ("ffnet_sr.div2k", {}, "unknown weights 'ffnet_sr.div2k'; there are none"),
        ("ffnet_sr", {"pretrained": True}, "there are no weights of ffnet_sr yet"),
        ("ffnet_sr", {"factor": 2}, "ffnet_sr takes no argument 'factor'; it takes scale, dim, depth, expansion, l.*"),
        ("ffnet_sr_light", {"scale": 8}, "a scale of 2, 3 or 4, not 8"),
        ("ffnet_sr_light", {"scale": "2"}, "ffnet_sr_light: scale cannot be '2'; it is 2 by default"),
        ("ffnet_sr_light", {"dim": 0}, "dim and dim · expansion must be at least 1, .* got dim=0"),
        ("ffnet_sr_light", {"depth": -1}, "depth at least 0, got dim=96, depth=-1"),
        ("ffnet_sr_light", {"dim": 4, "expansion": 0.2}, "expansion=0.2"),
        ("ffnet_sr_nano", {"large_init": 1}, "large_init cannot be 1; it is True by default"),
        ("ffnet_points", {"enc_depths": (1, 1)}, "as many stages"),
        ("ffnet_points", {"enc_depths": 2}, r"enc_depths cannot be 2; it is \(2, 2, 2, 6, 2\) by default"),
        ("ffnet_points", {"in_channels": 0}, "must be at least 1, .* got in_channels=0"),
        ("ffnet_points", {"num_classes": -1}, "num_classes at least 0, got .* num_classes=-1"),
        ("ffnet_points", {"dec_channels": (64, 0, 128, 256)}, "must be at least 1"),
        ("ffnet_points", {"dec_depths": (2, 2, -2, 2)}, "depths and num_classes at least 0"),
        ("ffnet_points", {"mlp_ratio": 0}, "mlp_ratio must be at least 1"),
        ("ffnet_points", {"drop_path_rate": 1.0}, "drop_path_rate must be 0 or more and below 1, not 1.0"),
        ("ffnet_tsf", {"channels": "7"}, "ffnet_tsf: channels cannot be '7'; it is 7 by default"),
        ("ffnet_tsf", {"horizon": 9.5}, "horizon cannot be 9.5; it is 96 by default"),
        ("ffnet_tsf", {"depth": True}, "depth cannot be True"),
        ("ffnet_tsf", {"small_kernel": -1}, "kernels must be odd and the small one no larger"),
        ("ffnet_tsf", {"drop_rate": 1.5}, "drop rates must be 0 or more and below 1"),
        ("ffnet_tsf", {"kernel_size": 50}, "kernels must be odd"),
        ("ffnet_tsf", {"lookback": 1}, "a lookback of 1"),
        ("ffnet_tsf", {"channels": 0}, "at least 1"),
        ("ffnet_tsf", {"checkpoint": "nowhere.pth"}, "nowhere.pth: no such file"),
    ],
)
def test_what_cannot_be_created(name: str, kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(MetamixerError, match=message):
        mm.create_model(name, **kwargs)


def test_files_of_other_networks_are_refused(tmp_path: Path) -> None:
    torch.save(mm.create_model("ffnet_sr_light", dim=8, depth=1).state_dict(), tmp_path / "x2.pth")
    with pytest.raises(MetamixerError, match=r"x2.pth does not fit FFNetSR \(misshapen: last.weight"):
        mm.create_model("ffnet_sr_light", scale=3, dim=8, depth=1, checkpoint=tmp_path / "x2.pth")
    with pytest.raises(MetamixerError, match="does not fit FFNetTSF"):
        mm.create_model("ffnet_tsf", checkpoint=tmp_path / "x2.pth")


def test_own_state_dicts_come_back(tmp_path: Path) -> None:
    saved = mm.create_model(
        "ffnet_points", num_classes=3, enc_depths=(1,), enc_channels=(8,), dec_depths=(), dec_channels=()
    )
    torch.save(saved.state_dict(), tmp_path / "own.pth")
    loaded = mm.create_model(
        "ffnet_points", num_classes=3, enc_depths=(1,), enc_channels=(8,), dec_depths=(), dec_channels=(),
        checkpoint=tmp_path / "own.pth",
    )  # fmt: skip
    assert all(
        torch.equal(a, b) for a, b in zip(saved.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_shipped_weights_by_name(tmp_path: Path) -> None:
    assert mm.list_weights("ffnet_sr_nano") == ["ffnet_sr_nano.x2"]
    shipped = mm.create_model("ffnet_sr_nano.x2").eval()
    state = shipped.state_dict()
    assert shipped.scale == 2
    assert torch.equal(load_model("ffnet_sr_nano").first.weight, state["first.weight"])
    assert torch.equal(mm.create_model("ffnet_sr_nano", pretrained=True).first.weight, state["first.weight"])
    assert not torch.equal(mm.create_model("ffnet_sr_nano.x2", pretrained=False).first.weight, state["first.weight"])
    with pytest.raises(MetamixerError, match=r"unknown weights 'ffnet_sr_nano.x3'; known: ffnet_sr_nano.x2"):
        mm.create_model("ffnet_sr_nano.x3")

    chelsea = photographs(1)[0].crop((100, 50, 300, 210))
    chelsea.save(tmp_path / "a.png")
    found = mm.evaluate(shipped, tmp_path)
    assert found["psnr"] > found["bicubic_psnr"] + 0.5


def test_the_shipped_network_on_set5(tmp_path: Path) -> None:
    archive = Path(__file__).parents[3] / "shared" / "data" / "sr.tar"
    if not archive.exists():
        pytest.skip("the pictures of Set5 lie in ../shared/data/sr.tar, which is not here")
    with tarfile.open(archive) as opened:
        for member in opened:
            if member.name.startswith("sr/Set5/") and member.isfile():
                (tmp_path / Path(member.name).name).write_bytes(opened.extractfile(member).read())
    found = mm.evaluate("ffnet_sr_nano.x2", tmp_path)
    assert found["count"] == 5
    assert found["bicubic_psnr"] == pytest.approx(33.68, abs=0.005)
    assert found["psnr"] > found["bicubic_psnr"] + 3


def test_by_name_alone_they_are_untrained(caplog: pytest.LogCaptureFixture) -> None:
    assert load_model("ffnet_tsf").horizon == 96
    assert "ffnet_tsf is untrained" in caplog.text


def test_layers_that_the_release_never_runs_are_left_out() -> None:
    assert rename("model.lat_layer.0.weight", FFNET_TSF) == ""
    assert rename("model.downsample_layers.0.0.weight", FFNET_TSF) == "stem.conv.weight"
