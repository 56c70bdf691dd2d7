"""PyTorch's own transforms of modules and programs."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.flop_counter import FlopCounterMode


@pytest.mark.promise("clients", "Gradients per picture by torch.func are those of each picture alone, in every family")
def test_gradients_per_picture(make, pictures):
    model = make()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, picture):
        return functional_call(model, parameters, (picture[None],)).square().sum()

    together = vmap(grad(loss), in_dims=(None, 0))(parameters, pictures)
    model(pictures[:1]).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(together[name][0], p.grad, rtol=1e-3, atol=1e-5 + 1e-3 * float(p.grad.abs().max()))


@pytest.mark.promise("clients", "Averaged weights, flop counting and int8 weights by torchao work on every family")
def test_averaged_weights_and_counted_operations(make, pictures):
    model = make().train()
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    update_bn([pictures], averaged)
    assert averaged(pictures).shape == (2, 7)
    with FlopCounterMode(display=False) as one, torch.no_grad():
        model.eval()(pictures[:1])
    with FlopCounterMode(display=False) as two, torch.no_grad():
        model(pictures)
    assert two.get_total_flops() == 2 * one.get_total_flops() > 10_000_000


@pytest.mark.promise("clients", "Averaged weights, flop counting and int8 weights by torchao work on every family")
def test_dynamic_quantisation_of_torchao(make, pictures):
    quantization = pytest.importorskip("torchao.quantization")
    model = make()
    before = model(pictures)
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    # Eight bits of weights and activations in the few linear layers.
    assert (model(pictures) - before).abs().max() < 0.05 * before.abs().max()


@pytest.mark.promise("clients", "Feature extractors are exported by torch.export and say what they were made of")
def test_export_of_a_feature_extractor(make, pictures):
    model = make(features_only=True, out_indices=(1, 2))
    assert model.arguments == {"num_classes": 7, "features_only": True, "out_indices": (1, 2)}
    program = torch.export.export(model, (pictures,))
    for got, expected in zip(program.module()(pictures), model(pictures), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
