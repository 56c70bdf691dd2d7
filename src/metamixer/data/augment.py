"""Random changes of a picture's colours and shape: RandAugment, TrivialAugment, three-augment, colour jitter.

All take and return an 8-bit RGB PIL picture and draw from the global generators of Python and torch. Pillow is called
directly: it does what torchvision's functions do for such pictures, without their dispatch, and on 8-bit pixels of the
usual sizes most of it is faster than torchvision's kernels for tensors.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode

Colour = tuple[int, ...]


def rand_augment(
    picture: Image.Image, magnitude: float, std: float, operations: int, fill: Colour, probability: float = 0.5
) -> Image.Image:
    """``operations`` changes drawn with replacement, each applied with ``probability`` (arXiv 1909.13719).

    The changes and their ranges are those of timm's ``rand-m9-mstd0.5-inc1``, which the papers' recipes name: each
    grows with the magnitude (0 to 10), to which normal noise of deviation ``std`` is added. Two differences: shapes are
    always resampled bilinearly, and posterising keeps one bit at least, where timm's can leave a black picture.

    Args:
        fill: colour of the pixels that come in from beyond the border.
    """
    for change in random.choices(_CHANGES, k=operations):
        if random.random() < probability:
            level = min(10.0, max(0.0, random.gauss(magnitude, std) if std else magnitude)) / 10
            picture = change(picture, level, fill)
    return picture


def trivial_augment(picture: Image.Image, fill: Colour) -> Image.Image:
    """One change of random strength (TrivialAugment Wide, arXiv 2103.10158)."""
    return _trivial_augment(fill)(picture)


@cache
def _trivial_augment(fill: Colour) -> v2.TrivialAugmentWide:
    return v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR, fill=list(fill))


def three_augment(picture: Image.Image) -> Image.Image:
    """One of grey, solarised and blurred (DeiT III, arXiv 2204.07118, section 3.2)."""
    choice = random.randrange(3)
    if choice == 0:
        return picture.convert("L").convert("RGB")
    if choice == 1:
        return ImageOps.solarize(picture, 128)
    return picture.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def jitter(picture: Image.Image, strength: float) -> Image.Image:
    """Brightness, contrast and saturation, in random order, times a factor within ``strength`` of 1."""
    changes = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    random.shuffle(changes)
    for change in changes:
        picture = change(picture).enhance(random.uniform(max(0.0, 1 - strength), 1 + strength))
    return picture


def _either_way(value: float) -> float:
    return value if random.random() < 0.5 else -value


def _factor(level: float) -> float:
    """1 at no strength; 0.1 or 1.9 at full strength."""
    return max(0.1, 1 + _either_way(0.9 * level))


def _affine(picture: Image.Image, matrix: tuple[float, ...], fill: Colour) -> Image.Image:
    """The pixel at (x, y) comes from (ax + by + c, dx + ey + f), where ``matrix`` is (a, b, c, d, e, f)."""
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill)


def _add_to_dark(picture: Image.Image, amount: int) -> Image.Image:
    """``amount`` more in every value below 128."""
    table = [min(255, value + amount) if value < 128 else value for value in range(256)]
    return picture.point(table * 3)


# Each takes a picture, a level from 0 to 1, and the colour of what comes in from beyond the border.
_CHANGES: tuple[Callable[[Image.Image, float, Colour], Image.Image], ...] = (
    lambda picture, level, fill: ImageOps.autocontrast(picture),
    lambda picture, level, fill: ImageOps.equalize(picture),
    lambda picture, level, fill: ImageOps.invert(picture),
    lambda picture, level, fill: ImageOps.posterize(picture, max(1, 4 - int(4 * level))),
    lambda picture, level, fill: ImageOps.solarize(picture, 256 - int(256 * level)),
    lambda picture, level, fill: _add_to_dark(picture, int(110 * level)),
    lambda picture, level, fill: ImageEnhance.Color(picture).enhance(_factor(level)),
    lambda picture, level, fill: ImageEnhance.Contrast(picture).enhance(_factor(level)),
    lambda picture, level, fill: ImageEnhance.Brightness(picture).enhance(_factor(level)),
    lambda picture, level, fill: ImageEnhance.Sharpness(picture).enhance(_factor(level)),
    lambda picture, level, fill: picture.rotate(_either_way(30 * level), Image.Resampling.BILINEAR, fillcolor=fill),
    lambda picture, level, fill: _affine(picture, (1, _either_way(0.3 * level), 0, 0, 1, 0), fill),
    lambda picture, level, fill: _affine(picture, (1, 0, 0, _either_way(0.3 * level), 1, 0), fill),
    lambda picture, level, fill: _affine(picture, (1, 0, _either_way(0.45 * level * picture.width), 0, 1, 0), fill),
    lambda picture, level, fill: _affine(picture, (1, 0, 0, 0, 1, _either_way(0.45 * level * picture.height)), fill),
)
