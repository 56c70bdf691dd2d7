"""What pictures of measurements share: plain panels, names beside points, and which points lie in front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

INK, SOFT, LINE = "#1d2126", "#5d6670", "#dde1e5"
# Where a name may stand: points to the right and up of the mark, and the side of the name that is there; best first.
_BESIDE = (
    *((9, -9, "left"), (-9, 7, "right"), (9, 7, "left"), (-9, -9, "right"), (0, 14, "center"), (0, -16, "center")),
    *((9, 20, "left"), (9, -22, "left"), (-9, 20, "right"), (-9, -22, "right")),
)


def side_by_side(panels: int, width: float, height: float) -> tuple[Figure, Sequence[Axes]]:
    """A figure with so many empty panels in a row, each of that width and height in inches."""
    # Figure without pyplot: no global state, no window.
    figure = Figure(figsize=(width * panels, height), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid: Sequence[Axes] = figure.subplots(1, panels, squeeze=False)[0]
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(SOFT)
        axes.tick_params(colors=SOFT, labelsize=9)
        axes.xaxis.label.set_color(SOFT)
        axes.yaxis.label.set_color(SOFT)
        axes.grid(color=LINE, linewidth=0.7)
        axes.set_axisbelow(True)
    return figure, grid


def label_points(axes: Axes, points: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> None:
    """Write each point's name beside its point, where it hides neither another name nor a point."""
    frame = axes.get_window_extent()
    places = (axes.transData.transform(point) for point in points.values())
    taken = [Bbox.from_bounds(x - 9, y - 9, 18, 18) for x, y in places]
    for name, point in points.items():
        tried: list[tuple[int, int, Annotation, Bbox]] = []
        for i, (x, y, align) in enumerate(_BESIDE):
            text = axes.annotate(
                name,
                point,
                (x, y),
                textcoords="offset points",
                ha=align,
                va="center",
                fontsize=9,
                color=colours[name],
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            tried.append((sum(box.overlaps(other) for other in taken) + 2 * (not inside), i, text, box))
        *others, best = sorted(tried, key=lambda attempt: attempt[:2], reverse=True)
        for attempt in others:
            attempt[2].remove()
        taken.append(best[3])


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points (latency, accuracy) than which none is both faster and more accurate, fastest first."""
    front: list[str] = []
    best = -math.inf
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if points[name][1] > best:
            front.append(name)
            best = points[name][1]
    return front
