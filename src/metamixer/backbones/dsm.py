"""DSM: hierarchical networks of dynamic spectrum mixers (arXiv 2309.06721), a documented reconstruction.

The paper's code was never released. Widths, depths and the form of the blocks are this project's choice, made so
that the three networks have the usual sizes (about 26 M / 4.5 GMACs, 50 M / 9, 88 M / 15 at 224²): a MetaFormer
whose token mixer is :class:`metamixer.mixers.DynamicSpectrumMixer` and whose FFN starts with a depthwise 3×3.
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model

from metamixer.backbones.base import create_backbone, pretrained_cfg
from metamixer.backbones.metaformer import MetaFormer
from metamixer.weights.tags import with_weights


class DSMNet(MetaFormer):
    """A MetaFormer with dynamic spectrum mixers.

    Args:
        dynamic: False replaces the generated band weights by learned ones, the same for every image.
        kwargs: as :class:`MetaFormer`.
    """

    def __init__(self, dynamic: bool = True, **kwargs: Any) -> None:
        defaults: dict[str, Any] = dict(mixer="dsm", ffn_kernel=3, mixer_args={"dynamic": dynamic})
        super().__init__(**{**defaults, **kwargs})


def _cfg(**changes: Any) -> dict[str, Any]:
    return pretrained_cfg(
        first_conv="stem.0.conv",
        paper_ids="arXiv:2309.06721",
        paper_name="DSM: Dynamic Spectrum Mixer for Visual Recognition (reconstruction)",
        origin_url="https://arxiv.org/abs/2309.06721",
        **changes,
    )


default_cfgs = generate_default_cfgs(
    with_weights(
        {
            "dsm_nano": _cfg(input_size=(3, 64, 64)),
            "dsm_t": _cfg(),
            "dsm_s": _cfg(),
            "dsm_b": _cfg(),
        }
    )
)


@register_model
def dsm_nano(pretrained: bool = False, **kwargs: Any) -> DSMNet:
    defaults = dict(depths=(1, 2, 4, 1), dims=(24, 48, 96, 160), ffn_expansion=3.0)
    return create_backbone(DSMNet, "dsm_nano", pretrained, defaults, kwargs)


@register_model
def dsm_t(pretrained: bool = False, **kwargs: Any) -> DSMNet:
    defaults = dict(depths=(3, 4, 13, 3), dims=(64, 128, 320, 512))
    return create_backbone(DSMNet, "dsm_t", pretrained, defaults, kwargs)


@register_model
def dsm_s(pretrained: bool = False, **kwargs: Any) -> DSMNet:
    defaults = dict(depths=(3, 8, 32, 4), dims=(64, 128, 320, 512))
    return create_backbone(DSMNet, "dsm_s", pretrained, defaults, kwargs)


@register_model
def dsm_b(pretrained: bool = False, **kwargs: Any) -> DSMNet:
    defaults = dict(depths=(3, 8, 32, 5), dims=(96, 192, 384, 768))
    return create_backbone(DSMNet, "dsm_b", pretrained, defaults, kwargs)
