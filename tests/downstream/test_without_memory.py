"""Networks that take no memory: fake tensors, the meta device, ``device=`` and ``dtype=`` of constructors."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import metamixer as mm
from metamixer.mixers.conv_norm import ConvNorm, NormConvSkip, ParallelDepthwise


@pytest.mark.promise("clients", "Every family is built, run and trained with fake tensors")
def test_fake_tensors(make):
    with FakeTensorMode():
        model = make()
        assert isinstance(model(torch.randn(2, 3, 64, 64)), FakeTensor)
        model.train()(torch.randn(2, 3, 64, 64)).sum().backward()
        assert all(isinstance(p.grad, FakeTensor) for p in model.parameters())


@pytest.mark.promise("clients", "Backbones, mixers and other networks take device and dtype, the meta device too")
def test_device_and_dtype_of_a_network(make):
    model = make(device="meta", dtype=torch.bfloat16, drop_path_rate=0.1)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    assert model.arguments == {"num_classes": 7, "drop_path_rate": 0.1}
    assert model(torch.empty(2, 3, 64, 64, device="meta", dtype=torch.bfloat16)).shape == (2, 7)
    model.reset_classifier(3)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    filled = model.to_empty(device="cpu").float()
    filled.load_state_dict(make(num_classes=3).state_dict())
    assert filled(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_device_and_dtype_of_feature_extractors_and_weights():
    model = timm.create_model("casvit_nano", features_only=True, device="meta", dtype=torch.float16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.float16)}
    half = timm.create_model("affnet_nano", pretrained=True, dtype=torch.float16)
    whole = timm.create_model("affnet_nano", pretrained=True)
    assert torch.equal(half.stem.conv.weight, whole.stem.conv.weight.half())


class Mine(mm.MetaMixer):
    """A user's mixer that has never heard of devices."""

    def __init__(self, dim: int) -> None:
        super().__init__(query=nn.Conv2d(dim, dim, 1))


@pytest.mark.parametrize(
    "build",
    [
        *[lambda name=name, **place: mm.create_mixer(name, 16, **place) for name in mm.list_mixers()],
        lambda **place: Mine(16, **place),
        lambda **place: mm.MetaMixer(query=nn.Conv2d(4, 4, 1, **place), **place),
        lambda **place: ConvNorm(4, 4, act=nn.GELU(), **place),
        lambda **place: NormConvSkip(4, **place),
        lambda **place: ParallelDepthwise(4, **place),
        lambda **place: mm.create_model("ffnet_sr_nano", **place),
        lambda **place: mm.create_model("ffnet_tsf", **place),
        lambda **place: mm.create_model("ffnet_points_tiny", **place),
    ],
)
def test_device_and_dtype_of_mixers_layers_and_networks(build):
    module = build(device="meta", dtype=torch.float16)
    tensors = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
    assert {(t.device.type, t.dtype) for t in tensors} <= {("meta", torch.float16)}
    plain = build()
    assert {(p.device.type, p.dtype) for p in plain.parameters()} <= {("cpu", torch.float32)}
    with torch.device("meta"):
        assert all(p.is_meta for p in build(device=None, dtype=None).parameters())
