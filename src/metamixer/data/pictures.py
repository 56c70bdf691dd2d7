"""Any picture file to an upright RGB picture."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from metamixer.data.files import open_regular, read_regular, walk
from metamixer.errors import MetamixerError
from metamixer.limits import PICTURE_BYTES

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif", ".avif",
              ".jp2", ".jfif", ".jpe")  # fmt: skip
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""What is read as a picture, whatever the file is called; Pillow knows more, and starts another program for some."""
_PILLOW_UNHEARD = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # as warnings.filterwarnings writes it
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # one channel, more than 8 bits


def read_picture(path: str | Path) -> Image.Image:
    """The picture as 8-bit RGB, turned upright by its EXIF orientation, transparency laid over white.

    Greys of more than 8 bits are scaled to 8. Raises MetamixerError where the file is missing, is no picture, or ends
    too early.
    """
    return decode_picture(read_bytes(path), str(path))


def read_bytes(path: str | Path) -> bytes:
    """The file's contents. Raises MetamixerError where it cannot be read."""
    return read_regular(path, PICTURE_BYTES, "a picture")


def decode_picture(data: bytes, name: str) -> Image.Image:
    """``read_picture`` of a file's contents; ``name`` is what the sentence of an error calls it."""
    try:
        with _pillow_unheard(), _opened(io.BytesIO(data)) as picture:
            picture.load()  # a truncated file fails here, not later
            if picture.mode == "RGB" and picture.format == "JPEG" and not picture.info.keys() & {"exif", "xmp"}:
                return picture  # the usual case needs none of the copies below
            return to_rgb(_upright(picture))
    except Exception as error:  # damaged bytes make decoders raise nearly anything, struct.error and IndexError too
        raise MetamixerError(f"{name} cannot be read as a picture ({why_unreadable(error)})") from None


@contextmanager
def opened_picture(path: str | Path) -> Iterator[Image.Image]:
    """A picture of which the header alone is read yet, for callers that want no more, or its pixels as they are.

    Raises MetamixerError where the file cannot be read, and whatever Pillow raises where it is no picture.
    """
    with open_regular(path, PICTURE_BYTES, "a picture") as file, _pillow_unheard(), _opened(file) as picture:
        yield picture


@contextmanager
def _pillow_unheard() -> Iterator[None]:
    """Pillow warns of oddities in files that it reads all the same; warnings of other packages are heard as before.

    Filters are the process's, and ``warnings.catch_warnings`` in two threads at once leaves those of one behind. So
    each block adds one filter and takes one away, and all of these are equal.
    """
    entered: Any = warnings.filters
    entered.insert(0, _PILLOW_UNHEARD)
    try:
        yield
    finally:
        left: Any = warnings.filters  # another list where somebody's catch_warnings began or ended meanwhile
        for filters in (entered,) if left is entered else (entered, left):
            with suppress(ValueError):
                filters.remove(_PILLOW_UNHEARD)


def _opened(file: BinaryIO) -> Image.Image:
    """The picture in a file, its pixels not read.

    Raises Pillow's error for more of them than Pillow opens, tiles included: a few bytes can claim any number. That is
    twice what it warns of, since phones take 108 million.
    """
    picture = Image.open(file, formats=_known_formats())
    tags = getattr(picture, "tag_v2", {})  # of a TIFF, whose tiles may be larger than the picture
    most = None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS
    for width, height in (picture.size, (tags.get(_TILE_WIDTH, 1), tags.get(_TILE_HEIGHT, 1))):
        if most is not None and width * height > most:
            raise Image.DecompressionBombError(f"{width} × {height} pixels are more than {most}")
    return picture


@cache
def _known_formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def to_rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB from any mode Pillow can open."""
    if picture.mode in _WIDE_MODES:
        picture = _eight_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def pictures_below(folder: str | Path) -> list[Path]:
    """Files with a picture's extension at any depth, sorted; hidden ones are left out, and loops of links end."""
    found: list[Path] = []
    for parent, names in walk(folder):
        found.extend(parent / n for n in names if n.lower().endswith(EXTENSIONS) and not n.startswith("."))
    return sorted(found)


def picture_files(paths: Iterable[Path]) -> list[Path]:
    """Files as they are, folders as the pictures below them. Raises MetamixerError for a folder without any."""
    files: list[Path] = []
    for path in paths:
        found = pictures_below(path) if os.path.isdir(path) else [path]
        if not found:
            raise MetamixerError(f"{path} holds no pictures")
        files.extend(found)
    return files


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # damaged EXIF data beside sound pixels
        return picture


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scale by the format's range: 65535 for 16-bit integers, the largest value where that range is not known."""
    values = np.nan_to_num(np.asarray(picture).astype(np.float64), posinf=0.0)
    largest = values.max(initial=0.0)
    if picture.mode == "F":  # by habit 0…1 or 0…255
        top = next((known for known in (1.0, 255.0) if largest <= known), largest)
    else:
        top = max(65535.0, largest)
    return Image.fromarray((values.clip(0) * (255.0 / top)).round().astype(np.uint8))


def why_unreadable(error: Exception) -> str:
    """What Pillow says of a file, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "unknown format"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
