"""Exported and compiled graphs of the transforms, and the store of constant matrices behind them."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from metamixer.mixers import create_mixer, list_mixers
from metamixer.ops import constants, dct2, idct2, irdft2, rdft2, use_transform
from metamixer.ops.transform_choice import prefers_fft


class RoundTrip(nn.Module):
    """Both pairs of transforms with something between them."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return irdft2(rdft2(x) * 2, x.shape[-1]), idct2(dct2(x) * 2)


@pytest.fixture(autouse=True)
def empty_store(monkeypatch):
    monkeypatch.setattr(constants, "_names", {})
    monkeypatch.setattr(constants, "_matrices", SimpleNamespace())


def kept() -> list[Tensor]:
    return list(vars(constants._matrices).values())


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


@pytest.mark.parametrize("used_before", [True, False])
def test_matrices_are_constants_of_the_graph(used_before):
    x = torch.randn(1, 2, 9, 12)
    if used_before:
        RoundTrip()(x)
    program = torch.export.export(RoundTrip(), (x,))
    built = {name for name in operations_in(program) if any(word in name for word in ("arange", "cos", "sin"))}
    assert not built
    assert len(program.constants) == 6  # two matrices for each Fourier direction, the two cosine ones shared
    torch.testing.assert_close(program.module()(x), RoundTrip()(x))


def test_an_export_of_an_unseen_size_keeps_true_tensors():
    x = torch.randn(1, 2, 9, 12)
    program = torch.export.export(RoundTrip(), (x,))
    assert {type(matrix) for matrix in kept()} == {Tensor}
    torch.testing.assert_close(program.module()(x), RoundTrip()(x))  # eager after the export


SIZES = [(14, 14), (7, 10), (16, 12), (9, 9), (28, 20), (33, 7)]


def compiled_graphs(name: str, warm: bool) -> list[Counter[str]]:
    """Operations of every graph that ``torch.compile`` makes of a mixer for six sizes; ``warm`` runs it first."""
    torch.compiler.reset()
    mixer = create_mixer(name, 32).eval()
    graphs = []

    def backend(graph, _):
        graphs.append(Counter(str(n.target) for n in graph.graph.nodes if n.op in ("call_function", "call_method")))
        return graph.forward

    compiled = torch.compile(mixer, backend=backend, fullgraph=True)
    with torch.no_grad():
        for size in SIZES:
            x = torch.randn(2, 32, *size)
            if warm:
                mixer(x)
            got = compiled(x)
            torch.testing.assert_close(got, mixer(x), rtol=1e-4, atol=1e-5)
            compiled(x)  # the same graph, though the mixer ran without it in between
    return graphs


@pytest.mark.promise(
    "compile", "Every mixer compiles into two graphs for any number of sizes, an eager call between or not"
)
@pytest.mark.promise("compile", "A graph of a fixed size builds no matrix, whether the mixer ran before or not")
@pytest.mark.parametrize("name", list_mixers())
def test_two_graphs_for_all_sizes_and_no_matrix_is_built_in_the_first(name):
    cold = compiled_graphs(name, warm=False)
    assert len(cold) == 2
    assert not any(word in operation for operation in cold[0] for word in ("arange", "cos", "sin"))
    assert sum(cold[0].values()) <= {"aff": 66, "dsm": 49}.get(name, 30)
    if name in ("aff", "dsm"):  # those with matrices
        assert compiled_graphs(name, warm=True) == cold


def test_the_store_tells_functions_of_one_name_apart():
    def filled(value: float):
        def build(size: int, device: torch.device) -> Tensor:
            return torch.full((size, size), value, device=device)

        return build

    one, two = filled(1.0), filled(2.0)
    assert one.__qualname__ == two.__qualname__
    like = torch.zeros(1)
    assert [float(constants.constant(build, 2, like=like).mean()) for build in (one, two, one)] == [1, 2, 1]


def test_threads_share_the_store_and_not_the_choice_of_a_transform():
    together = Barrier(4)

    def run(choice: str) -> tuple[bool, Tensor]:
        with use_transform(choice):
            together.wait(60)
            chosen = prefers_fft("dft", 8, 8)
            together.wait(60)
            return chosen, constants.constant(constants.dct_matrix, 64, like=torch.zeros(1))

    with ThreadPoolExecutor(4) as threads:
        chosen, matrices = zip(*threads.map(run, ["fft", "matmul", "fft", "auto"]), strict=True)
    assert chosen == (True, False, True, False)
    assert len({id(matrix) for matrix in matrices}) == len(kept()) == 1


def test_function_transforms_leave_nothing_in_the_store():
    x = torch.randn(1, 1, 3, 4)
    gradient = torch.func.grad(lambda x: RoundTrip()(x)[0].sum())(x)
    torch.testing.assert_close(gradient, torch.full_like(x, 2.0))
    over_batch = torch.func.vmap(lambda x: rdft2(x)[0])(x[None])
    torch.testing.assert_close(over_batch[0], rdft2(x)[0])
    torch.testing.assert_close(RoundTrip()(x)[1], 2 * x)
    assert not any("Tensor(" in repr(matrix) for matrix in kept())  # GradTrackingTensor, BatchedTensor


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
    assert kept()
    assert not any(matrix.is_inference() or matrix.requires_grad for matrix in kept())
    x.requires_grad_()
    sum(t.sum() for t in RoundTrip()(x)).backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 4.0))


def test_fake_tensors_neither_fill_nor_use_the_store():
    def run() -> Tensor:
        return rdft2(torch.randn(1, 2, 9, 12))

    with FakeTensorMode():
        assert isinstance(run(), FakeTensor)
    assert kept() == []
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
