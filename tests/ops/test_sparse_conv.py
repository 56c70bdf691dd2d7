"""Sparse convolution against a dense one on the same grid, and the search for neighbours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from metamixer.ops.sparse_conv import SparseSites, SubmanifoldConv3d, submanifold_conv


def clouds(counts: list[int], side: int = 6, start: tuple[int, int, int] = (0, 0, 0)) -> tuple[Tensor, Tensor]:
    """Random cells of ``side``³ grids, in random order; batch numbers in order."""
    cells = [torch.randperm(side**3)[:count] for count in counts]
    flat = torch.cat(cells)
    coordinates = torch.stack([flat // side**2, flat // side % side, flat % side], dim=1) + torch.tensor(start)
    return coordinates, torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def dense(x: Tensor, coordinates: Tensor, batch: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv3d over the whole grid, read at the active sites."""
    origin = coordinates.amin(0)
    size = (coordinates.amax(0) - origin + 1).tolist()
    b, (i, j, k) = batch, (coordinates - origin).unbind(1)
    grid = x.new_zeros(int(batch.max()) + 1, *size, x.shape[1]).index_put((b, i, j, k), x)
    out = F.conv3d(grid.movedim(-1, 1), weight.movedim(-1, 1), bias, padding=weight.shape[1] // 2)
    return out[b, :, i, j, k]


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(
    ("counts", "start"),
    [([1], (0, 0, 0)), ([60], (1000, 3, 70000)), ([150, 1, 40], (0, 0, 0)), ([90, 90], (-7, 5, -1))],
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_a_dense_convolution_at_the_active_sites(kernel, counts, start, with_bias):
    coordinates, batch = clouds(counts, start=start)
    x = torch.randn(len(batch), 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, kernel, kernel, kernel, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True) if with_bias else None
    inputs = [t for t in (x, weight, bias) if t is not None]
    found = submanifold_conv(x, SparseSites(coordinates, batch).pairs(kernel), weight, bias)
    expected = dense(x, coordinates, batch, weight, bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    cotangent = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(found, inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_gradients_are_those_of_finite_differences():
    sites = SparseSites(*clouds([12, 5], side=3))
    x = torch.randn(17, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: submanifold_conv(x, sites.pairs(3), w), (x, weight))


def test_only_the_gradients_that_are_wanted():
    sites, weight = SparseSites(*clouds([9])), torch.randn(2, 3, 3, 3, 2)
    x = torch.randn(9, 2, requires_grad=True)
    submanifold_conv(x, sites.pairs(3), weight).sum().backward()
    assert x.grad is not None
    weight.requires_grad_()
    submanifold_conv(x.detach(), sites.pairs(3), weight).sum().backward()
    assert weight.grad is not None


def test_no_target_occurs_twice_per_offset_and_offsets_are_right():
    coordinates, batch = clouds([120, 80])
    pairs = SparseSites(coordinates, batch).pairs(3)
    offsets = torch.cartesian_prod(*[torch.arange(-1, 2)] * 3)
    for offset, source, target in zip(offsets, pairs.sources, pairs.targets, strict=True):
        assert len(target.unique()) == len(target)
        assert torch.equal(coordinates[source] - coordinates[target], offset.expand(len(source), 3))
        assert torch.equal(batch[source], batch[target])


def test_neighbours_are_found_once():
    sites = SparseSites(*clouds([30]))
    assert sites.pairs(3) is sites.pairs(3)
    assert sites.pairs(3) is not sites.pairs(5)


class Elements(TorchDispatchMode):
    """Counts the elements that operations put out."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.total += sum(
            t.numel() for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, Tensor)
        )
        return out


def test_cost_grows_linearly():
    """Four times the points, as thinly spread: four times the elements that pass through all operations."""
    weight, totals = torch.randn(2, 3, 3, 3, 2), []
    for copies in (1, 4):
        coordinates, batch = clouds([400], side=16)
        moved = [coordinates + torch.tensor([1000 * i, 0, 0]) for i in range(copies)]
        with Elements() as elements:
            sites = SparseSites(torch.cat(moved), batch.repeat(copies))
            submanifold_conv(torch.zeros(len(sites), 2), sites.pairs(3), weight)
        totals.append(elements.total)
    assert totals[1] == pytest.approx(4 * totals[0], rel=0.1)
    # Nothing like the 4,000,000 cells of the grid or the 2,560,000 pairs of points.
    assert totals[1] < 400_000


def test_pooling_cuts_at_even_absolute_coordinates():
    coordinates, batch = clouds([100, 60], start=(3, 0, -5))
    coarse, cluster = SparseSites(coordinates, batch).pooled()
    cells = torch.cat([batch[:, None], torch.div(coordinates, 2, rounding_mode="floor")], dim=1)
    unique, inverse = cells.unique(dim=0, return_inverse=True)  # sorted by cloud, x, y, z
    assert torch.equal(torch.cat([coarse.batch[:, None], coarse.coordinates], dim=1), unique)
    assert torch.equal(cluster, inverse)


def test_autocast_computes_in_its_type_and_adds_in_float32():
    sites = SparseSites(*clouds([200]))
    conv = SubmanifoldConv3d(16, 16)
    x = torch.randn(200, 16, requires_grad=True)
    exact = conv(x, sites)
    with torch.autocast("cpu", torch.bfloat16):
        found = conv(x, sites)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=0.02 * exact.abs().max().item())  # bfloat16: 2^-8
    found.float().sum().backward()
    assert x.grad.dtype == torch.float32
    assert conv.weight.grad.isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_agrees_with_cpu():
    coordinates, batch = clouds([150, 90])
    x, weight = torch.randn(240, 4, dtype=torch.float64), torch.randn(5, 3, 3, 3, 4, dtype=torch.float64)
    expected = submanifold_conv(x, SparseSites(coordinates, batch).pairs(3), weight)
    found = submanifold_conv(x.cuda(), SparseSites(coordinates.cuda(), batch.cuda()).pairs(3), weight.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("coordinates", "batch", "message"),
    [
        (torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, dtype=torch.long), "there are no sites"),
        (torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, dtype=torch.long), "N × 3"),
        (torch.zeros(2, 3, dtype=torch.long), torch.zeros(3, dtype=torch.long), "N × 3"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), "integers, got torch.float32"),
        (torch.tensor([[1, 2, 3], [0, 0, 0], [1, 2, 3]]), torch.tensor([0, 0, 0]), "points 0 and 2 lie in the same"),
        (torch.tensor([[0, 0, 0], [2**40, 2**40, 0]]), torch.tensor([0, 0]), "too many grid cells"),
    ],
)
def test_sites_that_make_no_sense(coordinates, batch, message):
    with pytest.raises(ValueError, match=message):
        SparseSites(coordinates, batch)


def test_kernels_that_do_not_fit():
    sites = SparseSites(*clouds([5]))
    for kernel in (2, 0, 19):
        with pytest.raises(ValueError, match="odd side"):
            sites.pairs(kernel)
    with pytest.raises(ValueError, match="do not fit neighbours of 3³"):
        submanifold_conv(torch.zeros(5, 2), sites.pairs(3), torch.zeros(1, 5, 5, 5, 2))
