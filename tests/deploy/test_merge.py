"""Merging other people's networks: ours are compared with the releases in the tests of their families."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import metamixer as mm


def _with_statistics(model: nn.Module) -> nn.Module:
    """In evaluation mode, with norms that do something."""
    torch.manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
            nn.init.normal_(norm.weight, 1, 0.2)
            nn.init.normal_(norm.bias, 0, 0.2)
    return model.eval()


def _norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv4_conv_small_035",  # norms with activations
        "mobilevitv2_050",  # cannot be traced as a whole
        "resnet10t",
    ],
)
def test_norms_of_peers_are_folded(name):
    model = _with_statistics(timm.create_model(name, num_classes=5)).double()
    merged = mm.merge(model)
    assert _norms(merged) == 0 < _norms(model)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(merged(x), model(x), rtol=1e-9, atol=1e-9)


class Shared(nn.Module):
    """What must stay: an output that is read twice, a convolution and a norm that are called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.read_twice, self.called_twice, self.own = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.read_twice(x)
        y = y + self.norms[0](y)
        y = self.norms[1](self.called_twice(y)) + self.norms[2](self.called_twice(x))
        y = self.norms[3](self.own(y)) + self.norms[3](x)
        return self.norms[4](y + x)


def test_what_is_shared_stays():
    model = _with_statistics(Shared())
    merged = mm.merge(model)
    assert _norms(merged) == 5
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(merged(x), model(x))
