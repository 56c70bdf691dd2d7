"""Any picture file to an upright RGB picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from metamixer.errors import MetamixerError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


def read_picture(path: str | Path) -> Image.Image:
    """The picture as 8-bit RGB, turned upright by its EXIF orientation, transparency laid over white.

    16-bit and float greys are scaled from their own range. Raises MetamixerError where the file is missing, is no
    picture, or ends too early.
    """
    try:
        with Image.open(path) as picture:
            picture.load()  # a truncated file fails here, not later
            return to_rgb(ImageOps.exif_transpose(picture))
    except FileNotFoundError:
        raise MetamixerError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise MetamixerError(f"{path} is a folder, not a picture") from None
    except PermissionError:
        raise MetamixerError(f"{path}: no permission to read it") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise MetamixerError(f"{path} cannot be read as a picture ({_reason(error)})") from None


def to_rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB from any mode Pillow can open."""
    if picture.mode in ("I", "F", "I;16", "I;16L", "I;16B"):
        values = np.asarray(picture).astype(np.float64)
        top = 65535.0 if picture.mode != "F" and values.max(initial=0) > 255 else max(1.0, values.max(initial=0))
        if picture.mode != "F" and values.max(initial=0) <= 255:
            top = 255.0
        return Image.fromarray((values.clip(0) * (255.0 / top)).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "unknown format"
    return str(error).rstrip(".") or type(error).__name__
