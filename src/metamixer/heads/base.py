"""What every dense-prediction model shares: a backbone's maps, raw outputs, and their post-processing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.errors import MetamixerError
from metamixer.mixers.conv_norm import ConvNorm

Size = tuple[int, int]


@dataclass(frozen=True)
class Segmentation:
    """One picture's classes: ``logits`` are ``classes × H × W``, ``labels`` (int64, ``H × W``) the best of them."""

    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Detections:
    """One picture's objects, the surest first.

    Attributes:
        boxes: ``N × 4``, left, top, right and bottom in pixels of the network's input.
        scores: ``N``, 0…1.
        labels: ``N``, int64, 0…classes − 1; the background is no class.
        masks: ``N × H × W``, bool, for heads that draw them.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None


class DenseModel(nn.Module):
    """Base of all: ``forward_raw`` is what a graph can hold, ``postprocess`` makes results of it.

    Args:
        backbone: gives a list of ``B × C × H/s × W/s`` maps and a timm ``feature_info``.
        num_classes: classes, without the background.
    """

    classifiers: tuple[str, ...] = ()
    """Parts whose shape depends on the number of classes."""
    optional: tuple[str, ...] = ()
    """Parts that a checkpoint may lack, or hold although the model has them not."""

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        # Filled by `build`: what the model expects of a picture, and the arguments that a checkpoint of ours repeats.
        self.pretrained_cfg: dict[str, Any] = {}
        self._model_args: dict[str, Any] = {}

    def maps(self, x: Tensor) -> list[Tensor]:
        """All maps of the backbone, channels first."""
        maps = self.backbone(x)
        if getattr(getattr(self.backbone, "output_fmt", None), "value", "NCHW") == "NHWC":
            maps = [one.permute(0, 3, 1, 2) for one in maps]
        return list(maps)

    def forward_raw(self, x: Tensor) -> tuple[Tensor, ...]:
        """``B × 3 × H × W`` to the raw outputs of the head, in the order that the class names."""
        raise NotImplementedError

    def postprocess(self, raw: Sequence[Tensor], sizes: Sequence[Size], padded: Size | None = None) -> Any:
        """Results from raw outputs.

        Args:
            raw: what :meth:`forward_raw` gave.
            sizes: height and width of each picture in the input.
            padded: height and width of the whole input, where pictures were padded at their right and bottom;
                by default every picture fills it.

        Raises MetamixerError where the number of sizes is not that of pictures.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.forward_raw(x)


class SegmentationModel(DenseModel):
    """A class per pixel; the first raw output holds the logits, ``B × classes × H/s × W/s``."""

    align_corners: ClassVar[bool] = False
    """Whether logits are resized with the corner pixels' centres aligned."""

    @torch.no_grad()
    def postprocess(
        self, raw: Sequence[Tensor], sizes: Sequence[Size], padded: Size | None = None
    ) -> list[Segmentation]:
        """Logits resized bilinearly to each picture, and the best class of each pixel."""
        check_sizes(raw[0], sizes)
        results = []
        for i, (height, width) in enumerate(sizes):
            whole = resize(raw[0][i : i + 1], padded or (height, width), self.align_corners)
            logits = whole[0, :, :height, :width]
            results.append(Segmentation(logits, logits.argmax(0)))
        return results


class AuxiliaryHead(nn.Module):
    """3×3 convolution, norm, activation and classifier on a middle map; helps in training and is then left out.

    ``B × in × H × W`` to ``B × classes × H × W``.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int, act: nn.Module) -> None:
        super().__init__()
        self.conv = ConvNorm(in_channels, channels, 3, act=act)
        self.drop = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.drop(self.conv(x)))


def resize(x: Tensor, size: Sequence[int], align_corners: bool = False, mode: str = "bilinear") -> Tensor:
    """``B × C × H × W`` to ``B × C × *size``."""
    return F.interpolate(x, size=tuple(size), mode=mode, align_corners=align_corners)


def check_sizes(of_batch: Tensor, sizes: Sequence[Size]) -> None:
    """Raise MetamixerError where the number of sizes is not that of pictures."""
    if len(sizes) != len(of_batch):
        raise MetamixerError(f"{len(of_batch)} pictures need as many sizes, not {len(sizes)}")


def levels_at(backbone: nn.Module, strides: Sequence[int]) -> tuple[list[int], list[int]]:
    """Places in the backbone's list of maps, and channels, of the last map at each stride.

    Raises MetamixerError where the backbone has no map at one of them.
    """
    info: Any = backbone.feature_info
    reductions, channels = list(info.reduction()), list(info.channels())
    if missing := [stride for stride in strides if stride not in reductions]:
        raise MetamixerError(
            f"this head needs maps at strides {_listed(strides)}; the backbone has {len(reductions)}, at strides "
            f"{_listed(reductions)}, and none at {_listed(missing)}"
        )
    places = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in strides]
    return places, [channels[place] for place in places]


def last_levels(backbone: nn.Module, count: int) -> list[int]:
    """Channels of the backbone's last maps. Raises MetamixerError where it has fewer."""
    info: Any = backbone.feature_info
    channels = list(info.channels())
    if len(channels) < count:
        raise MetamixerError(f"this head needs {count} maps; the backbone has {len(channels)}")
    return channels[-count:]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def normal_init(modules: Sequence[nn.Module], std: float = 0.01) -> None:
    """Normal weights around 0 and no bias for the convolutions and linear layers among (and inside) ``modules``."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                nn.init.normal_(layer.weight, std=std)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
