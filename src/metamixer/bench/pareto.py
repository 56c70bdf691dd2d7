"""The benchmark as a picture: published accuracy against latency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metamixer.bench.latency import RUNTIMES, LatencyRow
from metamixer.bench.plotting import INK, SOFT, label_points, pareto_front, side_by_side

_COLOURS = {"affnet": "#0072b2", "casvit": "#d55e00", "ffnet": "#009e73", "dsm": "#7a55b5"}
_PEER = "#8a929a"


def draw_pareto(rows: Sequence[LatencyRow], path: Path, kind: str = "png") -> None:
    """Write a picture with a panel for each runtime; rows without a published accuracy are left out.

    A dashed line joins the models than which none is both faster and more accurate. Families of ours are coloured,
    other models grey.
    """
    known = {row.runtime: [r for r in rows if r.runtime == row.runtime and r.top1 is not None] for row in rows}
    known = {runtime: found for runtime, found in known.items() if found}
    figure, grid = side_by_side(len(known), 5.9, 4.5)
    noun = "one picture" if rows[0].batch == 1 else f"{rows[0].batch} pictures"
    threads = "1 thread" if rows[0].threads == 1 else f"{rows[0].threads} threads"
    for axes, (runtime, found) in zip(grid, known.items(), strict=True):
        points = _points(found)
        front = [points[name] for name in pareto_front(points)]
        axes.plot(*zip(*front, strict=True), color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for row in found:
            spread = [[row.median_ms - row.low], [row.high - row.median_ms]]
            axes.errorbar(
                *points[row.model], xerr=spread, color=_colour(row.model), marker="o", elinewidth=1, capsize=2, zorder=3
            )
        axes.margins(x=0.18, y=0.16)
        axes.set_xlabel(f"latency of {noun}, {threads}, ms")
        axes.set_title(RUNTIMES[runtime].runtime, loc="left", fontsize=11, fontweight="bold", color=INK)
        axes.sharey(grid[0])
    grid[0].set_ylabel("published ImageNet top-1, %")
    figure.draw_without_rendering()  # fixes the places that labels must keep clear of
    for axes, found in zip(grid, known.values(), strict=True):
        label_points(axes, _points(found), {row.model: _colour(row.model) for row in found})
    figure.savefig(path, format=kind)


def _points(rows: Sequence[LatencyRow]) -> dict[str, tuple[float, float]]:
    return {row.model: (row.median_ms, row.top1) for row in rows if row.top1 is not None}


def _colour(model: str) -> str:
    return _COLOURS.get(model.partition(".")[0].partition("_")[0], _PEER)
