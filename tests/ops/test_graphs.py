"""Exported and compiled graphs of the transforms, and the store of constant matrices behind them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from metamixer.ops import constants, dct2, idct2, irdft2, rdft2, use_transform


class RoundTrip(nn.Module):
    """Both pairs of transforms with something between them."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return irdft2(rdft2(x) * 2, x.shape[-1]), idct2(dct2(x) * 2)


@pytest.fixture(autouse=True)
def empty_store(monkeypatch):
    monkeypatch.setattr(constants, "_cache", {})


def tensors_in(program: torch.export.ExportedProgram) -> list[Tensor]:
    found = []
    for node in program.graph.nodes:
        value = node.meta.get("val")
        found += [v for v in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(v, Tensor)]
    return found


def operations_in(program: torch.export.ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("size", [(7, 10), (200, 300)])
@pytest.mark.parametrize("path", ["auto", "fft"])
def test_no_complex_tensor_at_a_fixed_size(size, path):
    x = torch.randn(1, 2, *size)
    with use_transform(path):
        program = torch.export.export(RoundTrip(), (x,))
    found = tensors_in(program)
    assert len(found) > 4
    assert not any(t.is_complex() for t in found)
    for result in program.module()(x):
        torch.testing.assert_close(result, 2 * x, rtol=0, atol=1e-4)


def test_no_complex_tensor_at_dynamic_sizes():
    sides = {2: torch.export.Dim("height", min=2, max=512), 3: torch.export.Dim("width", min=2, max=512)}
    program = torch.export.export(RoundTrip(), (torch.randn(1, 2, 14, 17),), dynamic_shapes=(sides,))
    assert not any(t.is_complex() for t in tensors_in(program))
    for size in [(14, 17), (2, 3), (33, 8), (150, 151)]:
        x = torch.randn(1, 2, *size)
        for result in program.module()(x):
            torch.testing.assert_close(result, 2 * x, rtol=0, atol=1e-4)


def test_matrices_used_before_are_constants_of_the_graph():
    x = torch.randn(1, 2, 9, 12)
    RoundTrip()(x)
    program = torch.export.export(RoundTrip(), (x,))
    built = {name for name in operations_in(program) if any(word in name for word in ("arange", "cos", "sin"))}
    assert not built
    assert len(program.constants) == 6  # two matrices for each Fourier direction, the two cosine ones shared
    torch.testing.assert_close(program.module()(x), RoundTrip()(x))


def test_an_export_of_an_unseen_size_leaves_nothing_behind():
    x = torch.randn(1, 2, 9, 12)
    program = torch.export.export(RoundTrip(), (x,))
    assert constants._cache == {}
    assert any("cos" in name for name in operations_in(program))
    torch.testing.assert_close(program.module()(x), RoundTrip()(x))  # eager after the export


def test_compile_in_one_graph():
    torch.compiler.reset()
    x = torch.randn(1, 2, 9, 12, requires_grad=True)
    expected = RoundTrip()(x)
    compiled = torch.compile(RoundTrip(), fullgraph=True, backend="aot_eager")
    got = compiled(x)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        torch.autograd.grad(sum(t.square().sum() for t in got), x),
        torch.autograd.grad(sum(t.square().sum() for t in expected), x),
    )


def test_training_after_inference_mode():
    x = torch.randn(1, 2, 9, 12)
    with torch.inference_mode():
        RoundTrip()(x)
    assert constants._cache
    assert not any(matrix.is_inference() or matrix.requires_grad for matrix in constants._cache.values())
    x.requires_grad_()
    sum(t.sum() for t in RoundTrip()(x)).backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 4.0))


def test_fake_tensors_neither_fill_nor_use_the_store():
    def run() -> Tensor:
        return rdft2(torch.randn(1, 2, 9, 12))

    with FakeTensorMode():
        assert isinstance(run(), FakeTensor)
    assert constants._cache == {}
    assert type(run()) is Tensor
    with FakeTensorMode():
        assert isinstance(run(), FakeTensor)


def test_the_store_keeps_dtypes_and_sizes_apart():
    x = torch.randn(1, 1, 5, 6)
    assert rdft2(x).dtype == torch.float32
    assert rdft2(x.double()).dtype == torch.float64
    assert dct2(x).shape == x.shape
    assert dct2(x.mT).shape == x.mT.shape
    assert rdft2(x.to("meta")).device.type == "meta"
    torch.testing.assert_close(rdft2(x), rdft2(x.double()).float())
