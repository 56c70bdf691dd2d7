"""The demo as one picture: some photographs with the likeliest classes of every model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from metamixer.demo.run import Answer, Demo

# As in templates/demo.css.
_COLOURS = {"affnet": "#2f6fb3", "casvit": "#c4721b", "ffnet": "#3a8f5c", "dsm": "#7a55b5"}
_OTHER, _INK, _SOFT, _RIGHT, _TRACK = "#66707a", "#1d2126", "#5d6670", "#1a7f4b", "#eef0f2"
_ROWS = 4


def draw_figure(demo: Demo, pictures: Sequence[Image.Image], path: Path) -> None:
    """Write a PNG: one row per photograph (those that most models know, at most four), one column of bars per model."""
    rows = _best_known(demo)
    columns = len(demo.models)
    # Figure without pyplot: no global state, no window.
    figure = Figure(figsize=(1.9 + 2.5 * columns, 0.6 + 1.75 * len(rows)), dpi=110, facecolor="white")
    grid = figure.subplots(
        len(rows),
        columns + 1,
        squeeze=False,
        gridspec_kw={
            "width_ratios": [0.72] + [1.0] * columns,
            **dict(
                left=0.01, right=0.985, bottom=0.02, top=1 - 0.42 / figure.get_figheight(), wspace=0.12, hspace=0.16
            ),
        },
    )
    for row, index in enumerate(rows):
        left = grid[row, 0]
        left.imshow(ImageOps.fit(pictures[index], (400, 400)))
        left.set_axis_off()
        for column, model in enumerate(demo.models, start=1):
            colour = _COLOURS.get(model.name.split("_")[0], _OTHER)
            _bars(grid[row, column], model.answers[index], colour)
            if row == 0:
                grid[row, column].set_title(
                    model.name, fontsize=10.5, fontweight="bold", color=colour, loc="left", pad=10
                )
    figure.savefig(path, format="png")


def _best_known(demo: Demo) -> list[int]:
    """Indices of the photographs that most models have a class for, at most four, in the demo's order."""

    def unknown(index: int) -> int:
        return sum(model.answers[index].verdict == "not among its classes" for model in demo.models)

    return sorted(sorted(range(len(demo.photographs)), key=unknown)[:_ROWS])


def _bars(axes: Axes, answer: Answer, colour: str) -> None:
    pale = 0.4 if answer.verdict == "not among its classes" else 1.0
    for row, guess in enumerate(answer.guesses):
        y = -row
        axes.barh(y - 0.36, 1.0, height=0.2, color=_TRACK)
        axes.barh(y - 0.36, guess.score, height=0.2, color=colour, alpha=pale)
        mark, weight, ink = ("✓ ", "bold", _RIGHT) if guess.right else ("", "normal", _INK)
        label = guess.label if len(guess.label) <= 24 else guess.label[:23] + "…"
        axes.text(
            0, y + 0.03, mark + label, fontsize=8.2, fontweight=weight, color=ink, va="center", alpha=max(pale, 0.65)
        )
        axes.text(1, y + 0.03, f"{100 * guess.score:.0f} %", fontsize=8.2, color=_SOFT, va="center", ha="right")
    axes.set_xlim(0, 1)
    axes.set_ylim(-len(answer.guesses) + 0.4, 0.4)
    axes.set_axis_off()
