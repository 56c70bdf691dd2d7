"""``torch.fx`` and what is built on it, with no word from the user about what to leave alone."""

from __future__ import annotations

import pickle

import pytest
import timm
import torch
from torchvision.models.feature_extraction import create_feature_extractor


@pytest.mark.promise("clients", "torch.fx traces every family; the graph runs at other sizes, trains and is pickled")
def test_a_traced_network_is_the_network_at_any_size(make, pictures):
    model = make()
    traced = torch.fx.symbolic_trace(model)
    for x in (pictures, torch.randn(1, 3, 96, 65), torch.randn(0, 3, 64, 64)):
        assert torch.equal(traced(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(traced))(pictures), model(pictures))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(traced(pictures), model(pictures))
    traced = torch.fx.symbolic_trace(model.train())
    traced(pictures).sum().backward()
    assert all(p.grad is not None for p in traced.parameters())


@pytest.mark.promise("clients", "torchvision's feature extractor cuts maps and logits out of every family")
def test_feature_extractor_of_torchvision(make, pictures):
    model = make()
    extractor = create_feature_extractor(model, {"stages.1": "early", "head": "logits"})
    found = extractor(pictures)
    assert torch.equal(found["early"], model.forward_intermediates(pictures, indices=[1], intermediates_only=True)[0])
    assert torch.equal(found["logits"], model(pictures))


def test_merged_networks_are_traced(make, pictures):
    model = make()
    merged = timm.utils.reparameterize_model(model)
    # Folding rounds each layer's weights once more.
    torch.testing.assert_close(torch.fx.symbolic_trace(merged)(pictures), model(pictures), rtol=1e-3, atol=1e-4)
