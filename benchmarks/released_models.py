"""Build the papers' own networks from checkouts of their repositories, to run beside ours.

The checkouts are named on the command line and never part of this project. What the old code expects of old
packages (``timm.models.layers``, ``timm.models.registry``, an unused import) is provided here as empty shells.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from argparse import Namespace
from pathlib import Path
from unittest import mock

import timm.layers
import timm.models
from torch import nn


def released_casvit_xs(repository: Path) -> nn.Module:
    """CAS-ViT-XS from a checkout of Tianfang-Zhang/CAS-ViT."""
    _provide_old_names()
    return _load(repository / "classification/model/rcvit.py", "released_rcvit").rcvit_xs()


def released_ffnet_1(repository: Path) -> nn.Module:
    """FFNet-1 from a checkout of ysj9909/FFNet."""
    _provide_old_names()
    module = _load(repository / "models/ffnet.py", "released_ffnet")
    return module.FFNet(
        depth=[2, 2, 8, 2], embed_dim=[80, 160, 320, 640], kernel_sizes=[3] * 4, kernel_sizes1=[3, 3, 7, 7],
        kernel_sizes2=[3, 3, 7, 7], drop_path_rate=0.0,
    )  # fmt: skip


def released_affnet_et(repository: Path) -> nn.Module:
    """AFFNet-ET from the folder "Adaptive Frequency Filters" of a checkout of microsoft/TokenMixers."""
    _provide_old_names()
    root = repository / "Adaptive Frequency Filters"
    sys.path.insert(0, str(root))
    # The package's own __init__ files import every task; only the network's modules are wanted.
    for name in ("affnet", "affnet.models", "affnet.models.classification"):
        shell = types.ModuleType(name)
        shell.__path__ = [str(root / name.replace(".", "/"))]
        sys.modules[name] = shell
    sys.modules["affnet"].parameter_list = None  # imported there, used in training only
    sys.modules["affnet.models.classification"].register_cls_models = lambda name: lambda network: network
    model = importlib.import_module("affnet.models.classification.affnet")
    options = Namespace()
    for key, value in {
        "model.classification.affnet.mode": "xx_small",
        "model.classification.affnet.attn_norm_layer": "layer_norm_2d",
        "model.activation.name": "swish",
        "model.normalization.name": "batch_norm",
        "model.normalization.groups": 1,
        "model.normalization.momentum": 0.1,
    }.items():
        setattr(options, key, value)
    return model.AffNet(options)


def _load(path: Path, name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # The release must not take our names in timm's registry.
    with mock.patch.object(timm.models, "register_model", lambda function: function):
        spec.loader.exec_module(module)
    return module


def _provide_old_names() -> None:
    layers = types.ModuleType("timm.models.layers")
    layers.__dict__.update(timm.layers.__dict__)
    registry = types.ModuleType("timm.models.registry")
    registry.register_model = lambda function: function
    sys.modules.setdefault("timm.models.layers", layers)
    sys.modules.setdefault("timm.models.registry", registry)
    timm.models._builder._update_default_kwargs = None  # imported by FFNet, not called here
    for name in ("einops", "einops.layers", "einops.layers.torch"):  # imported there, never called by these networks
        shell = types.ModuleType(name)
        shell.rearrange = shell.repeat = shell.Rearrange = None
        sys.modules.setdefault(name, shell)
