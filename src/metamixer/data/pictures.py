"""Any picture file to an upright RGB picture."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from metamixer.errors import MetamixerError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # one channel, more than 8 bits


def read_picture(path: str | Path) -> Image.Image:
    """The picture as 8-bit RGB, turned upright by its EXIF orientation, transparency laid over white.

    Greys of more than 8 bits are scaled to 8. Raises MetamixerError where the file is missing, is no picture, or ends
    too early.
    """
    return decode_picture(read_bytes(path), str(path))


def read_bytes(path: str | Path) -> bytes:
    """The file's contents. Raises MetamixerError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise MetamixerError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise MetamixerError(f"{path} is a folder, not a picture") from None
    except PermissionError:
        raise MetamixerError(f"{path}: no permission to read it") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise MetamixerError(f"{path} cannot be read as a picture ({why_unreadable(error)})") from None


def decode_picture(data: bytes, name: str) -> Image.Image:
    """``read_picture`` of a file's contents; ``name`` is what the sentence of an error calls it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of oddities in files that it reads all the same
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()  # a truncated file fails here, not later
                if picture.mode == "RGB" and picture.format == "JPEG" and not picture.info.keys() & {"exif", "xmp"}:
                    return picture  # the usual case needs none of the copies below
                return to_rgb(_upright(picture))
    except Exception as error:  # damaged bytes make decoders raise nearly anything, struct.error and IndexError too
        raise MetamixerError(f"{name} cannot be read as a picture ({why_unreadable(error)})") from None


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
    """Files with a picture's extension at any depth, sorted; hidden ones are left out."""
    found: list[Path] = []
    for parent, _, names in os.walk(folder, followlinks=True):
        found.extend(Path(parent, n) for n in names if n.lower().endswith(EXTENSIONS) and not n.startswith("."))
    return sorted(found)


def picture_files(paths: Iterable[Path]) -> list[Path]:
    """Files as they are, folders as the pictures below them. Raises MetamixerError for a folder without any."""
    files: list[Path] = []
    for path in paths:
        found = pictures_below(path) if path.is_dir() else [path]
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
