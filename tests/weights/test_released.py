"""Key maps: every key of a released file finds its place, and unknown files stay as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

import metamixer  # noqa: F401  registers with timm
from metamixer.weights.released import released_layout, to_our_layout

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["affnet_et", "affnet", "casvit_xs", "casvit_m", "ffnet_1", "ffnet_3"])
def test_every_key_and_shape_finds_its_place(name: str) -> None:
    described = json.loads((GOLDEN / f"{name}.json").read_text())["state_dict"]
    released = {key: torch.empty(shape, device="meta") for key, (shape, _) in described.items()}
    ours = {key: tuple(tensor.shape) for key, tensor in to_our_layout(released).items()}
    with torch.device("meta"):
        model = timm.create_model(name)
    assert ours == {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def test_other_layouts_are_left_alone() -> None:
    state = {"layer1.0.conv1.weight": torch.zeros(1), "stages.0.0.conv.weight": torch.zeros(1)}
    assert released_layout(state) is None
    assert to_our_layout(state) == state
