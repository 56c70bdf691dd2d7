"""A figure of matplotlib as a picture."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_picture(figure: Figure) -> Image.Image:
    """The figure as an RGB picture, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    written = io.BytesIO()
    FigureCanvasAgg(figure).print_png(written)
    return Image.open(written).convert("RGB")
