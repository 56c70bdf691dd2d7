"""Weights that the papers' authors published, by the name ``architecture.tag``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metamixer.data.download import download
from metamixer.errors import MetamixerError


@dataclass(frozen=True)
class Published:
    """One published file.

    Attributes:
        page: where its authors offer it.
        url: its direct address; None where the page has to be visited by hand.
        cfg: what differs from the architecture's usual timm ``pretrained_cfg``.
        size: bytes, where known.
        sha256: where known.
    """

    page: str
    url: str | None = None
    cfg: dict[str, Any] = field(default_factory=dict)
    size: int | None = None
    sha256: str | None = None


_FFNET = "https://github.com/ysj9909/FFNet/releases"
_CASVIT = "https://github.com/Tianfang-Zhang/CAS-ViT/blob/main/MODEL_ZOO.md"
_AFFNET = "https://github.com/microsoft/TokenMixers/tree/main/Adaptive%20Frequency%20Filters"


def _ffnet(file: str, **cfg: Any) -> Published:
    return Published(_FFNET, f"{_FFNET}/download/v1.0/{file}.pth.tar", cfg)


_AT_384 = {"input_size": (3, 384, 384), "pool_size": (12, 12)}
# CAS-ViT's evaluation crops 224 of 256 pixels, and squeezes the whole picture into 384 × 384.
_CASVIT_224 = Published(_CASVIT, cfg={"crop_pct": 0.875})
_CASVIT_384 = Published(_CASVIT, cfg={**_AT_384, "crop_pct": 1.0, "crop_mode": "squash"})

# The first tag of an architecture is its default.
PUBLISHED: dict[str, Published] = {
    "affnet_et.in1k": Published(_AFFNET),
    "affnet_t.in1k": Published(_AFFNET),
    "affnet.in1k": Published(_AFFNET),
    "casvit_xs.in1k": _CASVIT_224,
    "casvit_xs.in1k_384": _CASVIT_384,
    "casvit_s.in1k": _CASVIT_224,
    "casvit_s.in1k_384": _CASVIT_384,
    "casvit_m.in1k": _CASVIT_224,
    "casvit_m.in1k_384": _CASVIT_384,
    "casvit_t.in1k": _CASVIT_224,
    "casvit_t.in1k_384": _CASVIT_384,
    "ffnet_1.in1k": _ffnet("ffnet_1"),
    "ffnet_1.dist_in1k": _ffnet("ffnet_1_distillation"),
    "ffnet_2.in1k": _ffnet("ffnet_2"),
    "ffnet_2.dist_in1k": _ffnet("ffnet_2_distillation"),
    "ffnet_3.in1k": _ffnet("ffnet_3"),
    "ffnet_3.dist_in1k": _ffnet("ffnet_3_distillation"),
    "ffnet_3.in1k_384": _ffnet("ffnet_3_384", **_AT_384),
    "ffnet_4.in1k_384": _ffnet("ffnet_4_384", **_AT_384),
}


def published_file(name: str) -> Path:
    """The file of published weights (``architecture.tag``), downloaded to the cache if it is not there.

    Raises MetamixerError where it cannot be had: naming the page where there is no direct address.
    """
    published = PUBLISHED[name]
    if published.url is None:
        raise MetamixerError(
            f"the weights {name} have no direct address: download them from {published.page} and pass checkpoint=PATH"
        )
    return download(published.url, f"{name}.pth.tar", published.size, published.sha256)
