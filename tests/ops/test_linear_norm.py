"""Norms behind a linear map against torch's batch norms over what the map puts out."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from metamixer.ops.linear_norm import Moments, merged_norm, merged_norms


def test_moments_go_through_a_linear_map() -> None:
    x, matrix = torch.randn(3, 10, 4, dtype=torch.float64) + 2, torch.randn(3, 4, 5, dtype=torch.float64)
    shift = torch.randn(3, dtype=torch.float64)
    out = x @ matrix + shift[:, None, None]
    mean, square = Moments.of(x).through(matrix, shift)
    torch.testing.assert_close(mean, out.mean((1, 2)))
    torch.testing.assert_close(square, out.square().mean((1, 2)))


def test_equals_batch_norms_with_gradients_and_running_statistics() -> None:
    groups, channels, samples, length = 3, 2, 7, 5
    x = (torch.randn(groups * channels, samples, length, dtype=torch.float64) + 1).requires_grad_()
    matrices = [torch.randn(6, length, length, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    norms = nn.ModuleList([nn.BatchNorm1d(6), nn.BatchNorm1d(6), nn.BatchNorm1d(2)]).double().train()
    for norm in norms:
        nn.init.normal_(norm.weight, 1, 0.3)
        nn.init.normal_(norm.bias)
    plain = deepcopy(norms)

    matrix, shift = merged_norms(x, matrices, norms[:2], norms[2])
    found = x @ matrix + shift[:, None, None]
    parts = [norm((x @ m).flatten(1)[None])[0] for norm, m in zip(plain[:2], matrices, strict=True)]
    expected = plain[2](sum(parts).view(groups, channels, -1)).view_as(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    cotangent = torch.randn_like(found)
    given = [x, *matrices]
    for a, b in zip(
        torch.autograd.grad(found, [*given, *norms.parameters()], cotangent),
        torch.autograd.grad(expected, [*given, *plain.parameters()], cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    for a, b in zip(norms.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_one_channel_through_many_maps_behind_one_norm() -> None:
    """As an embedding is applied to all patches: with gradients, shift and running statistics."""
    x = torch.randn(1, 50, 4, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(6, 4, 1, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(6, dtype=torch.float64, requires_grad=True)
    norm = nn.BatchNorm1d(6).double().train()
    nn.init.normal_(norm.bias)
    plain = deepcopy(norm)
    merged, offset = merged_norm(Moments.of(x), matrix, norm, shift)
    found = (x @ merged)[..., 0] + offset[:, None]
    expected = plain(((x @ matrix)[..., 0] + shift[:, None]).T).T
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    cotangent = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad(found, [x, matrix, norm.weight], cotangent),
        torch.autograd.grad(expected, [x, matrix, plain.weight], cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    for a, b in zip(norm.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_float32_keeps_its_accuracy_where_means_are_large() -> None:
    x = torch.randn(4, 500, 6, dtype=torch.float64) + 10  # the mean square is 100 times the variance
    matrix = torch.randn(4, 6, 6, dtype=torch.float64)
    results = []
    for dtype in (torch.float64, torch.float32):
        norms = nn.ModuleList([nn.BatchNorm1d(4), nn.BatchNorm1d(4)]).to(dtype)
        merged, shift = merged_norms(x.to(dtype), [matrix.to(dtype)], norms[:1], norms[1])
        results.append((x.to(dtype) @ merged + shift[:, None, None]).double())
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=2e-3)
