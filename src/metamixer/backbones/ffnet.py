"""FFNet: pure convolutional networks of the MetaMixer paper (arXiv 2406.02021)."""

from __future__ import annotations

from typing import Any

from timm.layers import LayerNorm2d
from timm.models import generate_default_cfgs, register_model
from torch import nn

from metamixer.backbones.base import Backbone, ScaledResidual, Stage, create_backbone, drop_path_rates, pretrained_cfg
from metamixer.mixers.conv_ffn import ConvFFN
from metamixer.mixers.conv_norm import ConvNorm, NormConvSkip, ParallelDepthwise, draw_weights
from metamixer.mixers.ffnified import FFNifiedAttention
from metamixer.ops.placement import placed
from metamixer.weights.tags import with_weights


@placed
class FFNetBlock(nn.Sequential):
    """FFNified attention, then the convolutional FFN, each with a residual."""

    def __init__(
        self, dim: int, token_kernel: int, channel_kernel: int, expansion: float, init_value: float | None, rate: float
    ) -> None:
        super().__init__()
        self.token_mixer = ScaledResidual(FFNifiedAttention(dim, token_kernel), dim, init_value, rate)
        self.channel_mixer = ScaledResidual(ConvFFN(dim, channel_kernel, expansion), dim, init_value, rate)


class FFNet(Backbone):
    """Four stages at strides 4, 8, 16 and 32.

    Args:
        depths, dims: blocks and channels of each stage.
        stem_dim: channels after the stem's first convolution.
        token_kernels: depthwise kernels of the token mixers in each stage.
        channel_kernel: depthwise kernel of the channel mixers.
        expansion: hidden channels of the channel mixers, as a multiple.
        layer_scale: initial layer scale, None for none.
        feature_norms: one channel-wise layer norm per intermediate map (the released dense-prediction backbones).
        in_chans, num_classes, global_pool, drop_rate: as everywhere in timm.
        drop_path_rate: stochastic depth at the last block, rising linearly from 0.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 2, 8, 2),
        dims: tuple[int, ...] = (80, 160, 320, 640),
        stem_dim: int = 64,
        token_kernels: tuple[int, ...] = (3, 3, 7, 7),
        channel_kernel: int = 3,
        expansion: float = 3.0,
        layer_scale: float | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        feature_norms: bool = False,
    ) -> None:
        stem = nn.Sequential(
            ConvNorm(in_chans, stem_dim, 3, stride=2, act=nn.GELU()), ConvNorm(stem_dim, dims[0], 3, stride=2)
        )
        rates = drop_path_rates(drop_path_rate, depths)
        stages = []
        for i, (depth, dim, kernel) in enumerate(zip(depths, dims, token_kernels, strict=True)):
            downsample: nn.Module = nn.Identity()
            if i:
                downsample = nn.Sequential(
                    ParallelDepthwise(dims[i - 1], (7, 3), stride=2, out_channels=dim), NormConvSkip(dim)
                )
            blocks = [
                FFNetBlock(dim, kernel, channel_kernel, expansion, layer_scale, rates[i][j]) for j in range(depth)
            ]
            stages.append(Stage(downsample, blocks))
        super().__init__(
            stem=stem,
            stages=stages,
            feature_dims=dims,
            reductions=[4 * 2**i for i in range(len(dims))],
            final=nn.BatchNorm2d(dims[-1]),
            num_features=dims[-1],
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )
        if feature_norms:
            self.feature_norms = nn.ModuleList(LayerNorm2d(dim, eps=1e-6) for dim in dims)
        self.apply(draw_weights)


def _cfg(**changes: Any) -> dict[str, Any]:
    return pretrained_cfg(
        first_conv="stem.0.conv",
        input_size=changes.pop("input_size", (3, 256, 256)),
        paper_ids="arXiv:2406.02021",
        paper_name="MetaMixer Is All You Need",
        origin_url="https://github.com/ysj9909/FFNet",
        **changes,
    )


default_cfgs = generate_default_cfgs(
    with_weights(
        {
            "ffnet_nano": _cfg(input_size=(3, 64, 64)),
            "ffnet_1": _cfg(),
            "ffnet_2": _cfg(),
            "ffnet_3": _cfg(crop_pct=0.95),
            "ffnet_4": _cfg(crop_pct=0.95),
        }
    )
)


@register_model
def ffnet_nano(pretrained: bool = False, **kwargs: Any) -> FFNet:
    defaults = dict(depths=(1, 2, 4, 1), dims=(24, 48, 96, 192), stem_dim=16, token_kernels=(3, 3, 7, 7))
    return create_backbone(FFNet, "ffnet_nano", pretrained, defaults, kwargs)


@register_model
def ffnet_1(pretrained: bool = False, **kwargs: Any) -> FFNet:
    defaults = dict(depths=(2, 2, 8, 2), dims=(80, 160, 320, 640), channel_kernel=3)
    return create_backbone(FFNet, "ffnet_1", pretrained, defaults, kwargs)


@register_model
def ffnet_2(pretrained: bool = False, **kwargs: Any) -> FFNet:
    defaults = dict(depths=(3, 3, 15, 3), dims=(88, 176, 352, 704), channel_kernel=7)
    return create_backbone(FFNet, "ffnet_2", pretrained, defaults, kwargs)


@register_model
def ffnet_3(pretrained: bool = False, **kwargs: Any) -> FFNet:
    defaults = dict(depths=(4, 4, 22, 5), dims=(96, 192, 384, 768), channel_kernel=7, layer_scale=1e-6)
    return create_backbone(FFNet, "ffnet_3", pretrained, defaults, kwargs)


@register_model
def ffnet_4(pretrained: bool = False, **kwargs: Any) -> FFNet:
    defaults = dict(depths=(4, 4, 27, 3), dims=(128, 256, 512, 1024), channel_kernel=7, layer_scale=1e-6)
    return create_backbone(FFNet, "ffnet_4", pretrained, defaults, kwargs)
