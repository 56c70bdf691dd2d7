"""Boxes, masks and class maps drawn on their picture, with names that can be read."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from metamixer.data.annotations.class_maps import VOID
from metamixer.errors import MetamixerError
from metamixer.tasks.results import Result, import_supervision

MOST_LABELS = 20  # in the legend of a class map
SMALLEST_SIDE = 320  # pictures are enlarged to it, or text would cover them


@cache
def palette() -> np.ndarray:
    """``256 × 3``, 0…255: colours of classes, neighbours far apart on the colour circle; void is black."""
    golden = 0.618033988749895
    hues = (np.arange(256) * golden) % 1
    light = np.array([0.95, 0.75, 0.6])[np.arange(256) // 8 % 3]
    strong = np.array([0.85, 0.6])[np.arange(256) // 4 % 2]
    hsv = np.stack([hues, strong, light], axis=1)
    colours = (matplotlib.colors.hsv_to_rgb(hsv) * 255).round()
    colours[VOID] = 0
    return colours


def draw_result(result: Result, scores: bool = True) -> Image.Image:
    """The picture (enlarged where it is small) with what was found, objects with or without their scores.

    Raises MetamixerError for a result without a picture.
    """
    if result.picture is None:
        raise MetamixerError("this result holds no picture to draw on")
    return _draw_classes(result) if result.class_map is not None else _draw_objects(result, scores)


def _draw_objects(result: Result, scores: bool) -> Image.Image:
    sv = import_supervision()
    result = _enlarged(result)
    assert result.picture is not None
    if not len(result):
        return result.picture.copy()
    detections = result.to_supervision()
    side = min(result.size)
    thickness, font = max(1, round(side / 250)), max(11, round(side / 32))
    colours = sv.ColorPalette([sv.Color(*map(int, colour)) for colour in palette()[:VOID]])
    drawn = result.picture
    if result.masks is not None:
        drawn = sv.MaskAnnotator(color=colours, opacity=0.45).annotate(drawn.copy(), detections)
    drawn = sv.BoxAnnotator(color=colours, thickness=thickness).annotate(drawn.copy(), detections)
    pairs = zip(result.names, result.scores, strict=True)
    texts = [f"{name} {score:.2f}" if scores else name for name, score in pairs]
    labels = sv.RichLabelAnnotator(
        color=colours,
        text_color=sv.Color(0, 0, 0),
        font_path=str(_font_file()),
        font_size=font,
        text_padding=max(2, font // 5),
        smart_position=True,  # labels move apart instead of covering each other
    )
    return labels.annotate(drawn, detections, labels=texts)


def _draw_classes(result: Result) -> Image.Image:
    """The picture under the colours of its classes, and a legend on the right."""
    result = _enlarged(result)
    assert result.picture is not None
    assert result.class_map is not None
    colours = palette()[result.class_map]
    pixels = np.asarray(result.picture, dtype=np.float64)
    mixed = np.where((result.class_map == VOID)[..., None], pixels * 0.4, 0.45 * pixels + 0.55 * colours)
    drawn = Image.fromarray(mixed.round().astype(np.uint8))
    shares = list(result.shares().items())
    rows = [(name, share) for name, share in shares if name != "void"][:MOST_LABELS]
    numbers = {result.name_of(int(n)): int(n) for n in np.setdiff1d(result.class_map, [VOID])}
    size = max(11, min(22, drawn.height // (max(len(rows), 12) + 2)))
    font = ImageFont.truetype(str(_font_file()), size)
    texts = [f"{name}  {100 * share:.0f} %" for name, share in rows]
    width = round(max((font.getlength(text) for text in texts), default=0)) + 3 * size
    canvas = Image.new("RGB", (drawn.width + width, max(drawn.height, round((len(rows) + 1) * size * 1.4))), "white")
    canvas.paste(drawn, (0, 0))
    pen = ImageDraw.Draw(canvas)
    for i, ((name, _), text) in enumerate(zip(rows, texts, strict=True)):
        left, top = drawn.width + size // 2, round((i + 0.5) * size * 1.4)
        red, green, blue = (int(value) for value in palette()[numbers[name]])
        pen.rectangle((left, top, left + size, top + size), fill=(red, green, blue), outline="black")
        pen.text((left + 1.5 * size, top - size * 0.1), text, "black", font)
    return canvas


def _enlarged(result: Result) -> Result:
    """At least ``SMALLEST_SIDE`` pixels on the shorter side, in whole steps."""
    factor = -(-SMALLEST_SIDE // min(result.size))
    if factor <= 1:
        return result
    assert result.picture is not None
    size = (result.size[0] * factor, result.size[1] * factor)

    def repeated(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else array.repeat(factor, axis=-1).repeat(factor, axis=-2)

    return replace(
        result,
        size=size,
        boxes=result.boxes * factor,
        masks=repeated(result.masks),
        class_map=repeated(result.class_map),
        picture=result.picture.resize((size[1], size[0]), Image.Resampling.LANCZOS),
    )


def _font_file() -> Path:
    return Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
