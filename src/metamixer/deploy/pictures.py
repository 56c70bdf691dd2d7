"""Pictures on which exports are checked and int8 is calibrated."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from metamixer.data.pictures import pictures_below, read_picture, to_rgb
from metamixer.errors import MetamixerError

Picture = str | Path | Image.Image

CHECKED = 50  # pictures that an export is compared on, unless the user names others

# Photographs that installed packages bring along; matplotlib's is always there.
_PHOTOGRAPHS = (
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/rocket.jpg"),
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)


def pictures_in(folder: str | Path, most: int) -> list[Path]:
    """At most that many pictures of a folder, evenly spaced over all of them.

    Raises MetamixerError where the folder is missing, holds no picture, or holds something that is none (hidden files
    aside).
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise MetamixerError(f"{folder}: no such folder")
    found = pictures_below(folder)
    if not found:
        raise MetamixerError(f"{folder} holds no pictures")
    strangers = {f for f in folder.rglob("*") if os.path.isfile(f) and not f.name.startswith(".")} - set(found)
    if strangers:
        raise MetamixerError(f"{min(strangers)} is no picture; a folder of pictures to check on should hold them alone")
    step = max(1.0, len(found) / most)
    return [found[int(i * step)] for i in range(min(most, len(found)))]


def photographs(count: int = CHECKED) -> list[Image.Image]:
    """Photographs from installed packages: all of each, then parts of it, until there are ``count``.

    Raises MetamixerError where there is no photograph.
    """
    whole = [read_picture(path) for path in _installed()]
    if not whole:
        raise MetamixerError("no installed package brings a photograph along; name pictures of your own")
    result = list(whole)
    places = _places()
    while len(result) < count:
        left, top, share = next(places)
        result += [_part(picture, left, top, share) for picture in whole]
    return result[:count]


def open_given(pictures: str | Path | Sequence[Picture], most: int) -> list[Image.Image]:
    """The given pictures, of a folder at most that many; where none are given, that many photographs."""
    if isinstance(pictures, (str, Path)):
        pictures = pictures_in(pictures, most)
    return open_all(pictures) if pictures else photographs(most)


def synthetic(channels: int, size: int, count: int = 8) -> Tensor:
    """Blurred noise over several scales, the same on every call, with about the statistics of normalised pictures."""
    generator = torch.Generator().manual_seed(0)
    result = torch.zeros(count, channels, size, size)
    for cells in (2, 4, 8, 16):
        noise = torch.randn(count, channels, cells, cells, generator=generator)
        result += nn.functional.interpolate(noise, size=(size, size), mode="bilinear", align_corners=False)
    return result + 0.1 * torch.randn(result.shape, generator=generator)


def open_all(pictures: Sequence[Picture]) -> list[Image.Image]:
    """Every picture as RGB."""
    return [to_rgb(p) if isinstance(p, Image.Image) else read_picture(p) for p in pictures]


_PARTS = ((0.0, 0.0, 0.6), (0.4, 0.0, 0.6), (0.0, 0.4, 0.6), (0.4, 0.4, 0.6), (0.25, 0.25, 0.5), (0.1, 0.1, 0.8))


def _places() -> Iterator[tuple[float, float, float]]:
    """Left and upper edge and side of one part after the other, as shares of the picture's."""
    yield from _PARTS
    random = np.random.default_rng(0)
    while True:  # where few photographs are installed, many parts are needed of each
        share = random.uniform(0.3, 0.9)
        left, top = random.uniform(0, 1 - share, 2)
        yield left, top, share


def _part(picture: Image.Image, left: float, top: float, share: float) -> Image.Image:
    width, height = picture.size
    box = (left * width, top * height, (left + share) * width, (top + share) * height)
    return picture.crop(tuple(map(round, box)))  # type: ignore[arg-type]


def _installed() -> Iterator[Path]:
    for package, file in _PHOTOGRAPHS:
        spec = find_spec(package)  # without importing the package, which takes long
        path = Path(spec.origin).parent / file if spec is not None and spec.origin else None
        if path is not None and os.path.isfile(path):
            yield path
