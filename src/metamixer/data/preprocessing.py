"""What a network expects of a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

CropMode = Literal["center", "squash"]


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects: side in pixels, the part of the picture kept, mean and deviation per channel.

    ``crop_mode`` tells how a picture of another shape becomes square: by cutting off what is beyond its "center", or
    by a "squash", which keeps the whole picture and changes its proportions (``crop_pct`` still cuts, evenly).
    """

    image_size: int
    crop_pct: float = 1.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_mode: CropMode = "center"

    @classmethod
    def of(cls, cfg: Any, image_size: int | None = None) -> Preprocessing:
        """From a timm ``pretrained_cfg``; ``image_size`` overrides its input size."""
        return cls(
            image_size=cfg["input_size"][-1] if image_size is None else image_size,
            crop_pct=cfg["crop_pct"],
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            interpolation=cfg["interpolation"],
            crop_mode="squash" if cfg.get("crop_mode") == "squash" else "center",
        )

    def normalise(self, pictures: Tensor) -> Tensor:
        """uint8 ``B × 3 × H × W``, or floats from 0 to 1, to normalised float32; what is given is left as it is."""
        from torchvision.transforms import v2  # here, since whoever imports timm gets this file, and not torchvision

        floats = v2.functional.to_dtype(pictures, torch.float32, scale=True)
        fresh = floats is not pictures  # so that no second copy of a batch is needed
        # torchvision's normalize would wait for a GPU twice: for its copies of mean and std, and to look at the latter.
        mean, std = (
            torch.tensor(values, dtype=torch.float32)[:, None, None].to(floats.device, non_blocking=True)
            for values in (self.mean, self.std)
        )
        return (floats.sub_(mean) if fresh else floats.sub(mean)).div_(std)
