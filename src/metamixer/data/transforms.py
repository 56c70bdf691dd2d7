"""From a picture to a network's input: torchvision's transforms v2 on uint8 tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects: side in pixels, the part of the picture kept, mean and deviation per channel."""

    image_size: int
    crop_pct: float = 1.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"

    @classmethod
    def of(cls, cfg: Any, image_size: int | None = None) -> Preprocessing:
        """From a timm ``pretrained_cfg``; ``image_size`` overrides its input size."""
        return cls(
            image_size=cfg["input_size"][-1] if image_size is None else image_size,
            crop_pct=cfg["crop_pct"],
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            interpolation=cfg["interpolation"],
        )

    def normalise(self, pictures: Tensor) -> Tensor:
        """uint8 ``B × 3 × H × W`` to normalised float32."""
        return v2.functional.normalize(
            v2.functional.to_dtype(pictures, torch.float32, scale=True), list(self.mean), list(self.std)
        )


def evaluation_transform(pre: Preprocessing) -> v2.Compose:
    """PIL picture to uint8 ``3 × S × S``: resize the shorter side, crop the centre."""
    return v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize(round(pre.image_size / pre.crop_pct), InterpolationMode(pre.interpolation), antialias=True),
            v2.CenterCrop(pre.image_size),
        ]
    )


def training_transform(size: int, crop_scale: tuple[float, float], flip: bool = True) -> v2.Compose:
    """PIL picture to uint8 ``3 × S × S``: a random crop of that share of the area, mirrored half of the time."""
    steps: list[Any] = [
        v2.PILToTensor(),
        v2.RandomResizedCrop(size, scale=crop_scale, ratio=(0.8, 1.25), antialias=True),
    ]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    return v2.Compose(steps)
