"""Our networks compute what the authors' code computed, before and after merging (see tests/golden/weights.py)."""

from __future__ import annotations

import runpy
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn

from metamixer import create_model
from metamixer.backbones import AFFNet
from metamixer.deploy.merge import merge
from metamixer.weights.load import load_into
from metamixer.weights.released import to_our_layout

GOLDEN = Path(__file__).parents[1] / "golden"
golden = SimpleNamespace(**runpy.run_path(str(GOLDEN / "weights.py")))
TOLERANCE = 1e-4  # of the output's largest magnitude

CLASSIFIERS = ("affnet_et", "affnet", "casvit_xs", "casvit_m", "ffnet_1", "ffnet_3")
VARIANTS = {"as trained": lambda model: model, "reparameterize_model": reparameterize_model, "merge": merge}


def released(name: str, **kwargs: object) -> nn.Module:
    """Our network with the weights that the reference outputs were computed with."""
    model = create_model(name, **kwargs).eval()
    file = "casvit_xs_features" if kwargs else name
    load_into(model, to_our_layout(golden.checkpoint(GOLDEN / f"{file}.json")))
    return model


@pytest.fixture(scope="module", params=CLASSIFIERS)
def classifier(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    return request.param, released(request.param)


def check(found: Tensor, expected: dict[str, np.ndarray], key: str) -> None:
    """Equal to the reference, of which large maps are evenly spaced samples."""
    reference = expected[key]
    array = found.numpy()
    if f"{key}_shape" in expected:
        assert array.shape == tuple(expected[f"{key}_shape"]), key
        array = array.ravel()[np.linspace(0, array.size - 1, reference.size).round().astype(int)]
        reference = reference.ravel()
    assert array.shape == reference.shape, key
    assert np.abs(array - reference).max() <= TOLERANCE * np.abs(reference).max(), key


def outputs(model: nn.Module, picture: Tensor) -> dict[str, Tensor]:
    """Logits, and the maps on the way by the names that the references have."""
    parts = {"stem": model.stem}
    if isinstance(model, AFFNet):  # counts its layers from 1
        parts |= {f"layer{i}": stage for i, stage in enumerate(model.stages, 1)} | {"exp": model.final}
    else:
        parts |= {f"stage{i}": stage for i, stage in enumerate(model.stages)}
    found: dict[str, Tensor] = {}
    hooks = [
        part.register_forward_hook(lambda module, inputs, output, key=key: found.update({key: output}))
        for key, part in parts.items()
    ]
    with torch.inference_mode():
        found["output0"] = model(picture)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_classifier_agrees_with_the_release(classifier: tuple[str, nn.Module], variant: str) -> None:
    name, trained = classifier
    model = VARIANTS[variant](deepcopy(trained))
    for picture, expected in golden.references(GOLDEN / f"{name}.json"):
        found = outputs(model, picture)
        assert set(found) == {key for key in expected if not key.endswith("_shape")}
        for key, value in found.items():
            check(value, expected, key)


@pytest.mark.parametrize("variant", VARIANTS)
def test_dense_backbone_agrees_with_the_release(variant: str) -> None:
    model = VARIANTS[variant](released("casvit_xs", feature_norms=True))
    for picture, expected in golden.references(GOLDEN / "casvit_xs_features.json"):
        with torch.inference_mode():
            maps = model.forward_intermediates(picture, intermediates_only=True)
        assert len(maps) == sum(not key.endswith("_shape") for key in expected)
        for i, found in enumerate(maps):
            check(found, expected, f"output{i}")


def test_features_only_takes_a_dense_backbones_file(tmp_path: Path) -> None:
    state = golden.checkpoint(GOLDEN / "casvit_xs_features.json")
    torch.save({"state_dict": {f"backbone.{key}": tensor for key, tensor in state.items()}}, tmp_path / "fpn.pth")
    model = create_model("casvit_xs", features_only=True, feature_norms=True, checkpoint=tmp_path / "fpn.pth").eval()
    picture, expected = golden.references(GOLDEN / "casvit_xs_features.json")[1]
    with torch.inference_mode():
        for i, found in enumerate(model(picture)):
            check(found, expected, f"output{i}")
