"""What do a detector's or segmenter's metrics look like? Its ten best and ten worst pictures, drawn, with their metric.

    python benchmarks/dense_sheet.py bccd runs/bccd/best.safetensors DATA --split test

writes ``docs/images/bccd_best.jpg`` and ``bccd_worst.jpg``: pairs of what was found (left) and what is annotated.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib
import tyro
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tyro.conf import Positional

from metamixer.data.files import replace_when_done
from metamixer.errors import MetamixerError
from metamixer.heads.base import SegmentationModel
from metamixer.tasks.dense import gallery, load_dense_model
from metamixer.tasks.gallery import Case

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PAIRS = 2  # in a row
GAP, LINE = 8, 22  # pixels
LARGEST_FILE = 390_000  # bytes


def main(
    name: Positional[str],
    checkpoint: Positional[Path],
    data: Positional[Path],
    split: str = "val",
    void: int = 255,
    each: int = 10,
    width: int = 440,
    out: Path = IMAGES,
) -> None:
    """Draw both sheets.

    Args:
        name: what the files are called.
        checkpoint: of a detector or segmenter.
        data: folder of pictures with boxes, masks or class maps.
        split: part of it.
        void: value of pixels without a class, beside 255.
        each: pictures of a sheet.
        width: of one picture in pixels.
        out: folder of the sheets.
    """
    model = load_dense_model(checkpoint)
    if model is None:
        raise MetamixerError(f"{checkpoint} holds no detector or segmenter")
    with TemporaryDirectory() as folder:
        cases = gallery(model, data, Path(folder, "page.html"), split, each, each, void=void)
    metric = "mIoU" if isinstance(model, SegmentationModel) else "F1"
    for kind, chosen in (("best", cases[:each]), ("worst", cases[each:][::-1])):
        path = out / f"{name}_{kind}.jpg"
        save(sheet(chosen, metric, width), path)
        print(f"{path}: {', '.join(f'{case.metric:.2f}' for case in chosen)}")


def sheet(cases: Sequence[Case], metric: str, width: int) -> Image.Image:
    """Pairs of pictures under their metric and name, :data:`PAIRS` in a row."""
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), LINE * 2 // 3)
    pairs = [[fitted(picture, width) for picture in (case.found, case.truth)] for case in cases]
    rows = [pairs[i : i + PAIRS] for i in range(0, len(pairs), PAIRS)]
    heights = [LINE + GAP + max(picture.height for pair in row for picture in pair) for row in rows]
    canvas = Image.new("RGB", (PAIRS * 2 * (width + GAP), sum(heights)), "white")
    pen = ImageDraw.Draw(canvas)
    for i, (case, pair) in enumerate(zip(cases, pairs, strict=True)):
        left, top = (i % PAIRS) * 2 * (width + GAP), sum(heights[: i // PAIRS])
        pen.text((left, top + 2), f"{metric} {case.metric:.2f}   {case.name}: found, annotated", "black", font)
        for j, picture in enumerate(pair):
            canvas.paste(picture, (left + j * (width + GAP), top + LINE))
    return canvas


def fitted(picture: Image.Image, width: int) -> Image.Image:
    """Not wider than ``width``, and not higher either."""
    return ImageOps.contain(picture.convert("RGB"), (width, width), Image.Resampling.LANCZOS)


def save(picture: Image.Image, path: Path) -> None:
    """Write a JPEG file, as good as fits into :data:`LARGEST_FILE`."""
    for quality in range(90, 10, -5):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= LARGEST_FILE:
            break
    with replace_when_done(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    tyro.cli(main)
