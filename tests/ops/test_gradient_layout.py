"""A gradient's order in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from metamixer.ops.gradient_layout import contiguous_gradient, transposed_product


def test_a_strided_gradient_arrives_in_order() -> None:
    leaf = torch.randn(3, 4, requires_grad=True)
    strides: dict[bool, tuple[int, ...]] = {}
    for ordered in (False, True):
        inner = leaf * 2

        def note(grad: Tensor, ordered: bool = ordered) -> None:
            strides[ordered] = grad.stride()

        inner.register_hook(note)
        x = contiguous_gradient(inner) if ordered else inner
        assert torch.equal(x, inner)
        weight = torch.arange(12.0).view(4, 3)
        (grad,) = torch.autograd.grad((x.T * weight).sum(), leaf)
        assert torch.equal(grad, 2 * weight.T)
    assert strides == {False: (1, 3), True: (4, 1)}


def test_without_gradient_it_is_the_tensor_itself() -> None:
    x = torch.randn(2)
    assert contiguous_gradient(x) is x


def test_the_product_with_a_transposed_tensor_and_its_gradients() -> None:
    weight = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 3, 7, dtype=torch.float64, requires_grad=True)
    strides = []
    inner = x * 1
    inner.register_hook(lambda grad: strides.append(grad.stride()))
    found, expected = transposed_product(weight, inner), torch.einsum("rgk,krt->rgt", weight, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    cotangent = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad(found, [weight, x], cotangent),
        torch.autograd.grad(expected, [weight, x], cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    assert strides == [(21, 7, 1)]
