"""The graph that is exported."""

from __future__ import annotations

import pytest
import torch

import metamixer as mm
from metamixer.deploy.graph import capture
from metamixer.deploy.settings import Settings

COMPUTED = {"aten.arange.default", "aten.cos.default", "aten.sin.default"}


@pytest.mark.parametrize("mixer", ["aff", "dsm"])
def test_matrices_are_constants_on_large_maps_too(mixer):
    """Maps on which PyTorch itself takes the FFT: nothing would have left their matrices in the cache."""
    torch.manual_seed(0)
    mixer = mm.create_mixer(mixer, dim=8).eval()
    x = torch.randn(1, 8, 67, 71)
    program = capture(mixer, x)
    assert not COMPUTED & {str(node.target) for node in program.graph.nodes}
    values = [node.meta.get("val") for node in program.graph.nodes]
    assert not any(value.is_complex() for value in values if isinstance(value, torch.Tensor))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), mixer(x), rtol=1e-4, atol=1e-5)


def test_matrices_are_computed_where_the_size_is_open():
    torch.manual_seed(0)
    mixer = mm.create_mixer("aff", dim=8).eval()
    program = capture(mixer, torch.randn(1, 8, 48, 48), Settings(sizes=(40, 56)))
    assert {str(node.target) for node in program.graph.nodes} >= COMPUTED
