"""CAS-ViT: convolutional additive self-attention vision transformers (arXiv 2408.03703)."""

from __future__ import annotations

from typing import Any

from timm.layers import DropPath, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from metamixer.backbones.base import Backbone, Stage, create_backbone, drop_path_rates, pretrained_cfg
from metamixer.mixers.additive import ConvAdditiveTokenMixer
from metamixer.mixers.conv_norm import ConvNorm, fold_norm_before
from metamixer.ops.placement import placed
from metamixer.weights.tags import with_weights


@placed
class LocalPerception(nn.Sequential):
    """1×1 convolution, norm, depthwise 3×3, GELU, 1×1 convolution ("integration subnet", figure 3)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.expand = ConvNorm(dim, dim, bias=True)
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.act = nn.GELU()
        self.project = nn.Conv2d(dim, dim, 1)


@placed
class CASBlock(nn.Module):
    """Local perception, additive token mixer and MLP, each with a residual: ``B × C × H × W`` to the same."""

    def __init__(self, dim: int, mlp_ratio: float = 4.0, proj_drop: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.local_perception = LocalPerception(dim)
        self.norm1 = nn.BatchNorm2d(dim)
        self.mixer = ConvAdditiveTokenMixer(dim)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = nn.Sequential()
        hidden = int(dim * mlp_ratio)
        self.mlp.fc1 = nn.Conv2d(dim, hidden, 1)
        self.mlp.act = nn.GELU()
        self.mlp.drop1 = nn.Dropout(proj_drop)
        self.mlp.fc2 = nn.Conv2d(hidden, dim, 1)
        self.mlp.drop2 = nn.Dropout(proj_drop)
        self.mixer_drop = nn.Dropout(proj_drop)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.local_perception(x)
        x = x + self.drop_path(self.mixer_drop(self.mixer(self.norm1(x))))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def reparameterize(self) -> None:
        """Fold both norms into the 1×1 convolutions that follow them."""
        if isinstance(self.norm1, nn.BatchNorm2d):
            self.mixer.absorb_norm(self.norm1)
            self.mlp.fc1 = fold_norm_before(self.norm2, self.mlp.fc1)
            self.norm1 = self.norm2 = nn.Identity()


class CASViT(Backbone):
    """Four stages at strides 4, 8, 16 and 32; the released networks carry two classifiers (``distilled=True``).

    Args:
        depths, dims: blocks and channels of each stage.
        mlp_ratio: hidden channels of the MLPs, as a multiple.
        distilled: a second classifier, averaged with the first at inference.
        feature_norms: one batch norm per intermediate map (the released dense-prediction backbones).
        in_chans, num_classes, global_pool, drop_rate: as everywhere in timm.
        proj_drop: dropout inside mixers and MLPs.
        drop_path_rate: stochastic depth at the last block, rising linearly from 0.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 2, 4, 2),
        dims: tuple[int, ...] = (48, 56, 112, 220),
        mlp_ratio: float = 4.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop: float = 0.0,
        drop_path_rate: float = 0.0,
        distilled: bool = True,
        feature_norms: bool = False,
    ) -> None:
        stem = nn.Sequential(
            ConvNorm(in_chans, dims[0] // 2, 3, stride=2, bias=True, act=nn.ReLU()),
            ConvNorm(dims[0] // 2, dims[0], 3, stride=2, bias=True, act=nn.ReLU()),
        )
        rates = drop_path_rates(drop_path_rate, depths)
        stages = []
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            downsample = ConvNorm(dims[i - 1], dim, 3, stride=2, bias=True) if i else nn.Identity()
            blocks = [CASBlock(dim, mlp_ratio, proj_drop, rates[i][j]) for j in range(depth)]
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
            distilled=distilled,
            feature_norms=feature_norms,
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)


def _cfg(**changes: Any) -> dict[str, Any]:
    return pretrained_cfg(
        first_conv="stem.0.conv",
        classifier=changes.pop("classifier", ("head.fc", "head.fc_dist")),
        paper_ids="arXiv:2408.03703",
        paper_name="CAS-ViT: Convolutional Additive Self-attention Vision Transformers",
        origin_url="https://github.com/Tianfang-Zhang/CAS-ViT",
        license="mit",
        **changes,
    )


default_cfgs = generate_default_cfgs(
    with_weights(
        {
            "casvit_nano": _cfg(input_size=(3, 64, 64), classifier="head.fc"),
            "casvit_xs": _cfg(),
            "casvit_s": _cfg(),
            "casvit_m": _cfg(),
            "casvit_t": _cfg(),
        }
    )
)


@register_model
def casvit_nano(pretrained: bool = False, **kwargs: Any) -> CASViT:
    defaults = dict(depths=(1, 2, 3, 1), dims=(24, 48, 96, 160), mlp_ratio=3.0, distilled=False)
    return create_backbone(CASViT, "casvit_nano", pretrained, defaults, kwargs)


@register_model
def casvit_xs(pretrained: bool = False, **kwargs: Any) -> CASViT:
    defaults = dict(depths=(2, 2, 4, 2), dims=(48, 56, 112, 220))
    return create_backbone(CASViT, "casvit_xs", pretrained, defaults, kwargs)


@register_model
def casvit_s(pretrained: bool = False, **kwargs: Any) -> CASViT:
    defaults = dict(depths=(3, 3, 6, 3), dims=(48, 64, 128, 256))
    return create_backbone(CASViT, "casvit_s", pretrained, defaults, kwargs)


@register_model
def casvit_m(pretrained: bool = False, **kwargs: Any) -> CASViT:
    defaults = dict(depths=(3, 3, 6, 3), dims=(64, 96, 192, 384))
    return create_backbone(CASViT, "casvit_m", pretrained, defaults, kwargs)


@register_model
def casvit_t(pretrained: bool = False, **kwargs: Any) -> CASViT:
    defaults = dict(depths=(3, 3, 6, 3), dims=(96, 128, 256, 512))
    return create_backbone(CASViT, "casvit_t", pretrained, defaults, kwargs)
