"""What the network for point clouds must not depend on, how it trains, and clouds that it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import metamixer as mm
from metamixer import MetamixerError
from metamixer.networks import FFNetPoints
from metamixer.networks.point_clouds import GridPool
from metamixer.ops.sparse_conv import SparseSites

Cloud = tuple[Tensor, Tensor, Tensor]


def small(**kwargs: Any) -> FFNetPoints:
    sizes = dict(
        in_channels=4,
        num_classes=3,
        enc_depths=(1, 1, 1),
        enc_channels=(4, 8, 8),
        dec_depths=(1, 1),
        dec_channels=(4, 8),
    )
    model = mm.create_model("ffnet_points", **sizes | kwargs).double().eval()
    for parameter in model.parameters():  # initial weights of 0.02 would fade out
        nn.init.normal_(parameter, std=0.5)
    return model


def cloud(*counts: int) -> Cloud:
    cells = [torch.cartesian_prod(*[torch.arange(6)] * 3)[torch.randperm(216)[:count]] for count in counts]
    feat = torch.randn(sum(counts), 4, dtype=torch.float64)
    return feat, torch.cat(cells), torch.tensor(counts).cumsum(0)


def test_one_row_of_logits_per_point() -> None:
    assert small()(*cloud(50, 20)).shape == (70, 3)
    assert small(num_classes=0)(*cloud(50, 20)).shape == (70, 4)


def test_points_of_other_clouds_do_not_matter() -> None:
    model, (feat, grid, offset) = small(), cloud(60, 1, 40)
    together, alone = model(feat, grid, offset), []
    for start, end in [(0, 60), (60, 61), (61, 101)]:
        alone.append(model(feat[start:end], grid[start:end], torch.tensor([end - start])))
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-10)


def test_the_order_of_points_does_not_matter() -> None:
    model, (feat, grid, offset) = small(), cloud(80)
    order = torch.randperm(80)
    torch.testing.assert_close(
        model(feat[order], grid[order], offset), model(feat, grid, offset)[order], rtol=0, atol=1e-10
    )


def test_only_shifts_by_whole_coarse_cells_change_nothing() -> None:
    """Two poolings cut at multiples of 4."""
    model, (feat, grid, offset) = small(), cloud(80)
    reference = model(feat, grid, offset)
    torch.testing.assert_close(model(feat, grid + torch.tensor([400, -8, 4]), offset), reference, rtol=0, atol=1e-10)
    assert (model(feat, grid + 1, offset) - reference).abs().max() > 1e-3


def test_neighbours_are_found_once_per_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []
    search = SparseSites._search
    monkeypatch.setattr(
        SparseSites, "_search", lambda sites, kernel: searches.append((len(sites), kernel)) or search(sites, kernel)
    )
    small(enc_depths=(2, 2, 2), dec_depths=(2, 2))(*cloud(100))
    assert [kernel for _, kernel in searches] == [5, 3, 3, 3]
    assert len({points for points, _ in searches}) == 3


def test_pooling_takes_the_maximum_of_every_cell() -> None:
    pool = GridPool(2, 3).eval().double()
    x, cluster = torch.randn(7, 2, dtype=torch.float64), torch.tensor([0, 2, 1, 2, 2, 0, 1])
    expected = torch.stack([pool.proj(x)[cluster == cell].amax(0) for cell in range(3)])
    torch.testing.assert_close(pool(x, cluster, 3), F.gelu(pool.norm(expected)))


def test_training_moves_every_weight() -> None:
    model = small(drop_path_rate=0.3).train()
    loss = F.cross_entropy(model(*cloud(100, 60)), torch.randint(3, (160,)))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_drop_path_rises_along_the_encoder_and_falls_along_the_decoder() -> None:
    model = small(enc_depths=(1, 2, 1), dec_depths=(2, 1), drop_path_rate=0.3)
    encoder = [block.drop_path.drop_prob for stage in model.encoder for block in stage.blocks]
    decoder = [block.drop_path.drop_prob for stage in reversed(model.decoder) for block in stage.blocks]
    assert encoder == pytest.approx([0, 0.1, 0.2, 0.3])
    assert decoder == pytest.approx([0.3, 0.15, 0])


@pytest.mark.parametrize("points", [1, 2])
def test_smallest_clouds(points: int) -> None:
    assert small()(*cloud(points)).isfinite().all()


def with_nan(feat: Tensor, grid: Tensor, offset: Tensor) -> Cloud:
    feat[3, 1] = torch.nan
    return feat, grid, offset


def with_twins(feat: Tensor, grid: Tensor, offset: Tensor) -> Cloud:
    grid[7] = grid[2]
    return feat, grid, offset


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (with_nan, "NaN or infinite values, first at point 3"),
        (with_twins, "points 2 and 7 lie in the same grid cell of the same cloud"),
        (lambda f, g, o: (f[:0], g[:0], o), "holds no points"),
        (lambda f, g, o: (f[:, :3], g, o), "points × 4 floating-point features"),
        (lambda f, g, o: (f, g[:-1], o), "3 integers for each of 20 points"),
        (lambda f, g, o: (f, g.double(), o), "3 integers for each of 20 points, got .* torch.float64"),
        (lambda f, g, o: (f, g, o - 1), r"end at the number of points, 20, got \[11, 19\]"),
        (lambda f, g, o: (f, g, torch.tensor([0, 20])), r"offset must rise .* got \[0, 20\]"),
        (lambda f, g, o: (f, g, torch.tensor([12, 8, 20])), "offset must rise"),
        (lambda f, g, o: (f, g, torch.tensor([], dtype=torch.long)), "offset must rise"),
        (lambda f, g, o: (f, g, torch.tensor(20)), "offset must rise"),
    ],
)
def test_clouds_that_make_no_sense(spoil: Any, message: str) -> None:
    with pytest.raises(MetamixerError, match=message):
        small()(*spoil(*cloud(12, 8)))


def test_gradients_of_pooling_do_not_depend_on_what_memory_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is used again may hold the very maxima that were found before."""
    pool = GridPool(4, 8)
    x, cluster = torch.randn(30, 4), torch.arange(30) % 7

    def gradient() -> Tensor:
        pool.zero_grad()
        pool(x, cluster, 7).square().sum().backward()
        assert pool.proj.weight.grad is not None
        return pool.proj.weight.grad

    expected = gradient()
    projected = pool.proj(x).detach()
    maxima = torch.stack([projected[cluster == cell].amax(0) for cell in range(7)])
    monkeypatch.setattr(Tensor, "new_empty", lambda *_: maxima.clone())
    assert torch.equal(gradient(), expected)


def test_clouds_in_one_cell_are_refused_in_training() -> None:
    model = small()
    one_coarse_cell = torch.zeros(2, 4, dtype=torch.float64), torch.tensor([[0, 0, 0], [0, 0, 1]]), torch.tensor([2])
    assert model(*one_coarse_cell).shape == (2, 3)
    for points in (one_coarse_cell, cloud(1)):
        with pytest.raises(MetamixerError, match="fill one cell of a grid, of which a batch norm in training"):
            model.train()(*points)
    assert model(*cloud(1, 1)).shape == (2, 3)
