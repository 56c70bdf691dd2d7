"""HTML pages of one file that open without a network: style and pictures inside, no script."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from PIL import Image

# All texts but titles are HTML; who makes one of a name or a path escapes it.


def html_page(title: str, body: str, style: str = "") -> str:
    """A whole page; ``style`` is CSS after that of all pages (``html_page.css``), light and dark."""
    common = files("metamixer").joinpath("html_page.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{common}{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def facts(entries: Sequence[tuple[str, str]]) -> str:
    """Cards: a figure, and what it is."""
    items = "".join(f"<li><b>{figure}</b><span>{meaning}</span></li>" for figure, meaning in entries)
    return f'<ul class="facts">{items}</ul>'


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls by itself on narrow screens."""
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def definitions(entries: Mapping[str, str]) -> str:
    """Terms and their explanations."""
    return "<dl>" + "".join(f"<dt>{term}</dt><dd>{meaning}</dd>" for term, meaning in entries.items()) + "</dl>"


def picture_uri(picture: Image.Image, kind: str = "JPEG") -> str:
    """A picture as the address of itself."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return data_uri(buffer.getvalue(), f"image/{kind.lower()}")


def data_uri(data: bytes, kind: str) -> str:
    """A file of this media type as the address of itself."""
    return f"data:{kind};base64,{b64encode(data).decode('ascii')}"
