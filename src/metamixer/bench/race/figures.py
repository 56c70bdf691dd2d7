"""The race as pictures: accuracy against latency, and how the networks learned."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from metamixer.bench.plotting import INK, SOFT, label_points, pareto_front, side_by_side
from metamixer.bench.race.standings import RaceResult, Standing

# Okabe and Ito's colours, which colour-blind people can tell apart too, without the yellow that is lost on white.
_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"),
    *("#56b4e9", "#333333", "#7a55b5", "#8c6d31", "#a0a0a0"),
)
_MARKERS = "osD^vPX*hd"


def styles(result: RaceResult) -> dict[str, tuple[str, str]]:
    """Colour and marker of every mixer, the most accurate first; they stay when the order changes."""
    place = {mixer: i for i, mixer in enumerate(dict.fromkeys(cell.mixer for cell in result.cells))}
    # Where colours return, markers have moved on.
    found = {
        mixer: (_COLOURS[i % len(_COLOURS)], _MARKERS[(i + i // len(_COLOURS)) % len(_MARKERS)])
        for mixer, i in place.items()
    }
    return {standing.mixer: found[standing.mixer] for standing in result.standings}


def draw_pareto(result: RaceResult, path: Path) -> None:
    """Write a PNG: top-1 against latency in PyTorch and, where it was measured, in ONNX Runtime."""
    panels: dict[str, dict[str, tuple[float, float, float]]] = {
        "PyTorch (eager)": {s.mixer: _span(s.speed.torch) for s in result.standings},
        "ONNX Runtime": {s.mixer: _span(s.speed.onnx) for s in result.standings if s.speed.onnx},
    }
    drawn = {title: spans for title, spans in panels.items() if spans}
    figure, grid = side_by_side(len(drawn), 5.9, 4.5)
    noun = "thread" if result.threads == 1 else "threads"
    for axes, (title, spans) in zip(grid, drawn.items(), strict=True):
        _scatter(axes, [s for s in result.standings if s.mixer in spans], spans, styles(result))
        axes.set_xlabel(f"latency of one picture, {result.threads} {noun}, ms")
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
        axes.sharey(grid[0])
    grid[0].set_ylabel("validation top-1, %")
    figure.draw_without_rendering()  # fixes the places that labels must keep clear of
    accuracy = {s.mixer: s.top1 for s in result.standings}
    for axes, spans in zip(grid, drawn.values(), strict=True):
        points = {mixer: (median, accuracy[mixer]) for mixer, (_, median, _) in spans.items()}
        label_points(axes, points, {mixer: colour for mixer, (colour, _) in styles(result).items()})
    figure.savefig(path, format="png")


def draw_curves(result: RaceResult, path: Path) -> None:
    """Write a PNG: validation top-1 and training loss after every epoch, mean and range over the seeds."""
    figure, grid = side_by_side(2, 5.9, 4.2)
    for axes, name, label in (
        (grid[0], "top1", "validation top-1, %"),
        (grid[1], "train_loss", "training loss"),
    ):
        for mixer, (colour, marker) in styles(result).items():
            curves = [[row[name] for row in cell.curve] for cell in result.cells if cell.mixer == mixer]
            epochs = range(1, len(curves[0]) + 1)
            columns = list(zip(*curves, strict=True))
            means = [statistics.mean(column) for column in columns]
            axes.plot(epochs, means, color=colour, marker=marker, markersize=4.5, linewidth=1.6, label=mixer)
            if len(curves) > 1:
                low, high = [min(c) for c in columns], [max(c) for c in columns]
                axes.fill_between(epochs, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    grid[0].legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(path, format="png")


def _span(timing: Any) -> tuple[float, float, float]:
    return timing.low, timing.median_ms, timing.high


def _scatter(
    axes: Axes,
    found: Sequence[Standing],
    spans: Mapping[str, tuple[float, float, float]],
    style: Mapping[str, tuple[str, str]],
) -> None:
    points = {s.mixer: (spans[s.mixer][1], s.top1) for s in found}
    front = [points[name] for name in pareto_front(points)]
    axes.plot(*zip(*front, strict=True), color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for s in found:
        low, median, high = spans[s.mixer]
        colour, marker = style[s.mixer]
        axes.errorbar(
            median,
            s.top1,
            xerr=[[median - low], [high - median]],
            yerr=s.top1_std,
            color=colour,
            marker=marker,
            markersize=7,
            elinewidth=1,
            capsize=2,
            zorder=3,
        )
    axes.margins(x=0.16, y=0.16)
