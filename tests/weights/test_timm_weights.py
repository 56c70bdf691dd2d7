"""Weights of timm's own networks: the file that timm would take, without waiting for a network that is not there."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

import metamixer as mm
from metamixer import MetamixerError
from metamixer.tasks.distillation import load_teacher
from metamixer.weights import timm_weights as module
from metamixer.weights.timm_weights import timm_weights

NAME = "test_convnext"  # timm's own smallest ones, with weights on the hub
REPOSITORY = "timm/test_convnext.r160_in1k"


@pytest.fixture(autouse=True)
def hub(server: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = server.url("{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "ENDPOINT", server.url("").rstrip("/"))
    for place in (constants, huggingface_hub.file_download):  # versions before 1.0 keep it in both
        monkeypatch.setattr(place, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache.parent / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setenv("TORCH_HOME", str(cache.parent / "torch"))


def offer(server: Any, tmp_path: Path, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    """Weights on the server, as the hub has them."""
    state = {name: torch.randn_like(value) for name, value in timm.create_model(NAME).state_dict().items()}
    if file.endswith(".safetensors"):
        save_file(state, tmp_path / "weights")
    else:
        torch.save(state, tmp_path / "weights")
    server.files[f"{REPOSITORY}/resolve/main/{file}"] = (tmp_path / "weights").read_bytes()
    return state


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_teacher_has_the_weights_of_the_hub(server: Any, tmp_path: Path, file: str) -> None:
    state = offer(server, tmp_path, file)
    teacher = load_teacher(NAME)
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())
    asked = len(server.requests)
    load_teacher(f"{NAME}.r160_in1k")
    assert len(server.requests) == asked + (file != "model.safetensors")  # whether there is the better file meanwhile


def test_a_backbone_has_the_weights_of_the_hub(server: Any, tmp_path: Path) -> None:
    state = offer(server, tmp_path)
    model = mm.build("semantic_fpn", f"{NAME}.r160_in1k", 3)
    held = {tuple(value.shape): value for value in model.backbone.state_dict().values()}
    assert torch.equal(held[tuple(state["stem.0.weight"].shape)], state["stem.0.weight"])


@pytest.mark.promise("faults", "without a network, or with a server that never answers, one sentence comes in seconds")
@pytest.mark.parametrize("use", [load_teacher, lambda name: mm.build("semantic_fpn", f"{name}.r160_in1k", 3)])
def test_without_a_network(server: Any, use: Any, caplog: pytest.LogCaptureFixture) -> None:
    server.shutdown()
    server.server_close()
    began = time.monotonic()
    with pytest.raises(MetamixerError, match=rf"{REPOSITORY}/.* could not be reached .* is there a network"):
        use(NAME)
    assert time.monotonic() - began < 20  # far less, and 34 without the bounds
    assert caplog.messages == [f"fetching {server.url(REPOSITORY)}/resolve/main/model.safetensors"]


def test_weights_at_an_address(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Where the hub has none; torch's own cache counts."""
    state = offer(server, tmp_path)
    cfg = replace(timm.get_pretrained_cfg(NAME), hf_hub_id=None, url=server.url("file/net-1234.pth?a=b"))
    monkeypatch.setattr(module.timm, "get_pretrained_cfg", lambda name: cfg)
    torch.save(state, tmp_path / "weights")
    server.files["file/net-1234.pth?a=b"] = (tmp_path / "weights").read_bytes()
    assert timm_weights(NAME) == {"file": str(cache / "timm" / "net-1234.pth")}
    there = tmp_path / "torch" / "hub" / "checkpoints" / "net-1234.pth"
    there.parent.mkdir(parents=True)
    there.touch()
    assert timm_weights(NAME) == {"file": str(there)}


def test_a_damaged_file_is_named(server: Any) -> None:
    server.files[f"{REPOSITORY}/resolve/main/model.safetensors"] = b"damaged"
    with pytest.raises(MetamixerError, match=rf"teacher {NAME} cannot be loaded from .*/{REPOSITORY}/main/model.safe"):
        load_teacher(NAME)


def test_networks_without_weights() -> None:
    name = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
    with pytest.raises(MetamixerError, match=f"timm has no weights of {name}"):
        timm_weights(name)


def test_a_repository_without_weights(server: Any) -> None:
    with pytest.raises(MetamixerError, match=f"{REPOSITORY} on the Hugging Face hub has no model.safetensors and no"):
        timm_weights(NAME)


def test_every_source_of_timms_is_known() -> None:
    """Fails where a new timm stores weights in another way than those that are fetched here."""
    for name in timm.list_pretrained():
        cfg = timm.get_pretrained_cfg(name)
        assert cfg.file or cfg.url or cfg.hf_hub_id, name
        assert cfg.source in (None, ""), name
        assert cfg.hf_hub_filename is None, name
        assert cfg.custom_load in (False, True), name
