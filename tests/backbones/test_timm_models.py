"""Contracts that timm's own model tests hold its models to, checked on ours by tests of our own.

docs/timm_tests.md says how to run timm's test file itself against our networks.
"""

from __future__ import annotations

import pytest
import timm
import torch
from timm.data import create_transform, resolve_data_config
from timm.models import get_notrace_functions, get_notrace_modules, get_pretrained_cfg, model_entrypoint
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import metamixer  # noqa: F401  registers with timm

NAMES = [name for name in timm.list_models() if model_entrypoint(name).__module__.startswith("metamixer.")]
NANOS = [name for name in NAMES if name.endswith("_nano")]
TAGGED = [name for name in timm.list_models(include_tags=True) if name.partition(".")[0] in NAMES]
LIGHT = [*NANOS, "affnet_et", "casvit_xs"]


def on_meta(name: str, **kwargs) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_registry(name):
    assert timm.is_model(name)
    assert name in timm.list_models(name_matches_cfg=True)  # its default configuration carries its name
    assert get_pretrained_cfg(name).architecture == name
    data = resolve_data_config(model=on_meta(name))
    assert data["input_size"] == on_meta(name).pretrained_cfg["input_size"]
    assert create_transform(**data) is not None


@pytest.mark.parametrize("name", LIGHT)
def test_forward(name):
    model = timm.create_model(name).eval()
    x = torch.randn(1, 3, 64, 64)
    logits = model(x)
    assert logits.shape == (1, model.default_cfg["num_classes"])
    assert logits.isfinite().all()
    assert logits.std() > 0
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LIGHT)
def test_backward_reaches_every_parameter(name):
    model = timm.create_model(name, num_classes=42).train()
    logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 42)
    nn.functional.cross_entropy(logits, torch.tensor([0, 41])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", TAGGED)
def test_default_configuration(name):
    model = on_meta(name)
    cfg, parameters = model.default_cfg, model.state_dict()
    classifiers = cfg["classifier"] if isinstance(cfg["classifier"], (tuple, list)) else (cfg["classifier"],)
    for classifier in classifiers:
        assert parameters[f"{classifier}.weight"].shape == (cfg["num_classes"], model.num_features)
    # timm takes a checkpoint's classifiers off by these names, so every one must be listed.
    assert len(classifiers) == sum(isinstance(part, nn.Linear) for part in model.head.children())
    assert parameters[f"{cfg['first_conv']}.weight"].shape[1] == cfg["input_size"][0]
    features = model.forward_features(torch.empty(1, *cfg["input_size"], device="meta"))
    assert features.shape == (1, model.num_features, *cfg["pool_size"])


@pytest.mark.parametrize("name", [*NANOS, "casvit_xs"])
def test_a_checkpoint_without_its_classifier_starts_a_model_of_other_classes(name):
    source, target = timm.create_model(name).eval(), timm.create_model(name, num_classes=5).eval()
    classifiers = source.default_cfg["classifier"]
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    kept = {n: p for n, p in source.state_dict().items() if not n.startswith(classifiers)}
    missing, unexpected = target.load_state_dict(kept, strict=False)
    assert set(missing) == {f"{c}.{kind}" for c in classifiers for kind in ("weight", "bias")}
    assert not unexpected
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(target.forward_features(x), source.forward_features(x))
    # And a reset model takes the weights of one that was created with as many classes.
    source.reset_classifier(5)
    source.load_state_dict(target.state_dict())
    assert torch.equal(source(x), target(x))


@pytest.mark.parametrize("name", NANOS)
def test_features_by_hooks_equal_features_by_getter(name):
    getter = timm.create_model(name, features_only=True).eval()
    hooks = timm.create_model(name, features_only=True, feature_cls="hook").eval()
    assert hooks.feature_info.channels() == getter.feature_info.channels()
    # The hook wrapper flattens the network, so weights go over in order rather than by name.
    own, other = list(getter.model.named_parameters()), list(hooks.named_parameters())
    states = zip(getter.state_dict().values(), hooks.state_dict().values(), strict=False)
    assert all(p.shape == q.shape for (_, p), (_, q) in zip(own, other, strict=False))
    with torch.no_grad():
        for mine, theirs in states:
            theirs.copy_(mine)
        x = torch.randn(1, 3, 64, 64)
        for a, b in zip(getter(x), hooks(x), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", NANOS)
def test_symbolic_tracing(name, mode):
    model = timm.create_model(name, num_classes=5).train(mode == "train")
    tracer = {"leaf_modules": get_notrace_modules(), "autowrap_functions": get_notrace_functions()}
    train_nodes, eval_nodes = get_graph_node_names(model, tracer_kwargs=tracer)
    traced = create_feature_extractor(
        model, train_return_nodes=train_nodes[-1:], eval_return_nodes=eval_nodes[-1:], tracer_kwargs=tracer
    ).train(mode == "train")
    x = torch.randn(2, 3, 64, 64)
    (logits,) = traced(x).values()
    if mode == "eval":
        assert torch.equal(logits, model(x))
    else:
        logits.mean().backward()
        assert all(isinstance(p.grad, Tensor) for p in traced.parameters())
