"""Pictures beside annotations: where they are, how large, how they are turned, and whether they can be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from metamixer.data.pictures import EXTENSIONS, opened_picture, read_picture, to_rgb, why_unreadable
from metamixer.errors import MetamixerError
from metamixer.printing import progress

_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)
_THREADS = 8
_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


class Seen(NamedTuple):
    """Height and width of a picture that can be read to its end: upright, and as its file holds it."""

    size: tuple[int, int]
    stored: tuple[int, int]

    def stated(self, height: Any, width: Any) -> tuple[int, int] | None:
        """The size that annotations were made for: the one of both that they state, the upright one where they state
        none (None or 0), and None where they state another."""
        if not height or not width:
            return self.size
        return next((size for size in self if size == (height, width)), None)


def look_at(file: Path) -> Seen | str:
    """Read a picture to its end; its sizes, or what is wrong with it.

    Files that did not change are read once in a process.
    """
    try:
        status = file.stat()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return "no such file"
    return _look(file, status.st_size, status.st_mtime_ns)


def look_at_all(files: Iterable[Path]) -> list[Seen | str]:
    """:func:`look_at` of many files at once."""
    return in_threads(look_at, list(files), "reading pictures")


def in_threads(do: Callable[[_Item], _Answer], items: list[_Item], what: str) -> list[_Answer]:
    """What ``do`` gives for every item; how far it has come is shown where a person looks on."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(progress(pool.map(do, items), what, len(items)))


@lru_cache(1 << 20)
def _look(file: Path, length: int, changed: int) -> Seen | str:
    try:
        with opened_picture(file) as picture:
            width, height = picture.size
            picture.draft("RGB", (1, 1))  # all of a JPEG is read, but few of its pixels are computed
            to_rgb(picture)  # before the EXIF data: asking for these can hide an error in a PNG's pixels
            try:
                sideways = picture.getexif().get(_ORIENTATION) in _SIDEWAYS
            except Exception:  # damaged EXIF data beside sound pixels
                sideways = False
    except MetamixerError as error:
        return str(error).removeprefix(f"{file} ")
    except Exception as error:  # damaged bytes make decoders raise nearly anything
        return f"cannot be read as a picture ({why_unreadable(error)})"
    return Seen((width, height) if sideways else (height, width), (height, width))


def find_picture(folders: Iterable[Path], names: Iterable[str] = (), stem: str | None = None) -> Path:
    """The first file in one of the folders with one of the names, or with ``stem`` and a picture's ending; where there
    is none, the place where it was looked for first."""
    endings = () if stem is None else (*EXTENSIONS, *(ending.upper() for ending in EXTENSIONS))
    tried = [*names, *(f"{stem}{ending}" for ending in endings)]
    folders = list(folders)
    places = [folder / name for name in tried for folder in folders]
    return next((place for place in places if os.path.isfile(place)), places[0])


def read_annotated(file: Path, size: tuple[int, int]) -> Image.Image:
    """The picture as RGB, turned as its annotations saw it: ``size`` is the height and width they were made for.

    Raises MetamixerError where it is unreadable or of another size.
    """
    picture = read_picture(file)
    if picture.size != (size[1], size[0]):
        with opened_picture(file) as stored:  # some tools annotate what the file holds, its orientation tag unread
            picture = to_rgb(stored)
        if picture.size != (size[1], size[0]):
            raise MetamixerError(f"{file} has {picture.width} × {picture.height} pixels, not {size[1]} × {size[0]}")
    return picture
