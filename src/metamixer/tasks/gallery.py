"""A page of pictures with what was found and what is true; it opens without a network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

LARGEST_SIDE = 720

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 100rem; margin: 2rem auto; padding: 0 1rem; }}
section {{ display: grid; gap: 1.5rem; }}
figure {{ margin: 0; display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; }}
figcaption {{ grid-column: 1 / -1; }}
figcaption b {{ font-size: 1.1rem; }}
img {{ width: 100%; height: auto; }}
small {{ color: #555; }}
</style></head><body><h1>{title}</h1>
<p>{count} pictures, ranked by {metric}. Left what was found, right what is true.</p>
{body}</body></html>
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
    page = _PAGE.format(title=html.escape(title), metric=html.escape(metric), count=count, body="\n".join(parts))
    path.write_text(page, encoding="utf-8")


def _figure(case: Case) -> str:
    name = html.escape(case.name)
    pictures = "".join(
        f'<img alt="{name}, {what}" src="{_data(image)}">'
        for what, image in (("found", case.found), ("true", case.truth))
    )
    return f"<figure><figcaption><b>{case.metric:.3f}</b> <small>{name}</small></figcaption>{pictures}</figure>"


def _data(picture: Image.Image) -> str:
    picture = picture.convert("RGB")
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
