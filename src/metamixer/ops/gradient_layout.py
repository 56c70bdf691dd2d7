"""The order in memory that gradients come in: strided ones are read slowly, by GELU's backward pass above all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metamixer.ops.precision import autocast_is_on


class _ContiguousGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous()


def contiguous_gradient(x: Tensor) -> Tensor:
    """``x`` itself, whose gradient is made contiguous; to stand before a transposition."""
    return _ContiguousGradient.apply(x) if x.requires_grad else x


class _TransposedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(weight, x)
        return torch.bmm(weight, x.transpose(0, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        weight, x = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        torch.bmm(weight.mT, grad, out=grad_x.transpose(0, 1))
        return torch.bmm(grad, x.transpose(0, 1).mT), grad_x


def transposed_product(weight: Tensor, x: Tensor) -> Tensor:
    """``torch.bmm(weight, x.transpose(0, 1))``, whose gradient for ``x`` is written in the order of x."""
    if weight.requires_grad and x.requires_grad and not autocast_is_on(x):
        return _TransposedProduct.apply(weight, x)
    return torch.bmm(weight, x.transpose(0, 1))
