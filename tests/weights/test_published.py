"""Published weights: tags, addresses, and what plain timm makes of them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import timm
import torch

import metamixer as mm
from metamixer import MetamixerError
from metamixer.models import class_names, load_model
from metamixer.weights.published import PUBLISHED
from metamixer.weights.tags import list_weights

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tag_is_registered_with_timm(name: str) -> None:
    cfg = timm.get_pretrained_cfg(name)
    assert f"{cfg.architecture}.{cfg.tag}" == name
    assert cfg.url == PUBLISHED[name].url
    assert cfg.pool_size == tuple(side // 32 for side in cfg.input_size[1:])


def test_defaults() -> None:
    for name in ("affnet", "casvit_xs", "ffnet_3"):
        assert timm.get_pretrained_cfg(name).tag == "in1k"
    assert timm.get_pretrained_cfg("ffnet_4").input_size == (3, 384, 384)
    pretrained = timm.list_models("*ffnet_*", pretrained=True)
    downloadable = [name for name, published in PUBLISHED.items() if published.url]
    assert set(pretrained) == {*downloadable, *list_weights("*ffnet_nano")}
    assert "ffnet_1.dist_in1k" in pretrained
    assert not timm.list_models("metaformer_t", pretrained=True)


def test_addresses_are_those_of_the_release() -> None:
    files = {published.url.rpartition("/")[2] for published in PUBLISHED.values() if published.url}
    assert files == {
        "ffnet_1.pth.tar", "ffnet_2.pth.tar", "ffnet_3.pth.tar", "ffnet_3_384.pth.tar", "ffnet_4_384.pth.tar",
        "ffnet_1_distillation.pth.tar", "ffnet_2_distillation.pth.tar", "ffnet_3_distillation.pth.tar",
    }  # fmt: skip
    assert {published.url.rpartition("/")[0] for published in PUBLISHED.values() if published.url} == {
        "https://github.com/ysj9909/FFNet/releases/download/v1.0"
    }


@pytest.mark.parametrize(("name", "page"), [("casvit_s.in1k_384", "MODEL_ZOO.md"), ("affnet_et.in1k", "TokenMixers")])
def test_weights_behind_a_page_name_it(name: str, page: str) -> None:
    with pytest.raises(MetamixerError, match=rf"download them from https://.*{page}.*checkpoint=PATH"):
        mm.create_model(name)
    with pytest.raises(MetamixerError, match=page):
        mm.create_model(name.partition(".")[0], pretrained=True) if name.endswith("in1k") else load_model(name)


def test_a_tag_loads_the_cached_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A released file in the cache, in the authors' layout, goes in by its tag, and through plain timm."""
    golden = runpy.run_path(str(GOLDEN / "weights.py"))
    state = golden["checkpoint"](GOLDEN / "ffnet_1.json")
    monkeypatch.setenv("METAMIXER_CACHE", str(tmp_path))
    file = tmp_path / "ffnet_1.in1k.pth.tar"
    torch.save({"state_dict": {"head.bias": torch.zeros(1000)}, "state_dict_ema": state}, file)
    given = json.loads((GOLDEN / "ffnet_1.json").read_text())["inputs"][1]
    picture = golden["image"](given["batch"], 3, given["height"], given["width"], given["salt"])
    model = mm.create_model("ffnet_1.in1k").eval()
    plain = timm.create_model("ffnet_1.in1k", pretrained=True, pretrained_cfg_overlay={"file": str(file)}).eval()
    with torch.inference_mode():
        logits = model(picture)
        assert torch.equal(logits, plain(picture))
        assert torch.equal(logits, load_model("ffnet_1").eval()(picture))
    names = class_names(model, readable=True)
    assert names is not None
    assert (len(names), class_names(model)[0]) == (1000, "n01440764")
    assert names[0].startswith("tench")
