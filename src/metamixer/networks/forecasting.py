"""FFNet for time series: MetaMixer blocks over patches, features and variables (arXiv 2406.02021), as released.

Inside the network a batch is ``M × D × B × N``: M variables, D features, B windows, N patches. With variables and
features in front, every layer is a batched matrix product on contiguous memory: features are mixed by one matrix per
variable, variables by one per feature, and a depthwise kernel is one Toeplitz matrix per variable and feature
(``ops/depthwise1d.py``).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.errors import MetamixerError
from metamixer.mixers.conv_norm import affine_of
from metamixer.ops.depthwise1d import depthwise_conv1d, pays_as_matrix, toeplitz
from metamixer.ops.dropout import drop_, gelu_of_kept_
from metamixer.ops.gradient_layout import contiguous_gradient, transposed_product
from metamixer.ops.linear_norm import Moments, merged_norm, merged_norms
from metamixer.ops.placement import placed
from metamixer.ops.precision import autocast_is_on

TOKEN_EXPANSION = 2  # of the token mixers, in all released settings
OUTPUT_DROP_RATE = 0.15  # of all mixers
VARIANCE_EPSILON = 1e-5  # added to the variance of a window


@torch.no_grad()
def _fold_into(conv: nn.Conv1d, norm: nn.Module) -> nn.Module:
    """Let a convolution with bias take over the batch norm behind it; returns what is left of the norm.

    The convolution's channels may be several times the norm's, ordered (variable, feature of the norm).
    """
    if isinstance(norm, nn.BatchNorm1d):
        scale, shift = affine_of(norm)
        conv.weight.view(-1, len(scale), *conv.weight.shape[1:]).mul_(scale[:, None, None])
        conv.bias.view(-1, len(scale)).mul_(scale).add_(shift)
    return nn.Identity()


def norms_merge(x: Tensor, norm: nn.Module) -> bool:
    """May a norm behind a linear map of x join the map in training? Not where types are mixed, or x is empty."""
    return isinstance(norm, nn.BatchNorm1d) and not autocast_is_on(x) and x.numel() > 0


@placed
class PatchDepthwise(nn.Conv1d):
    """A depthwise convolution along the patches: ``C × B × N`` to the same shape, channels first."""

    def __init__(self, channels: int, kernel_size: int, bias: bool = True) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv1d(x, self.weight, self.bias)


@placed
class PatchDepthwiseNorm(nn.Module):
    """:class:`PatchDepthwise` without bias, then a batch norm."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = PatchDepthwise(channels, kernel_size, bias=False)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).flatten(1)[None]).view_as(x)


@placed
class ParallelPatchDepthwise(nn.Module):
    """A large kernel and a small one beside it, each with its norm; after training they merge into the large one."""

    def __init__(self, channels: int, large: int, small: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([PatchDepthwiseNorm(channels, kernel) for kernel in (large, small)])

    def forward(self, x: Tensor) -> Tensor:
        return self.branches[0](x) + self.branches[1](x)

    @torch.no_grad()
    def fuse(self) -> PatchDepthwise:
        large = self.branches[0].conv
        merged = PatchDepthwise(large.in_channels, large.kernel_size[0]).to(large.weight).train(self.training)
        merged.weight.zero_()
        merged.bias.zero_()
        for branch in self.branches:
            scale, shift = affine_of(branch.norm)
            margin = (large.kernel_size[0] - branch.conv.kernel_size[0]) // 2
            merged.weight += F.pad(branch.conv.weight * scale[:, None, None], (margin, margin))
            merged.bias += shift
        return merged


@placed
class TwoMixes(nn.Module):
    """Mix the rows inside every group, GELU, then mix the groups for every row: ``G × R × T`` to ``R × G × T``.

    The hidden layer is ``copies`` times as wide. Weights lie in grouped 1×1 convolutions as in the release:
    ``spread`` has a group per G with hidden channels ordered (row, copy), ``gather`` a group per R with input channels
    ordered (copy, group). ``drop_rates`` are of the hidden layer, before its GELU, and of the output.
    """

    def __init__(self, groups: int, rows: int, copies: int, drop_rates: tuple[float, float]) -> None:
        super().__init__()
        self.sizes = (groups, rows, copies)
        self.drop_rates = drop_rates
        inside, outside = groups * rows * copies, groups * rows
        self.spread = nn.Conv1d(outside, inside, 1, groups=groups)
        self.gather = nn.Conv1d(inside, outside, 1, groups=rows)

    def forward(self, x: Tensor) -> Tensor:
        groups, rows, copies = self.sizes
        # Hidden channels ordered (copy, row), which are (group, copy) for the second product, need no copy in between.
        spread = self.spread.weight.view(groups, rows, copies, rows).transpose(1, 2).flatten(1, 2)
        shift = self.spread.bias.view(groups, rows, copies).transpose(1, 2).reshape(groups, -1, 1)
        gather = self.gather.weight.view(rows, groups, copies, groups).transpose(2, 3).flatten(2)
        out_shift = self.gather.bias.view(rows, groups, 1)
        inner, outer = self.drop_rates if self.training else (0.0, 0.0)
        if inner or outer:  # what dropout keeps is scaled up: here in the weights, which are few
            spread, shift = spread / (1 - inner), shift / (1 - inner)
            gather, out_shift = gather / (1 - outer), out_shift / (1 - outer)
        hidden = gelu_of_kept_(torch.bmm(spread, x).add_(shift), inner).unflatten(1, (copies, rows)).flatten(0, 1)
        return drop_(transposed_product(gather, hidden).add_(out_shift), outer)


@placed
class VariableMixer(nn.Module):
    """The token mixer: variables mixed, then a depthwise kernel, GELU and another one along the patches.

    ``M × D × B × N`` to the same shape, residual included.
    """

    def __init__(self, variables: int, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.mix = TwoMixes(dim, variables, TOKEN_EXPANSION, drop_rates=(0.3, OUTPUT_DROP_RATE))
        self.norm = nn.BatchNorm1d(dim)
        self.interact = PatchDepthwise(variables * dim, kernel_size)
        self.aggregate = PatchDepthwise(variables * dim, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        query = self.norm(self.mix(x.flatten(2).transpose(0, 1)))
        query = query.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
        return x + self.aggregate(F.gelu(self.interact(query))).reshape_as(x)

    def reparameterize(self) -> None:
        """Fold the norm into the mix before it."""
        self.norm = _fold_into(self.mix.gather, self.norm)


@placed
class FeatureMixer(nn.Module):
    """The channel mixer: a large depthwise kernel along the patches, features mixed for each variable, GELU, variables
    mixed for each feature.

    ``M × D × B × N`` to the same shape, residual included.
    """

    def __init__(
        self, variables: int, dim: int, kernel_size: int, small_kernel: int, expansion: int, drop_rate: float
    ) -> None:
        super().__init__()
        self.query = ParallelPatchDepthwise(variables * dim, kernel_size, small_kernel)
        self.norm = nn.BatchNorm1d(dim)
        self.mix = TwoMixes(variables, dim, expansion, drop_rates=(drop_rate, OUTPUT_DROP_RATE))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(self._normed_query(x.flatten(0, 1)))
        return x + mixed.transpose(0, 1).unflatten(2, x.shape[2:])

    def _normed_query(self, x: Tensor) -> Tensor:
        """``M·D × B × N`` to ``M × D × B·N``: the convolutions, their norms and the norm of their sum."""
        dim = self.mix.sizes[1]
        sizes = (len(x) // dim, dim, x.shape[1] * x.shape[2])
        kernels = [branch.conv.weight[:, 0] for branch in getattr(self.query, "branches", ())]
        pays = bool(kernels) and pays_as_matrix(x.shape[-1], kernels[0].shape[-1])
        if self.training and pays and norms_merge(x, self.norm):
            matrices = [toeplitz(kernel, x.shape[-1]).mT for kernel in kernels]
            norms = [cast(nn.BatchNorm1d, branch.norm) for branch in self.query.branches]
            matrix, shift = merged_norms(x, matrices, norms, self.norm)
            return torch.bmm(x, matrix).add_(shift[:, None, None]).view(sizes)
        return self.norm(self.query(x).reshape(sizes))

    def reparameterize(self) -> None:
        """Merge both kernels and fold the norm behind them."""
        if isinstance(self.query, ParallelPatchDepthwise):
            self.query = self.query.fuse()
        self.norm = _fold_into(self.query, self.norm)


@placed
class ForecastingBlock(nn.Sequential):
    """Token mixer, then channel mixer."""

    def __init__(
        self, variables: int, dim: int, kernel_size: int, small_kernel: int, expansion: int, drop_rate: float
    ) -> None:
        super().__init__()
        self.token_mixer = VariableMixer(variables, dim, kernel_size)
        self.channel_mixer = FeatureMixer(variables, dim, kernel_size, small_kernel, expansion, drop_rate)


@placed
class Patches(nn.Module):
    """Overlapping patches of every variable, embedded: ``M × B × time`` to ``M × D × B × N``.

    The last value is repeated so that a patch begins at every multiple of the stride.
    """

    def __init__(self, dim: int, patch: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, dim, patch, stride)
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        (patch,), (stride,) = self.conv.kernel_size, self.conv.stride
        repeated = x[..., -1:].expand(-1, -1, patch - stride)  # F.pad(mode="replicate") refuses a batch of none
        windows = torch.cat([x, repeated], dim=2).unfold(2, patch, stride)  # M × B × N × patch
        rows, weight, bias, norm = windows.flatten(1, 2), self.conv.weight.mT, self.conv.bias, self.norm
        if self.training and norms_merge(x, norm):
            weight, bias = merged_norm(Moments.of(rows.flatten(0, 1)[None]), weight, norm, bias)
            norm = nn.Identity()
        embedded = torch.baddbmm(bias[:, None], weight[..., 0].expand(len(rows), -1, -1), rows.mT)
        return norm(embedded).unflatten(2, windows.shape[1:3])

    def reparameterize(self) -> None:
        """Fold the norm into the embedding."""
        self.norm = _fold_into(self.conv, self.norm)


@placed
class FFNetTSF(nn.Module):
    """A window of several variables to their next values: ``B × lookback × channels`` to ``B × horizon × channels``.

    Each window is standardised by its own mean and deviation, per variable, and the forecast is scaled back
    (reversible instance normalisation).

    Args:
        channels: variables of the series.
        lookback, horizon: time steps read and forecast.
        ffn_ratio: hidden width of the channel mixers, as a multiple of ``dim`` (2 to 12 in the released settings).
        dim: features per patch.
        depth: blocks.
        patch, stride: length of a patch and distance between two.
        kernel_size, small_kernel: along the patches; the small one stands beside the large one of the channel mixer.
        drop_rate: dropout inside the channel mixers in training (0.6 to 0.9 in the released settings).
        head_drop_rate: dropout on the forecast in training (0 to 0.5 there).

    The defaults are the released setting for ETTh1, but for ``drop_rate`` (0.7 there).
    Raises MetamixerError for sizes that make no network, and for windows of another length or number of variables.
    """

    def __init__(
        self,
        channels: int = 7,
        lookback: int = 96,
        horizon: int = 96,
        ffn_ratio: int = 2,
        dim: int = 64,
        depth: int = 1,
        patch: int = 4,
        stride: int = 2,
        kernel_size: int = 51,
        small_kernel: int = 5,
        drop_rate: float = 0.1,
        head_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if min(channels, horizon, ffn_ratio, dim, stride) < 1 or depth < 0:
            raise MetamixerError("channels, horizon, ffn_ratio, dim and stride must be at least 1, depth at least 0")
        if lookback < stride or patch < stride:
            raise MetamixerError(
                f"a lookback of {lookback} and patches of {patch} are shorter than a stride of {stride}"
            )
        if kernel_size % 2 == 0 or small_kernel % 2 == 0 or not 1 <= small_kernel <= kernel_size:
            raise MetamixerError(
                f"kernels must be odd and the small one no larger, got {kernel_size} and {small_kernel}"
            )
        if not (0 <= drop_rate < 1 and 0 <= head_drop_rate < 1):
            raise MetamixerError(
                f"drop rates must be 0 or more and below 1, got {drop_rate} and {head_drop_rate} for the head"
            )
        self.channels, self.lookback, self.horizon = channels, lookback, horizon
        self.stem = Patches(dim, patch, stride)
        self.blocks = nn.Sequential(
            *[
                ForecastingBlock(channels, dim, kernel_size, small_kernel, ffn_ratio, drop_rate)
                for _ in range(depth)
            ]
        )  # fmt: skip
        self.output = nn.Linear(dim * (lookback // stride), horizon)
        self.head_drop = nn.Dropout(head_drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or tuple(x.shape[1:]) != (self.lookback, self.channels):
            raise MetamixerError(
                f"the network reads windows as batch × {self.lookback} time steps × {self.channels} variables,"
                f" got {tuple(x.shape)}"
            )
        mean = x.mean(1, keepdim=True)
        deviation = (x.var(1, keepdim=True, correction=0) + VARIANCE_EPSILON).sqrt()
        features = contiguous_gradient(self.blocks(self.stem(((x - mean) / deviation).permute(2, 0, 1))))
        forecast = self.head_drop(self.output(features.transpose(1, 2).flatten(2)))  # M × B × horizon
        return forecast.permute(1, 2, 0) * deviation + mean
