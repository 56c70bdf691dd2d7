"""HTML pages of one file that open without a network: style and pictures inside, no script.

What a page says is in its template (``templates/``); Python gathers the values.
"""

from __future__ import annotations

import io
from base64 import b64encode
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from metamixer.printing import as_utf8


def render(template: str, **values: Any) -> str:
    """A template with these values, as text that UTF-8 can hold.

    All values are text, whatever markup they hold. Halves of surrogate pairs, which names of files may have, are shown
    as ``\\udcff``.

    Args:
        template: path within the package.
        values: all that the template names; one that is missing is an error.
    """
    return as_utf8(_environment().get_template(template).render(values))


@lru_cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("metamixer", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def picture_uri(picture: Image.Image, kind: str = "JPEG") -> str:
    """A picture as the address of itself."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return data_uri(buffer.getvalue(), f"image/{kind.lower()}")


def data_uri(data: bytes, kind: str) -> str:
    """A file of this media type as the address of itself."""
    return f"data:{kind};base64,{b64encode(data).decode('ascii')}"
