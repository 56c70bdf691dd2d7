"""The networks compute what the authors' code computed, before and after merging (see tests/golden/weights.py)."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import metamixer as mm

GOLDEN = Path(__file__).parents[1] / "golden"
golden = SimpleNamespace(**runpy.run_path(str(GOLDEN / "weights.py")))
TOLERANCE = 1e-4  # of the output's largest magnitude
VARIANTS: dict[str, Callable[[nn.Module], nn.Module]] = {"as trained": lambda model: model, "merged": mm.merge}

POINTS: dict[str, Any] = dict(
    num_classes=0, enc_depths=(1, 1, 1), enc_channels=(16, 32, 64), dec_depths=(1, 1), dec_channels=(32, 32)
)


def described(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def released(file: str, folder: Path, wrap: Callable[[Any], Any] = lambda state: state, **kwargs: Any) -> nn.Module:
    """Our network with the weights that the reference outputs were computed with, read from a released-style file."""
    torch.save(wrap(golden.checkpoint(GOLDEN / f"{file}.json")), folder / "released.pth")
    return mm.create_model(checkpoint=folder / "released.pth", **kwargs).eval()


def assert_agrees(found: np.ndarray, reference: np.ndarray) -> None:
    assert found.shape == reference.shape
    assert np.abs(found - reference).max() <= TOLERANCE * np.abs(reference).max()


def test_super_resolution_agrees_with_the_release(tmp_path: Path) -> None:
    def basicsr(state: dict[str, Tensor]) -> dict[str, Any]:
        return {"params": {key: tensor + 1 for key, tensor in state.items()}, "params_ema": state}

    model = released("ffnet_sr_light_x2", tmp_path, basicsr, name="ffnet_sr_light", scale=2)
    about = described("ffnet_sr_light_x2")
    assert sum(parameter.numel() for parameter in model.parameters()) == about["params"]
    arrays = np.load(GOLDEN / "ffnet_sr_light_x2.npz")
    # Without norms there is nothing to merge: the second picture goes through the merged copy.
    for given, network in zip(about["inputs"], (model, mm.merge(model)), strict=True):
        with torch.inference_mode():
            out = network(golden.image(given["batch"], 3, given["height"], given["width"], given["salt"])).numpy()
        reference = arrays[f"{given['tag']}/output0"]
        assert out.shape == tuple(arrays[f"{given['tag']}/output0_shape"])
        assert_agrees(out.ravel()[np.linspace(0, out.size - 1, reference.size).round().astype(int)], reference)


@pytest.mark.parametrize("variant", VARIANTS)
def test_forecasts_agree_with_the_release(variant: str, tmp_path: Path) -> None:
    model = released("ffnet_tsf_etth1_96", tmp_path, name="ffnet_tsf", channels=7, lookback=96, horizon=96, ffn_ratio=2)
    model = VARIANTS[variant](model)
    arrays = np.load(GOLDEN / "ffnet_tsf_etth1_96.npz")
    for given in described("ffnet_tsf_etth1_96")["inputs"]:
        window = 3 * golden.image(2, 1, given["seq_len"], given["channels"], given["salt"])[:, 0] + 5
        with torch.inference_mode():
            assert_agrees(model(window).numpy(), arrays[f"{given['tag']}/output0"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_point_clouds_agree_with_the_release(variant: str, tmp_path: Path) -> None:
    model = released("ffnet_points_tiny", tmp_path, name="ffnet_points", **POINTS)
    assert sum(parameter.numel() for parameter in model.parameters()) == described("ffnet_points_tiny")["params"]
    model = VARIANTS[variant](model)
    arrays = np.load(GOLDEN / "ffnet_points_tiny.npz")
    for given in described("ffnet_points_tiny")["inputs"]:
        reference = {k.removeprefix(given["tag"] + "/"): arrays[k] for k in arrays if k.startswith(given["tag"] + "/")}
        feat, grid_coord, offset = (torch.from_numpy(reference[key]) for key in ("feat", "grid_coord", "offset"))
        with torch.inference_mode():
            stages, out = outputs(model, feat, grid_coord, offset)
        assert_agrees(out.numpy()[reference["output0_index"]], reference["output0"])
        sites = np.concatenate([reference["batch"][:, None], reference["grid_coord"]], axis=1)
        for name, found in stages.items():
            level = int(name.removesuffix(".down").removesuffix(".up")[-1]) if name != "embedding" else 0
            # References are sorted by cloud, x, y, z; pooled sites are already.
            order = np.lexsort(sites.T[::-1]) if level == 0 else np.arange(len(found))
            cells = np.unique(sites >> np.array([0, level, level, level]), axis=0)
            index = reference[f"{name}/index"]
            assert tuple(reference[f"{name}/shape"]) == tuple(found.shape)
            assert np.array_equal(cells[index], reference[f"{name}/key"])
            assert_agrees(found.numpy()[order][index], reference[f"{name}/feat"])


def outputs(model: nn.Module, *cloud: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What the stages put out, by the references' names, and the output."""
    parts = {}
    for s, stage in enumerate(model.encoder):
        parts |= {f"enc{s}": stage, f"enc{s}.down": stage.down}
    for s, stage in enumerate(model.decoder):
        parts |= {f"dec{s}": stage, f"dec{s}.up": stage.up}
    found: dict[str, Tensor] = {}
    hooks = [
        part.register_forward_hook(lambda module, given, out, name=name: found.update({name: out}))
        for name, part in parts.items()
        if part is not None
    ]
    # The reference's embedding ends behind its GELU.
    hooks.append(
        model.encoder[0].register_forward_pre_hook(lambda module, given: found.update({"embedding": given[0]}))
    )
    out = model(*cloud)
    for hook in hooks:
        hook.remove()
    assert len(found) == 2 * len(model.encoder) + 2 * len(model.decoder)
    return found, out


def test_a_segmentors_file_fits_with_its_classifier(tmp_path: Path) -> None:
    """Pointcept's segmentor around the network, as its training saves it."""
    head = {"seg_head.weight": torch.randn(5, 32), "seg_head.bias": torch.randn(5)}

    def segmentor(state: dict[str, Tensor]) -> dict[str, Any]:
        whole = {f"backbone.{key}": tensor for key, tensor in state.items()} | head
        return {"epoch": 3, "state_dict": {f"module.{key}": tensor for key, tensor in whole.items()}}

    model = released("ffnet_points_tiny", tmp_path, segmentor, name="ffnet_points", **POINTS | {"num_classes": 5})
    features = released("ffnet_points_tiny", tmp_path, segmentor, name="ffnet_points", **POINTS)
    cloud = torch.rand(20, 6), torch.randperm(20)[:, None].expand(20, 3), torch.tensor([20])
    expected = features(*cloud) @ head["seg_head.weight"].T + head["seg_head.bias"]
    torch.testing.assert_close(model(*cloud), expected)
