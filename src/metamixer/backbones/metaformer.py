"""MetaFormer (arXiv 2111.11418) with any token mixer in any stage: one skeleton, only the mixer changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from metamixer.backbones.base import Backbone, ScaledResidual, Stage, create_backbone, drop_path_rates, pretrained_cfg
from metamixer.mixers import create_mixer
from metamixer.mixers.conv_ffn import ConvFFN
from metamixer.mixers.conv_norm import ConvNorm, draw_weights
from metamixer.mixers.framework import MetaMixer
from metamixer.weights.tags import with_weights

MixerSpec = str | Callable[[int], nn.Module]


class MetaFormer(Backbone):
    """Four stages at strides 4, 8, 16 and 32; every block is ``x + mixer(norm(x))``, then ``x + FFN(norm(x))``.

    Args:
        depths, dims: blocks and channels of each stage.
        mixer: a mixer's name, or a function from channels to a module; or a sequence of these, one per stage.
        mixer_args: keyword arguments for mixers given by name.
        ffn_kernel: depthwise kernel in front of the FFN; 1 for none, so that only the mixer looks around.
        ffn_expansion: hidden channels of the FFN, as a multiple.
        layer_scale: initial layer scale, None for none.
        in_chans, num_classes, global_pool, drop_rate: as everywhere in timm.
        drop_path_rate: stochastic depth at the last block, rising linearly from 0.

    Raises ValueError where a sequence of mixers does not match the number of stages, or a mixer is unknown.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        dims: tuple[int, ...] = (64, 128, 320, 512),
        mixer: MixerSpec | Sequence[MixerSpec] = "pooling",
        mixer_args: dict[str, Any] | None = None,
        ffn_kernel: int = 1,
        ffn_expansion: float = 4.0,
        layer_scale: float | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        mixers = [mixer] * len(depths) if isinstance(mixer, str) or callable(mixer) else list(mixer)
        if len(mixers) != len(depths):
            raise ValueError(f"{len(mixers)} mixers were given for {len(depths)} stages")
        stem = nn.Sequential(
            ConvNorm(in_chans, dims[0] // 2, 3, stride=2, act=nn.GELU()), ConvNorm(dims[0] // 2, dims[0], 3, stride=2)
        )
        rates = drop_path_rates(drop_path_rate, depths)
        stages = []
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            downsample = ConvNorm(dims[i - 1], dim, 3, stride=2) if i else nn.Identity()
            blocks = []
            for j in range(depth):
                block = nn.Sequential()
                token_mixer = _build(mixers[i], dim, mixer_args or {})
                block.token_mixer = _residual(token_mixer, dim, layer_scale, rates[i][j])
                block.channel_mixer = _residual(ConvFFN(dim, ffn_kernel, ffn_expansion), dim, layer_scale, rates[i][j])
                blocks.append(block)
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
        _draw_outside_mixers(self)


def _draw_outside_mixers(module: nn.Module) -> None:
    """Fresh weights in all layers but those of mixers, which know best how they begin."""
    if isinstance(module, ScaledResidual):
        if isinstance(module.mixer, MetaMixer):
            module.mixer.init_weights()
        return
    draw_weights(module)
    for child in module.children():
        _draw_outside_mixers(child)


def _residual(mixer: nn.Module, dim: int, layer_scale: float | None, drop_path: float) -> ScaledResidual:
    return ScaledResidual(mixer, dim, layer_scale, drop_path, norm=nn.BatchNorm2d(dim))


def _build(spec: MixerSpec, dim: int, mixer_args: dict[str, Any]) -> nn.Module:
    return create_mixer(spec, dim, **mixer_args) if isinstance(spec, str) else spec(dim)


def _cfg(**changes: Any) -> dict[str, Any]:
    return pretrained_cfg(
        first_conv="stem.0.conv",
        paper_ids="arXiv:2111.11418",
        paper_name="MetaFormer Is Actually What You Need for Vision",
        origin_url="https://arxiv.org/abs/2111.11418",
        **changes,
    )


default_cfgs = generate_default_cfgs(
    with_weights(
        {
            "metaformer_nano": _cfg(input_size=(3, 64, 64)),
            "metaformer_t": _cfg(),
            "metaformer_s": _cfg(),
        }
    )
)


@register_model
def metaformer_nano(pretrained: bool = False, **kwargs: Any) -> MetaFormer:
    defaults = dict(depths=(1, 2, 4, 1), dims=(24, 48, 96, 160), ffn_expansion=3.0)
    return create_backbone(MetaFormer, "metaformer_nano", pretrained, defaults, kwargs)


@register_model
def metaformer_t(pretrained: bool = False, **kwargs: Any) -> MetaFormer:
    defaults = dict(depths=(2, 2, 6, 2), dims=(48, 96, 192, 384))
    return create_backbone(MetaFormer, "metaformer_t", pretrained, defaults, kwargs)


@register_model
def metaformer_s(pretrained: bool = False, **kwargs: Any) -> MetaFormer:
    defaults = dict(depths=(2, 2, 6, 2), dims=(64, 128, 320, 512))
    return create_backbone(MetaFormer, "metaformer_s", pretrained, defaults, kwargs)
