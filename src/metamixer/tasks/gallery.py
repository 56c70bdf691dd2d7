"""A page of pictures with what was found and what is true; it opens without a network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from metamixer.html_page import html_page, picture_uri

LARGEST_SIDE = 720

_STYLE = """section { display: grid; gap: 1.5rem; }
section figure { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; }
figcaption { grid-column: 1 / -1; }
figcaption b { color: var(--ink); font-size: 1.1rem; }
"""


class Case(NamedTuple):
    """One picture: its name, its metric, and how it looks as found and as annotated."""

    name: str
    metric: float
    found: Image.Image
    truth: Image.Image


def write_gallery(path: Path, cases: Sequence[Case], title: str, metric: str, count: int, best: int) -> None:
    """Write the page; the first ``best`` cases are headed as the best ones, the others as the worst."""
    parts = []
    for heading, chosen in (("Best", cases[:best]), ("Worst", cases[best:][::-1])):
        if chosen:
            parts.append(f"<h2>{heading}</h2><section>{''.join(_figure(case) for case in chosen)}</section>")
    top = f"""<h1>{escape(title)}</h1>
<p class="soft">{count} pictures, ranked by {escape(metric)}. Left what was found, right what is true.</p>"""
    path.write_text(html_page(title, "\n".join((top, *parts)), _STYLE), encoding="utf-8")


def _figure(case: Case) -> str:
    name = escape(case.name)
    pictures = "".join(
        f'<img alt="{name}, {what}" src="{picture_uri(_small(image))}">'
        for what, image in (("found", case.found), ("true", case.truth))
    )
    return f"<figure><figcaption><b>{case.metric:.3f}</b> <small>{name}</small></figcaption>{pictures}</figure>"


def _small(picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGB")
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return picture
