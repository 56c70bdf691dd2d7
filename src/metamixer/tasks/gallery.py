"""A page of pictures with what was found and what is true (``templates/gallery.html``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from metamixer.html_page import picture_uri, render

LARGEST_SIDE = 720


class Case(NamedTuple):
    """One picture: its name, its metric, and how it looks as found and as annotated."""

    name: str
    metric: float
    found: Image.Image
    truth: Image.Image


def write_gallery(path: Path, cases: Sequence[Case], title: str, metric: str, count: int, best: int) -> None:
    """Write the page; the first ``best`` cases are headed as the best ones, the others as the worst."""
    page = render(
        "templates/gallery.html",
        title=title,
        metric=metric,
        count=count,
        parts=(("Best", cases[:best]), ("Worst", cases[best:][::-1])),
        uri=_small_uri,
    )
    path.write_text(page, encoding="utf-8")


def _small_uri(picture: Image.Image) -> str:
    picture = picture.convert("RGB")
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return picture_uri(picture)
