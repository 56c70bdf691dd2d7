"""From a picture to a network's input: torchvision's transforms v2 on uint8 tensors."""

from __future__ import annotations

import math
import random
from dataclasses import KW_ONLY, dataclass
from functools import cache
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode

from metamixer.data.augment import jitter, rand_augment, three_augment, trivial_augment
from metamixer.data.preprocessing import CropMode as CropMode
from metamixer.data.preprocessing import Preprocessing as Preprocessing

Interpolation = Literal["bilinear", "bicubic", "random"]
Policy = Literal["none", "rand", "trivial", "three"]


@dataclass(frozen=True)
class EvaluationTransform:
    """PIL picture (or uint8 ``3 × H × W``) to uint8 ``3 × S × S``: resize the shorter side, or both to the same
    ("squash"), and crop the centre.
    """

    preprocessing: Preprocessing

    def __call__(self, picture: Image.Image | Tensor) -> Tensor:
        pre = self.preprocessing
        pixels = pixels_of(picture) if isinstance(picture, Image.Image) else picture
        side = round(pre.image_size / pre.crop_pct)
        size = [side, side] if pre.crop_mode == "squash" else [side]  # one number is that of the shorter side
        pixels = v2.functional.resize_image(pixels, size, InterpolationMode(pre.interpolation), antialias=True)
        return v2.functional.center_crop_image(pixels, [pre.image_size, pre.image_size])


evaluation_transform = EvaluationTransform


@dataclass(frozen=True)
class TrainingTransform:
    """PIL picture (or uint8 ``3 × H × W``) to uint8 ``3 × S × S``, randomly cropped, mirrored and changed.

    Args:
        size: S; a call may ask for another.
        crop_scale: share of the picture's area that the crop keeps, from and to.
        flip: mirror half of the pictures.
        crop_ratio: the crop's width divided by its height, from and to.
        interpolation: how the crop is resized; "random" takes bilinear or bicubic, evenly.
        policy: "rand" for RandAugment (arXiv 1909.13719), "trivial" for TrivialAugment (arXiv 2103.10158), "three" for
            the three-augment of DeiT III (arXiv 2204.07118): one of grey, solarised and blurred.
        magnitude: of RandAugment, from 0 to 10.
        magnitude_std: deviation of the normal noise added to it.
        operations: RandAugment's, per picture; each is applied half of the time.
        colour_jitter: brightness, contrast and saturation are multiplied by 1 - jitter to 1 + jitter.
        erase: share of the pictures in which a rectangle is replaced by noise (arXiv 1708.04896). It is the noise that
            becomes standard normal when the pictures are normalised with ``mean`` and ``std``, cut at black and white.
        mean, std: those of the network's preprocessing. The mean also fills what a turned picture leaves empty.

    Random numbers come from the global generators of Python and torch.
    """

    size: int
    crop_scale: tuple[float, float] = (0.35, 1.0)
    flip: bool = True
    _: KW_ONLY
    crop_ratio: tuple[float, float] = (0.8, 1.25)
    interpolation: Interpolation = "bilinear"
    policy: Policy = "none"
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    operations: int = 2
    colour_jitter: float = 0.0
    erase: float = 0.0
    mean: tuple[float, ...] = Preprocessing.mean
    std: tuple[float, ...] = Preprocessing.std

    def __call__(self, picture: Image.Image | Tensor, size: int | None = None) -> Tensor:
        """uint8 ``3 × S × S``; ``size`` replaces S for this call, where batches differ in size."""
        pixels = self._crop(picture, size or self.size)
        if self.flip and random.random() < 0.5:
            pixels = pixels.flip(-1)
        if self.policy != "none" or self.colour_jitter:
            pixels = self._recolour(pixels)
        if self.erase and random.random() < self.erase:
            pixels = self._erase(pixels)
        return pixels

    def _crop(self, picture: Image.Image | Tensor, size: int) -> Tensor:
        """A random crop, resized. Cutting before the conversion to a tensor copies the fewest pixels."""
        if isinstance(picture, Image.Image):
            left, top, width, height = random_crop(*picture.size, self.crop_scale, self.crop_ratio)
            crop = pixels_of(picture.crop((left, top, left + width, top + height)))
        else:
            left, top, width, height = random_crop(picture.shape[2], picture.shape[1], self.crop_scale, self.crop_ratio)
            crop = picture[:, top : top + height, left : left + width]
        name = random.choice(("bilinear", "bicubic")) if self.interpolation == "random" else self.interpolation
        return v2.functional.resize_image(crop, [size, size], InterpolationMode(name), antialias=True)

    def _recolour(self, pixels: Tensor) -> Tensor:
        """The policy and the jitter, through Pillow's kernels: on 8-bit pixels they are faster than tensors'."""
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        fill = tuple(round(255 * value) for value in self.mean)
        if self.policy == "rand":
            picture = rand_augment(picture, self.magnitude, self.magnitude_std, self.operations, fill)
        elif self.policy == "trivial":
            picture = trivial_augment(picture, fill)
        elif self.policy == "three":
            picture = three_augment(picture)
        if self.colour_jitter:
            picture = jitter(picture, self.colour_jitter)
        return pixels_of(picture)

    def _erase(self, pixels: Tensor) -> Tensor:
        left, top, width, height = random_crop(
            pixels.shape[2], pixels.shape[1], scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3)
        )
        mean, std = _in_pixels(self.mean), _in_pixels(self.std)
        noise = torch.randn(len(pixels), height, width).mul_(std).add_(mean)
        pixels = pixels.clone()  # what came in may be a view of it
        pixels[:, top : top + height, left : left + width] = noise.round_().clamp_(0, 255)
        return pixels


training_transform = TrainingTransform


def pixels_of(picture: Image.Image) -> Tensor:
    """An 8-bit RGB picture as uint8 ``3 × H × W``, the channels innermost in memory."""
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).permute(2, 0, 1)


@cache
def _in_pixels(values: tuple[float, ...]) -> Tensor:
    """A value per channel, from 0…1 to 0…255: ``C × 1 × 1``."""
    return 255 * torch.tensor(values).view(-1, 1, 1)


def random_crop(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Left, top, width and height of a rectangle of random area and shape within ``width`` by ``height`` pixels.

    Ten are drawn, the area evenly and the shape evenly on a logarithmic scale (arXiv 1409.4842, section 6). If none
    fits, it is the largest in the middle whose shape is allowed.
    """
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        shape = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = max(1, round(math.sqrt(area * shape))), max(1, round(math.sqrt(area / shape)))
        if w <= width and h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    w, h = min(width, max(1, round(height * ratio[1]))), min(height, max(1, round(width / ratio[0])))
    return (width - w) // 2, (height - h) // 2, w, h
