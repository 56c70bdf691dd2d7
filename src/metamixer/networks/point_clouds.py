"""FFNet for point clouds: a U-Net of MetaMixer blocks with sparse convolutions (arXiv 2406.02021), as released."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.errors import MetamixerError
from metamixer.mixers.conv_norm import affine_of
from metamixer.ops.placement import placed
from metamixer.ops.sparse_conv import SparseSites, SubmanifoldConv3d


def _norm(dim: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(dim, eps=1e-3, momentum=0.01)


@placed
class SparseConvNorm(nn.Module):
    """Submanifold convolution and batch norm: ``N × in`` to ``N × out`` on the same sites."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.conv = SubmanifoldConv3d(in_channels, out_channels, kernel_size, bias)
        self.norm = _norm(out_channels)

    def forward(self, x: Tensor, sites: SparseSites) -> Tensor:
        return self.norm(self.conv(x, sites))

    @torch.no_grad()
    def fuse(self) -> SubmanifoldConv3d:
        scale, shift = affine_of(self.norm)
        conv = deepcopy(self.conv)
        conv.weight.mul_(scale[:, None, None, None, None])
        conv.bias = nn.Parameter(shift if conv.bias is None else conv.bias * scale + shift)
        return conv


@placed
class LinearNormAct(nn.Sequential):
    """Linear layer, batch norm, GELU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.Linear(in_channels, out_channels), _norm(out_channels), nn.GELU())

    @torch.no_grad()
    def fuse(self) -> nn.Sequential:
        linear, norm, act = deepcopy(self)
        scale, shift = affine_of(norm)
        linear.weight.mul_(scale[:, None])
        linear.bias.mul_(scale).add_(shift)
        return nn.Sequential(linear, act)


@placed
class PointBlock(nn.Module):
    """FFNified attention, then an FFN behind a sparse convolution, each behind a layer norm and with a residual.

    The convolutions are not depthwise. ``N × dim`` to the same shape.
    """

    def __init__(self, dim: int, mlp_ratio: float, drop_path_rate: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.interact = SparseConvNorm(dim, dim)
        self.aggregate = SparseConvNorm(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.local = SparseConvNorm(dim, dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop_path = DropPath(drop_path_rate)  # drops points, not clouds

    def forward(self, x: Tensor, sites: SparseSites) -> Tensor:
        coefficients = F.gelu(self.interact(self.query(self.norm1(x)), sites))
        x = x + self.drop_path(self.aggregate(coefficients, sites))
        return x + self.drop_path(self.fc2(F.gelu(self.fc1(self.local(self.norm2(x), sites)))))


@placed
class GridPool(nn.Module):
    """Linear layer, maximum over the points of every coarser cell, batch norm, GELU: ``N × in`` to ``cells × out``."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, out_channels)
        self.norm = _norm(out_channels)

    def forward(self, x: Tensor, cluster: Tensor, cells: int) -> Tensor:
        projected = self.proj(x)
        # Not new_empty: the gradient is shared with whatever equals the maximum there, and memory used before may.
        out = projected.new_full((cells, projected.shape[1]), -torch.inf)
        out = out.scatter_reduce(0, cluster[:, None].expand_as(projected), projected, "amax", include_self=False)
        return F.gelu(self.norm(out))


@placed
class GridUnpool(nn.Module):
    """Each point's own features plus those of the cell it lies in: ``N × skip`` and ``cells × in`` to ``N × out``."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.coarse = LinearNormAct(in_channels, out_channels)
        self.skip = LinearNormAct(skip_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor, cluster: Tensor) -> Tensor:
        return self.skip(skip) + self.coarse(x)[cluster]


@placed
class PointStage(nn.Module):
    """Blocks on one grid, behind a change of grid where there is one (``down`` or ``up``)."""

    def __init__(
        self, dim: int, mlp_ratio: float, rates: list[float], down: GridPool | None = None, up: GridUnpool | None = None
    ) -> None:
        super().__init__()
        self.down, self.up = down, up
        self.blocks = nn.ModuleList([PointBlock(dim, mlp_ratio, rate) for rate in rates])

    def forward(self, x: Tensor, sites: SparseSites) -> Tensor:
        for block in self.blocks:
            x = block(x, sites)
        return x


@placed
class FFNetPoints(nn.Module):
    """Features of every point, or logits of its classes, from clouds of points in grid cells.

    Args:
        in_channels: features of a point (colour and normal in the released settings).
        num_classes: classes of a linear classifier; 0 for none.
        enc_depths, enc_channels: blocks and channels per stage of the encoder; cells double in width from each to the
            next.
        dec_depths, dec_channels: the same for the decoder, finest first; one fewer.
        mlp_ratio: hidden channels of the FFNs, as a multiple.
        drop_path_rate: stochastic depth of single points: rises from 0 to this along the encoder's blocks, falls back
            to 0 along the decoder's.

    The defaults are the released setting for ScanNet, but for ``drop_path_rate`` (0.3 there).
    Raises MetamixerError for sizes that make no network or do not belong together, and for clouds as :meth:`forward`
    says.
    """

    def __init__(
        self,
        in_channels: int = 6,
        num_classes: int = 20,
        enc_depths: tuple[int, ...] = (2, 2, 2, 6, 2),
        enc_channels: tuple[int, ...] = (32, 64, 128, 256, 512),
        dec_depths: tuple[int, ...] = (2, 2, 2, 2),
        dec_channels: tuple[int, ...] = (64, 64, 128, 256),
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if not len(enc_depths) == len(enc_channels) == len(dec_depths) + 1 == len(dec_channels) + 1:
            raise MetamixerError(
                "depths and channels must name as many stages, the decoder's one fewer, got "
                f"{enc_depths}, {enc_channels}, {dec_depths}, {dec_channels}"
            )
        widths, depths = (*enc_channels, *dec_channels), (*enc_depths, *dec_depths)
        if min(in_channels, *widths) < 1 or min(num_classes, *depths) < 0 or int(min(widths) * mlp_ratio) < 1:
            raise MetamixerError(
                "channels and channels · mlp_ratio must be at least 1, depths and num_classes at least 0, got"
                f" in_channels={in_channels}, {widths}, mlp_ratio={mlp_ratio}, {depths}, num_classes={num_classes}"
            )
        if not 0 <= drop_path_rate < 1:
            raise MetamixerError(f"drop_path_rate must be 0 or more and below 1, not {drop_path_rate}")
        self.in_channels, self.num_classes = in_channels, num_classes
        self.embedding = SparseConvNorm(in_channels, enc_channels[0], kernel_size=5, bias=False)
        rates = _rising_rates(drop_path_rate, enc_depths)
        downs = [None, *(GridPool(*channels) for channels in pairwise(enc_channels))]
        self.encoder = nn.ModuleList(
            [
                PointStage(dim, mlp_ratio, rate, down=down)
                for dim, rate, down in zip(enc_channels, rates, downs, strict=True)
            ]
        )
        rates = [rate[::-1] for rate in _rising_rates(drop_path_rate, dec_depths)]
        below = (*dec_channels[1:], enc_channels[-1])
        ups = [GridUnpool(*channels) for channels in zip(below, enc_channels, dec_channels, strict=False)]
        self.decoder = nn.ModuleList(
            [PointStage(dim, mlp_ratio, rate, up=up) for dim, rate, up in zip(dec_channels, rates, ups, strict=True)]
        )
        self.num_features = dec_channels[0] if dec_channels else enc_channels[-1]
        self.head = nn.Sequential()
        if num_classes:
            self.head.add_module("fc", nn.Linear(self.num_features, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, feat: Tensor, grid_coord: Tensor, offset: Tensor) -> Tensor:
        """Logits, or features where there is no classifier, in the order of the points.

        Args:
            feat: ``N × in_channels``, all clouds one after another.
            grid_coord: ``N × 3`` integers, the grid cell of every point along x, y, z; one point per cell. The
                coarser grids are cut at even numbers of these.
            offset: for each cloud the row behind its last point, so that the last entry is N.

        Raises MetamixerError for no points, values that are NaN or infinite, shapes or offsets that do not match, two
        points of a cloud in one cell, and in training for clouds that all lie in one cell of a grid.
        """
        sites = _check(feat, grid_coord, offset, self.in_channels)
        _check_sites(sites, self.training)
        x = F.gelu(self.embedding(feat, sites))
        finer: list[tuple[Tensor, SparseSites, Tensor]] = []
        for stage in self.encoder:
            if stage.down is not None:
                coarse, cluster = sites.pooled()
                _check_sites(coarse, self.training)
                finer.append((x, sites, cluster))
                x, sites = stage.down(x, cluster, len(coarse)), coarse
            x = stage(x, sites)
        for stage in reversed(self.decoder):
            skip, sites, cluster = finer.pop()
            x = stage(stage.up(x, skip, cluster), sites)
        return self.head(x)


def _rising_rates(last: float, depths: tuple[int, ...]) -> list[list[float]]:
    """From 0 to ``last`` over all blocks, by stage."""
    return [part.tolist() for part in torch.linspace(0, last, sum(depths), device="cpu").split(list(depths))]


def _check_sites(sites: SparseSites, training: bool) -> None:
    if training and len(sites) == 1:
        raise MetamixerError(
            "the clouds fill one cell of a grid, of which a batch norm in training knows no deviation: take larger"
            " clouds, several of them, or model.eval()"
        )


def _check(feat: Tensor, grid_coord: Tensor, offset: Tensor, in_channels: int) -> SparseSites:
    """The clouds' sites, where the input makes sense."""
    if feat.ndim != 2 or feat.shape[1] != in_channels or not feat.is_floating_point():
        raise MetamixerError(
            f"feat must be points × {in_channels} floating-point features, got {tuple(feat.shape)} of {feat.dtype}"
        )
    points = len(feat)
    if points == 0:
        raise MetamixerError("the cloud holds no points")
    if tuple(grid_coord.shape) != (points, 3) or grid_coord.is_floating_point():
        raise MetamixerError(
            f"grid_coord must hold 3 integers for each of {points} points, got {tuple(grid_coord.shape)} of"
            f" {grid_coord.dtype}"
        )
    finite = feat.isfinite().all(1)
    if not finite.all():
        raise MetamixerError(f"feat holds NaN or infinite values, first at point {int((~finite).nonzero()[0])}")
    ends = offset.tolist() if offset.ndim == 1 and not offset.is_floating_point() else []
    if not ends or ends[-1] != points or any(a >= b for a, b in pairwise([0, *ends])):
        raise MetamixerError(
            f"offset must rise from cloud to cloud and end at the number of points, {points}, got {offset.tolist()}"
        )
    clouds = torch.arange(len(ends), device=feat.device)
    lengths = torch.tensor([b - a for a, b in pairwise([0, *ends])], device=feat.device)
    try:
        return SparseSites(grid_coord, clouds.repeat_interleave(lengths, output_size=points))
    except ValueError as error:
        raise MetamixerError(str(error)) from None
