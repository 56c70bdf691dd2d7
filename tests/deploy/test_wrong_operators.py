"""A wrong operator in an artefact is found: those that other exporters are known to confuse, each put into a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

import metamixer as mm
from metamixer.deploy import onnx as target
from metamixer.deploy.pictures import photographs, synthetic
from metamixer.deploy.report import TOLERANCE, agreement, complaint
from metamixer.errors import MetamixerError


def attribute(kind: str, name: str, value: Any) -> Callable[[Any], None]:
    """Sets an attribute of all nodes of a kind, of which there must be some."""

    def change(graph: Any) -> None:
        nodes = [node for node in graph.node if node.op_type == kind]
        assert nodes
        for node in nodes:
            kept = [a for a in node.attribute if a.name != name]
            node.ClearField("attribute")
            node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def replaced(kind: str, make: Callable[[Any], list[Any]], **constants: float) -> Callable[[Any], None]:
    """Puts other nodes in the place of all nodes of a kind."""

    def change(graph: Any) -> None:
        nodes = [new for node in graph.node for new in (make(node) if node.op_type == kind else [node])]
        assert len(nodes) > len(graph.node) or not any(node.op_type == kind for node in nodes)
        graph.ClearField("node")
        graph.node.extend(nodes)
        for name, value in constants.items():
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))

    return change


def half_up(node: Any) -> list[Any]:
    """Rounding of halves up, as in C, where PyTorch and ONNX take the even number."""
    between = f"{node.output[0]}_half"
    return [
        helper.make_node("Add", [node.input[0], "half"], [between]),
        helper.make_node("Floor", [between], node.output),
    ]


def clipped(node: Any) -> list[Any]:
    return [helper.make_node("Clip", [node.input[0], "zero", "six"], node.output)]


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class ChannelNorm(nn.Module):
    """A layer norm of every position, with the variance of features behind a trained layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


WRONG = {
    "relu6": (Apply(lambda x: F.relu(4 * x)), replaced("Relu", clipped, zero=0, six=6)),
    "eps of a norm": (ChannelNorm(), attribute("LayerNormalization", "epsilon", 1e-3)),
    "aligned corners": (
        nn.Upsample(scale_factor=2, mode="bilinear"),
        attribute("Resize", "coordinate_transformation_mode", "align_corners"),
    ),
    "nearest for bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), attribute("Resize", "mode", "nearest")),
    "nearest by rounding": (nn.Upsample(size=24), attribute("Resize", "nearest_mode", "round_prefer_ceil")),
    "cubic coefficient": (nn.Upsample(scale_factor=2, mode="bicubic"), attribute("Resize", "cubic_coeff_a", -0.5)),
    "padding counted": (
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        attribute("AveragePool", "count_include_pad", 1),
    ),
    "halves rounded up": (Apply(lambda x: torch.round(torch.round(4 * x) / 2)), replaced("Round", half_up, half=0.5)),
    "slope": (nn.LeakyReLU(0.01), attribute("LeakyRelu", "alpha", 0.011)),
    "hard sigmoid": (nn.Hardsigmoid(), attribute("HardSigmoid", "alpha", 0.2)),
}


@pytest.mark.promise(
    "exports", "a subtly wrong operator in an artefact is found: norms' eps, resizing, rounding, padding"
)
@pytest.mark.parametrize("name", WRONG)
def test_wrong_operators_are_seen(name: str, tmp_path: Path) -> None:
    model, change = WRONG[name]
    pictures = synthetic(3, 18, 4)
    target.write(model.eval(), pictures[:1], tmp_path / "right.onnx")
    file = onnx.load(tmp_path / "right.onnx")
    change(file.graph)
    onnx.save(file, tmp_path / "wrong.onnx")
    with torch.no_grad():
        expected = model(pictures).numpy()
    said = []
    for kind in ("right", "wrong"):
        run = target.load(tmp_path / f"{kind}.onnx")
        said.append(
            complaint(agreement(expected, np.concatenate([run(x) for x in np.split(pictures.numpy(), 4)])), "fp32")
        )
    assert said[0] is None
    assert said[1] is not None
    assert "differs from PyTorch" in said[1]


@pytest.mark.promise("exports", "an artefact with GELU by tanh in place of GELU by erf is refused, in every family")
@pytest.mark.parametrize(
    "name",
    ["casvit_nano.cifar10", *(pytest.param(f"{n}_nano.cifar10", marks=pytest.mark.slow) for n in ("ffnet", "dsm"))],
)
def test_tanh_gelu_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = target.write

    def write_with_tanh(model: nn.Module, example: Tensor, path: Path, settings: Any) -> str:
        result = write(model, example, path, settings)
        file = onnx.load(path)
        attribute("Gelu", "approximate", "tanh")(file.graph)
        onnx.save(file, path)
        return result

    monkeypatch.setattr(target, "write", write_with_tanh)
    monkeypatch.setattr(target, "first_divergence", lambda *_: None)  # tested elsewhere, and takes its time
    with pytest.raises(
        MetamixerError, match=r"differs from PyTorch by [1-9]\.\de-0[34] of the largest value .at most 0.0001"
    ):
        mm.export(name, "onnx", tmp_path / "m.onnx", pictures=photographs(2), repeats=0)
    assert list(tmp_path.iterdir()) == []


def test_no_map_and_no_picture_hides_behind_a_larger_one() -> None:
    """One class map, or one picture, is a fifth as large as the others, and wrong by 2e-4 of itself."""
    random = np.random.default_rng(0)
    for small in ((slice(None), 2), (1,)):
        reference = random.uniform(-1, 1, (2, 4, 8, 8))
        reference[small] *= 0.2
        wrong = reference.copy()
        wrong[small] *= 1 + 2 * TOLERANCE
        assert np.abs(wrong - reference).max() < TOLERANCE * np.abs(reference).max()
        assert complaint(agreement(reference, wrong), "fp32") is not None
        assert complaint(agreement(reference, reference + (wrong - reference) / 4), "fp32") is None


def test_rounding_of_a_map_of_nearly_zeros_is_no_fault() -> None:
    reference = np.ones((1, 2, 4, 4))
    reference[0, 1] = 1e-9
    rounded = reference.copy()
    rounded[0, 1] = 1e-6  # of the numbers that cancelled
    assert complaint(agreement(reference, rounded), "fp32") is None
