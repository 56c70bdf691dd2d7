"""Pictures and the same pictures several times smaller, for super-resolution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metamixer.data.degradation import imresize
from metamixer.data.pictures import pictures_below, read_picture
from metamixer.errors import MetamixerError

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


class PicturePairs:
    """``(small, large)`` pairs of uint8 ``H × W × 3`` arrays, the large one exactly ``scale`` times as high and wide.

    Args:
        large: folder of pictures at any depth, or one picture.
        scale: how many times smaller the small ones are.
        small: folder of the small pictures, by the same names, or names that end in ``x2`` (``0801.png`` and
            ``0801x2.png``, as DIV2K has it for scale 2). None: they are made by :func:`metamixer.data.degradation
            .imresize` from the large ones, which are first cut at the right and the bottom to a multiple of the scale.
        keep: pictures are kept in memory once read, as far as this many bytes go.

    Raises MetamixerError for a folder without pictures, a picture without its small one, and when a pair is read, for a
    file that is no picture, one of fewer than ``scale`` pixels, and a pair whose sizes do not belong together.
    """

    def __init__(self, large: str | Path, scale: int, small: str | Path | None = None, keep: int = 2**29) -> None:
        self.scale = scale
        self.large = _pictures(large)
        self.small = None if small is None else _small_ones(self.large, Path(small), scale)
        self._kept: dict[int, Pair] = {}
        self._room = keep

    def __len__(self) -> int:
        return len(self.large)

    def __getitem__(self, index: int) -> Pair:
        if index in self._kept:
            return self._kept[index]
        pair = self._read(index)
        size = sum(picture.nbytes for picture in pair)
        if size <= self._room:
            self._room -= size
            self._kept[index] = pair
        return pair

    def _read(self, index: int) -> Pair:
        path = self.large[index]
        large = np.asarray(read_picture(path))
        height, width = (side // self.scale * self.scale for side in large.shape[:2])
        if 0 in (height, width):
            raise MetamixerError(
                f"{path} has {large.shape[1]} × {large.shape[0]} pixels, too few to be made {self.scale} times smaller"
            )
        large = large[:height, :width]
        if self.small is None:
            return imresize(large, 1 / self.scale), large
        small = np.asarray(read_picture(self.small[index]))
        if small.shape[:2] != (height // self.scale, width // self.scale):
            raise MetamixerError(
                f"{self.small[index]} has {small.shape[1]} × {small.shape[0]} pixels where {path} asks for"
                f" {width // self.scale} × {height // self.scale}"
            )
        return small, large


def _pictures(path: str | Path) -> list[Path]:
    path = Path(path)
    if not path.exists():
        raise MetamixerError(f"{path}: no such file or folder")
    found = pictures_below(path) if path.is_dir() else [path]
    if not found:
        raise MetamixerError(f"{path} holds no pictures")
    return found


def _small_ones(large: list[Path], folder: Path, scale: int) -> list[Path]:
    """The small picture of every large one, found by its name."""
    by_name = {path.stem: path for path in _pictures(folder)}
    found = []
    for path in large:
        small = by_name.get(path.stem) or by_name.get(f"{path.stem}x{scale}")
        if small is None:
            raise MetamixerError(
                f"{folder} holds no small picture of {path} (named {path.stem} or {path.stem}x{scale})"
            )
        found.append(small)
    return found
