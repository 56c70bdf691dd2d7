"""Checkpoints as they are found: wrapped, merged, with what other tools leave, and with tensors that are none."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import metamixer as mm
from metamixer import MetamixerError, create_model
from metamixer.models import load_model
from metamixer.weights import read_metadata, save_checkpoint
from metamixer.weights.convert import convert
from metamixer.weights.load import read_network, read_state


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return create_model("affnet_nano", num_classes=3).eval()


@pytest.mark.parametrize("prefix", ["model.", "net.", "model._orig_mod.", "module.model.", "model.module."])
def test_the_module_of_a_trainer(prefix: str, model: nn.Module, tmp_path: Path) -> None:
    """A LightningModule calls its network so, and keeps losses and metrics beside it."""
    weights = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    weights["criterion.weight"] = torch.ones(3)
    torch.save({"state_dict": weights, "pytorch-lightning_version": "2.5", "epoch": 3}, tmp_path / "last.ckpt")
    loaded = create_model("affnet_nano", num_classes=3, checkpoint=tmp_path / "last.ckpt").eval()
    picture = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(picture), model(picture))


def test_a_release_that_is_such_a_module_itself() -> None:
    """FFNet's networks for forecasting lie below ``model.`` in their release."""
    from metamixer.weights.load import unwrap_network

    state = {
        "model.stages.0.blocks.0.token_mixer.ffnpw1.weight": torch.zeros(1),
        "model.head.linear.bias": torch.ones(1),
    }
    assert unwrap_network(state).keys() == state.keys()
    assert unwrap_network({f"model.{name}": tensor for name, tensor in state.items()}).keys() == state.keys()


def test_what_thop_leaves_behind(model: nn.Module, tmp_path: Path) -> None:
    weights = dict(model.state_dict())
    for name, module in model.named_modules():
        weights |= {f"{name}.{kind}".lstrip("."): torch.zeros(1) for kind in ("total_ops", "total_params")}
        assert module is not None
    torch.save(weights, tmp_path / "a.pth")
    loaded = load_model(tmp_path / "a.pth")
    assert loaded.state_dict().keys() == model.state_dict().keys()
    detector = mm.build("ssdlite", "affnet_nano", 2)
    torch.save(detector.state_dict() | {"backbone.total_ops": torch.zeros(1)}, tmp_path / "b.pth")
    assert mm.build("ssdlite", "affnet_nano", 2, checkpoint=tmp_path / "b.pth")


@pytest.mark.parametrize("name", ["affnet_nano", "casvit_nano", "ffnet_nano", "dsm_nano", "metaformer_nano"])
def test_merged_weights_load_merged(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = create_model(name, num_classes=3).train()
    trained(torch.randn(4, 3, 64, 64))  # norms that do something
    merged = mm.merge(trained.eval())
    picture = torch.randn(2, 3, 64, 64)
    wanted = merged(picture)
    torch.save(merged.state_dict(), tmp_path / "a.pth")
    save_checkpoint(merged, tmp_path / "a.safetensors", ["a", "b", "c"])
    for loaded in (load_model(tmp_path / "a.pth"), load_model(tmp_path / "a.safetensors")):
        assert loaded.state_dict().keys() == merged.state_dict().keys()
        assert torch.equal(loaded.eval()(picture), wanted)
    features = create_model(name, features_only=True, checkpoint=tmp_path / "a.safetensors").eval()
    assert [*features(picture)][-1].shape[0] == 2


def test_other_weights_do_not_load_merged(model: nn.Module, tmp_path: Path) -> None:
    merged = mm.merge(model)
    torch.save(merged.state_dict(), tmp_path / "a.pth")
    with pytest.raises(MetamixerError, match="does not fit casvit_nano"):
        create_model("casvit_nano", num_classes=3, checkpoint=tmp_path / "a.pth")


def test_a_dictionary_that_holds_itself(tmp_path: Path) -> None:
    contents: dict[str, Any] = {"epoch": 3}
    contents["state_dict"] = {"model": contents}
    torch.save(contents, tmp_path / "a.pth")
    with pytest.raises(MetamixerError, match="holds no weights"):
        convert(tmp_path / "a.pth", tmp_path / "b.safetensors")
    contents["weight"] = torch.zeros(1)
    torch.save(contents, tmp_path / "a.pth")
    with pytest.raises(MetamixerError, match="does not tell which network"):
        convert(tmp_path / "a.pth", tmp_path / "b.safetensors")


ODD: dict[str, Any] = {
    "on the meta device": lambda: torch.empty(10**6, 10**6, device="meta"),
    "sparse": lambda: torch.zeros(3, 3).to_sparse(),
    "sparse by rows": lambda: torch.zeros(3, 3).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(3, 3), 0.1, 0, torch.qint8),
    "complex": lambda: torch.zeros(3, 3, dtype=torch.complex64),
    "larger than what is stored of it": lambda: torch.zeros(1).expand(10**6, 10**6),
}


@pytest.mark.promise("bad input", "sparse, quantised, complex, meta and expanded tensors are refused by name")
@pytest.mark.filterwarnings("ignore::UserWarning")  # sparse tensors by rows, quantised ones
@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_no_weights_are(kind: str, model: nn.Module, tmp_path: Path) -> None:
    state = dict(model.state_dict()) | {"head.fc.weight": ODD[kind]()}
    torch.save(state, tmp_path / "a.pth")
    for read in (
        read_state,
        read_network,
        load_model,
        lambda path: create_model("affnet_nano", checkpoint=path),
        lambda path: mm.build("ssdlite", "affnet_nano", 2, checkpoint=path),
        lambda path: convert(path, tmp_path / "b.safetensors"),
    ):
        with pytest.raises(MetamixerError, match=rf"head\.fc\.weight is {kind.removesuffix(' by rows')}"):
            read(tmp_path / "a.pth")
    assert not (tmp_path / "b.safetensors").exists()


def test_a_model_without_numbers_is_not_saved(tmp_path: Path) -> None:
    with torch.device("meta"):
        empty = create_model("affnet_nano")
    with pytest.raises(MetamixerError, match="is on the meta device"):
        save_checkpoint(empty, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_shared_and_scattered_tensors_come_back(model: nn.Module, tmp_path: Path) -> None:
    """Views of one storage, and strides of any kind, are weights like others."""
    state = dict(model.state_dict())
    flat = torch.cat([tensor.flatten().float() for tensor in state.values()])
    views, at = {}, 0
    for name, tensor in state.items():
        views[name] = flat[at : at + tensor.numel()].view(tensor.shape) if tensor.is_floating_point() else tensor
        at += tensor.numel()
    views["head.fc.weight"] = state["head.fc.weight"].t().contiguous().t()
    assert not views["head.fc.weight"].is_contiguous()
    torch.save(views, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "b.safetensors")
    loaded = load_model(tmp_path / "b.safetensors").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    model = create_model("affnet_nano", num_classes=3)
    model.head.fc.bias = nn.Parameter(model.head.fc.weight[:, 0].detach())  # a part of another one
    save_checkpoint(model, tmp_path / "c.safetensors")
    assert torch.equal(load_model(tmp_path / "c.safetensors").head.fc.bias, model.head.fc.bias)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("head.fc.weight", torch.zeros(()), "misshapen: head.fc.weight"),
        ("head.fc.weight", torch.zeros(0, 0), "misshapen: head.fc.weight"),
        ("head.fc.weight", torch.zeros(3, 512, dtype=torch.int8), "of another kind of numbers: head.fc.weight .int8."),
        ("stem.conv.weight", torch.zeros(16, 0, 3, 3), "misshapen: stem.conv.weight"),
        (
            "stem.conv.weight",
            torch.zeros(16, 3, 3, 3, dtype=torch.bool),
            "of another kind of numbers: stem.conv.weight",
        ),
    ],
)
def test_tensors_of_another_shape_or_kind(
    name: str, tensor: torch.Tensor, message: str, model: nn.Module, tmp_path: Path
) -> None:
    torch.save(dict(model.state_dict()) | {name: tensor}, tmp_path / "a.pth")
    with pytest.raises(MetamixerError, match=message):
        create_model("affnet_nano", num_classes=3, checkpoint=tmp_path / "a.pth")
    with pytest.raises(MetamixerError):
        convert(tmp_path / "a.pth", tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,400]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
        b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"[" * 2000,
        b'{"__metadata__":{"architecture":3}}',
        b"{}",
        b'"a"',
        b"\xff" * 40,
    ],
)
def test_headers_that_lie(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for length in (len(header), 2**63, 2**64 - 1, 0):
        path.write_bytes(length.to_bytes(8, "little") + header + b"\0" * 4)
        for read in (read_metadata, read_state, load_model, lambda path: convert(path, tmp_path / "b.safetensors")):
            try:
                found = read(path)
            except MetamixerError:
                continue
            assert read is read_metadata
            assert found is None


@pytest.mark.promise("faults", "a full disk in convert is one sentence, and leaves nothing")
def test_a_full_disk_in_convert(model: nn.Module, tmp_path: Path, small_disk: Any) -> None:
    torch.save(model.state_dict(), tmp_path / "a.pth")
    small_disk.leave(100_000)
    with pytest.raises(MetamixerError, match=r"b.safetensors cannot be written \((No space left|File too large)"):
        convert(tmp_path / "a.pth", small_disk.path / "b.safetensors")
    assert [path.name for path in small_disk.path.iterdir()] in ([], ["filling"])


@pytest.mark.promise("bad input", "converting refuses weights that are NaN, or too large for half precision")
@pytest.mark.parametrize(
    ("value", "half", "sentence"),
    [(float("nan"), False, "holds values that are no numbers"), (1e6, True, "too large for float16")],
)
def test_converted_weights_are_numbers(
    value: float, half: bool, sentence: str, model: nn.Module, tmp_path: Path
) -> None:
    state = model.state_dict()
    name = next(iter(state))
    torch.save({**state, name: torch.full_like(state[name], value)}, tmp_path / "in.pth")
    with pytest.raises(MetamixerError, match=sentence):
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors", half=half)
    assert not (tmp_path / "out.safetensors").exists()
    if not half:
        return
    convert(tmp_path / "in.pth", tmp_path / "out.safetensors")  # large, but float32 can hold it
    assert (tmp_path / "out.safetensors").exists()


def test_notices_of_merged_weights_are_quiet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file(dict(mm.merge(create_model("casvit_nano", num_classes=2)).state_dict()), tmp_path / "a.safetensors")
    with caplog.at_level(logging.WARNING, "metamixer"):
        load_model(tmp_path / "a.safetensors")
    assert not caplog.records
