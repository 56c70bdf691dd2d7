"""Synchronised batch norms on a CPU: what the conversion keeps. That they synchronise is PyTorch's own matter."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import metamixer as mm
from metamixer.heads.base import DenseModel
from metamixer.networks import create_network
from metamixer.train import distributed
from metamixer.train.config import TrainConfig

PLAIN = nn.BatchNorm1d | nn.BatchNorm2d
SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
HEADS = {"retinanet": {"channels": 16}, "ssdlite": {}, "mask_rcnn": {"channels": 16}, "deeplabv3": {}}


def pictures() -> tuple[Tensor, ...]:
    return (torch.rand(2, 3, 64, 64),)


def points() -> tuple[Tensor, ...]:
    grid = torch.unique(torch.randint(0, 12, (200, 3)), dim=0)
    return torch.rand(len(grid), 3), grid, torch.tensor([len(grid)])


CASES: dict[str, Any] = {
    "metaformer": lambda: (mm.create_model("metaformer_nano", **SMALL), pictures()),
    "casvit": lambda: (mm.create_model("casvit_nano"), pictures()),
    "affnet": lambda: (mm.create_model("affnet_nano"), pictures()),
    # Peers whose norms are an activation too, in several of timm's families
    "mobilenetv3": lambda: (timm.create_model("mobilenetv3_small_050"), pictures()),
    "efficientvit": lambda: (timm.create_model("efficientvit_b0"), pictures()),
    "resnet": lambda: (timm.create_model("resnet18"), pictures()),
    "points": lambda: (create_network("ffnet_points_tiny", in_channels=3, num_classes=2), points()),
    "series": lambda: (
        create_network("ffnet_tsf", channels=2, lookback=12, horizon=5, dim=4, kernel_size=5, small_kernel=3),
        (torch.rand(2, 12, 2),),
    ),
    **{
        head: lambda head=head, args=args: (mm.build(head, "mobilenetv3_small_050", 2, **args), pictures())
        for head, args in HEADS.items()
    },
}


def flat(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for value in values for tensor in flat(value)]


def converted(model: nn.Module) -> nn.Module:
    """As the loop does it where there are GPUs and several processes."""
    together: Any = SimpleNamespace(num_processes=2, prepare_model=lambda model: model)
    task: Any = None
    return distributed.wrap(model, TrainConfig(task, sync_bn=True), together)


@pytest.mark.promise("processes", "`--sync-bn` keeps activations, dropout and outputs of every kind of network")
@pytest.mark.parametrize("name", CASES)
def test_synchronised_norms_keep_what_the_network_computes(name: str) -> None:
    model, inputs = CASES[name]()
    for module in model.modules():  # statistics that are not those of a fresh norm
        if isinstance(module, PLAIN):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.8, 1.2)
    model.eval()
    norms = sum(isinstance(module, PLAIN) for module in model.modules())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        before = flat(model(*inputs))
        twin = converted(model)
        after = flat(twin(*inputs))
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in twin.modules()) == norms > 0
    assert not any(isinstance(module, PLAIN) for module in twin.modules())
    assert state.keys() == twin.state_dict().keys()
    assert max(float(tensor.abs().max()) for tensor in before) > 1e-3
    for one, other in zip(before, after, strict=True):
        # The same formula in kernels of which some fold the norm's numbers in another order.
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_frozen_norms_stay_frozen_when_they_are_converted() -> None:
    model = mm.build("retinanet", "mobilenetv3_small_050", 2, channels=16)
    assert isinstance(model, DenseModel)
    model.freeze(norms=True)
    model = converted(model)
    model.train()
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert norms
    assert not any(norm.training for norm in norms)
