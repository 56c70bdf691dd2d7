"""AFFNet: adaptive frequency filters as efficient global token mixers (ICCV 2023, arXiv 2307.14008)."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import DropPath, make_divisible, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from metamixer.backbones.base import Backbone, Stage, create_backbone, drop_path_rates, pretrained_cfg
from metamixer.mixers.aff import AdaptiveFrequencyFilter
from metamixer.mixers.conv_norm import ConvNorm, conv_from, fold_norm_after
from metamixer.ops.placement import placed
from metamixer.weights.tags import with_weights


@placed
class InvertedResidual(nn.Module):
    """MobileNetV2 block: 1×1 expansion, depthwise 3×3, 1×1 projection; a residual where the shape stays."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansion: float,
        stride: int = 1,
        dilation: int = 1,
        act: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        hidden = make_divisible(round(in_channels * expansion), 8)
        self.expand = ConvNorm(in_channels, hidden, act=act())
        self.depthwise = ConvNorm(hidden, hidden, 3, stride, dilation, groups=hidden, act=act())
        self.project = ConvNorm(hidden, out_channels)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


@placed
class AFFBlock(nn.Module):
    """Inverted residual first, then the frequency filter, with one residual around both (figure 3 of the paper)."""

    def __init__(self, dim: int, expansion: float = 2.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, dim)
        self.local = InvertedResidual(dim, dim, expansion)
        self.norm2 = nn.GroupNorm(1, dim)
        self.mixer = AdaptiveFrequencyFilter(dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mixer(self.norm2(self.local(self.norm1(x)))))


@placed
class AFFStage(Stage):
    """Downsampling, AFF blocks, and a fusion of their output with their input."""

    def __init__(self, downsample: nn.Module, dim: int, depth: int, drop_paths: list[float]) -> None:
        super().__init__(downsample, [AFFBlock(dim, drop_path=drop_paths[i]) for i in range(depth)])
        self.norm = nn.GroupNorm(1, dim)
        self.project: nn.Module = ConvNorm(dim, dim)
        self.fuse_maps: nn.Module = ConvNorm(2 * dim, dim, act=nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        y = self.project(self.norm(self.run_blocks(x)))
        return self.fuse_maps(torch.cat([x, y], dim=1))

    @torch.no_grad()
    def reparameterize(self) -> None:
        """No activation stands between projection and fusion: both are one 1×1 convolution."""
        if not isinstance(self.project, ConvNorm):
            return
        projection = self.project.fuse()
        fusion = fold_norm_after(self.fuse_maps.conv, self.fuse_maps.norm)
        of_input, of_blocks = fusion.weight[..., 0, 0].chunk(2, dim=1)
        weight = torch.cat([of_input, of_blocks @ projection.weight[..., 0, 0]], dim=1)
        bias = fusion.bias + of_blocks @ projection.bias
        self.project = nn.Identity()
        self.fuse_maps = nn.Sequential(conv_from(weight[..., None, None], bias, fusion), self.fuse_maps.act)


class AFFNet(Backbone):
    """Five stages at strides 2, 4, 8, 16 and 32: two of inverted residuals, three of AFF blocks.

    Args:
        dims: channels of the five stages.
        depths: blocks of the five stages.
        expansion: of the inverted residuals outside AFF blocks.
        stem_dim: channels of the first convolution.
        output_stride: 32, or 16 or 8: the last stage, or the last two, lose their stride; the inverted residual that
            loses it takes the dilation reached before it (so at 16 nothing is dilated), as in the release.
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: as everywhere in timm.

    Raises ValueError for another ``output_stride``.
    """

    def __init__(
        self,
        dims: tuple[int, ...] = (32, 64, 128, 256, 320),
        depths: tuple[int, ...] = (1, 3, 2, 4, 3),
        expansion: float = 4.0,
        stem_dim: int = 16,
        output_stride: int = 32,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, not {output_stride}")
        rates = drop_path_rates(drop_path_rate, depths)
        stages: list[nn.Module] = []
        reductions = []
        reduction, dilation, previous = 2, 1, stem_dim
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            stride, dilation_before = 1 if i == 0 else 2, dilation
            if stride == 2 and reduction == output_stride:
                stride, dilation = 1, dilation * 2
            reduction *= stride
            first = InvertedResidual(previous, dim, expansion, stride, dilation_before)
            if i < 2:
                stages.append(Stage(first, [InvertedResidual(dim, dim, expansion) for _ in range(depth - 1)]))
            else:
                stages.append(AFFStage(first, dim, depth, rates[i]))
            reductions.append(reduction)
            previous = dim
        num_features = min(4 * dims[-1], 960)
        super().__init__(
            stem=ConvNorm(in_chans, stem_dim, 3, stride=2, act=nn.SiLU()),
            stages=stages,
            feature_dims=dims,
            reductions=reductions,
            final=ConvNorm(dims[-1], num_features, act=nn.SiLU()),
            num_features=num_features,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)


def _cfg(**changes: Any) -> dict[str, Any]:
    return pretrained_cfg(
        first_conv="stem.conv",
        input_size=changes.pop("input_size", (3, 256, 256)),
        paper_ids="arXiv:2307.14008",
        paper_name="Adaptive Frequency Filters As Efficient Global Token Mixers",
        origin_url="https://github.com/microsoft/TokenMixers",
        license="mit",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        **changes,
    )


default_cfgs = generate_default_cfgs(
    with_weights(
        {
            "affnet_nano": _cfg(input_size=(3, 64, 64)),
            "affnet_et": _cfg(),
            "affnet_t": _cfg(),
            "affnet": _cfg(),
        }
    )
)


@register_model
def affnet_nano(pretrained: bool = False, **kwargs: Any) -> AFFNet:
    defaults = dict(dims=(16, 24, 48, 96, 128), depths=(1, 2, 2, 3, 2), expansion=2.0)
    return create_backbone(AFFNet, "affnet_nano", pretrained, defaults, kwargs)


@register_model
def affnet_et(pretrained: bool = False, **kwargs: Any) -> AFFNet:
    defaults = dict(depths=(1, 3, 2, 4, 3), dims=(32, 48, 64, 104, 144), expansion=2.0)
    return create_backbone(AFFNet, "affnet_et", pretrained, defaults, kwargs)


@register_model
def affnet_t(pretrained: bool = False, **kwargs: Any) -> AFFNet:
    defaults = dict(depths=(1, 3, 2, 4, 3), dims=(32, 48, 96, 160, 192), expansion=4.0)
    return create_backbone(AFFNet, "affnet_t", pretrained, defaults, kwargs)


@register_model
def affnet(pretrained: bool = False, **kwargs: Any) -> AFFNet:
    defaults = dict(depths=(1, 3, 2, 4, 3), dims=(32, 64, 128, 256, 320), expansion=4.0)
    return create_backbone(AFFNet, "affnet", pretrained, defaults, kwargs)
