"""Pictures beside annotations: where they are, how large, and how they are turned."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from metamixer.data.pictures import read_picture, to_rgb
from metamixer.errors import MetamixerError

_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)


def picture_size(file: Path) -> tuple[int, int] | None:
    """Height and width of the upright picture, from the file's head alone; None where it is missing or no picture."""
    try:
        with Image.open(file) as picture:
            width, height = picture.size
            try:
                sideways = picture.getexif().get(_ORIENTATION) in _SIDEWAYS
            except Exception:  # damaged EXIF data beside sound pixels
                sideways = False
            return (width, height) if sideways else (height, width)
    except Exception:  # damaged bytes make decoders raise nearly anything
        return None


def picture_sizes(files: Iterable[Path]) -> list[tuple[int, int] | None]:
    """:func:`picture_size` of many files at once."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(picture_size, files))


def what_is_wrong(file: Path) -> str:
    """Why :func:`picture_size` gave None."""
    return "cannot be read as a picture" if file.is_file() else "no such file"


def read_annotated(file: Path, size: tuple[int, int]) -> Image.Image:
    """The picture as RGB, turned as its annotations saw it: ``size`` is the height and width they were made for.

    Raises MetamixerError where it is unreadable or of another size.
    """
    picture = read_picture(file)
    if picture.size != (size[1], size[0]):
        with Image.open(file) as stored:  # some tools annotate what the file holds, its orientation tag unread
            picture = to_rgb(stored)
        if picture.size != (size[1], size[0]):
            raise MetamixerError(f"{file} has {picture.width} × {picture.height} pixels, not {size[1]} × {size[0]}")
    return picture
