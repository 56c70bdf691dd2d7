"""Pictures and the same pictures several times smaller, for super-resolution."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metamixer.data.degradation import imresize
from metamixer.data.pictures import opened_picture, pictures_below, read_picture, why_unreadable
from metamixer.errors import MetamixerError

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


class PicturePairs:
    """``(small, large)`` pairs of uint8 ``H × W × 3`` arrays, the large one exactly ``scale`` times as high and wide.

    Args:
        large: folder of pictures at any depth, or one picture.
        scale: how many times smaller the small ones are.
        small: folder of the small pictures, by the same names, or names that end in ``x2`` (``0801.png`` and
            ``0801x2.png``, as DIV2K has it for scale 2), in the same sub-folder, or in any where no other has the
            name. None: they are made by :func:`metamixer.data.degradation.imresize` from the large ones, which are
            first cut at the right and the bottom to a multiple of the scale.
        keep: pictures are kept in memory once read, as far as this many bytes go.

    Raises MetamixerError for a folder without pictures, a picture without a small one of its own or with several, and
    when a pair is read, for a file that is no picture, one of fewer than ``scale`` pixels, and a pair whose sizes do
    not belong together.
    """

    def __init__(self, large: str | Path, scale: int, small: str | Path | None = None, keep: int = 2**29) -> None:
        self.scale = scale
        self.large = _pictures(large)
        self.small = None if small is None else _small_ones(Path(large), self.large, Path(small), scale)
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

    def check_sizes(self, border: int = 0) -> None:
        """Raise MetamixerError, naming the file, unless every large picture has pixels inside such a border.

        Sizes come from the files' headers: this takes no time, and finds what is no picture too.
        """
        for path in self.large:
            height, width = _size(path)
            if min(self._cut(path, height, width)) <= 2 * border:
                raise MetamixerError(
                    f"{path} has {width} × {height} pixels, nothing but border where {border} on each side do not count"
                )

    def _cut(self, path: Path, height: int, width: int) -> tuple[int, int]:
        """The largest multiples of the scale in height and width."""
        if min(height, width) < self.scale:
            raise MetamixerError(f"{path} has {width} × {height} pixels, too few to be made {self.scale} times smaller")
        return height - height % self.scale, width - width % self.scale

    def _read(self, index: int) -> Pair:
        path = self.large[index]
        large = np.asarray(read_picture(path))
        height, width = self._cut(path, *large.shape[:2])
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
    if not os.path.lexists(path):
        raise MetamixerError(f"{path}: no such file or folder")
    found = pictures_below(path) if os.path.isdir(path) else [path]
    if not found:
        raise MetamixerError(f"{path} holds no pictures")
    return found


def _size(path: Path) -> tuple[int, int]:
    """Height and width by the file's header, turned or not."""
    try:
        with opened_picture(path) as picture:
            return picture.height, picture.width
    except MetamixerError:
        raise
    except Exception as error:  # damaged bytes make decoders raise nearly anything
        raise MetamixerError(f"{path} cannot be read as a picture ({why_unreadable(error)})") from None


def _small_ones(root: Path, large: list[Path], folder: Path, scale: int) -> list[Path]:
    """The small picture of every large one: by its place below the folder, else by its name alone."""
    by_place, by_name = defaultdict(list), defaultdict(list)
    for path in _pictures(folder):
        by_place[path.relative_to(folder if os.path.isdir(folder) else folder.parent).with_suffix("")].append(path)
        by_name[path.stem].append(path)
    large_of: dict[Path, Path] = {}
    for path in large:
        place, names = path.relative_to(root).parent, (path.stem, f"{path.stem}x{scale}")
        candidates = [by_place[place / name] for name in names] + [by_name[name] for name in names]
        found = next(filter(None, candidates), [])
        if not found:
            raise MetamixerError(f"{folder} holds no small picture of {path} (named {names[0]} or {names[1]})")
        if len(found) > 1:
            raise MetamixerError(f"{found[0]} and {found[1]} could both be the small picture of {path}")
        if found[0] in large_of:
            raise MetamixerError(f"{found[0]} would be the small picture of both {large_of[found[0]]} and {path}")
        large_of[found[0]] = path
    return list(large_of)
