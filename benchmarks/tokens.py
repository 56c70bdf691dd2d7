"""How does a mixer's time grow with the number of tokens? One thread, batch 1, 64 channels, 14² to 112² tokens.

    python benchmarks/tokens.py

Fits time ∝ tokens^k over the sizes and writes ``tokens.md`` beside this file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import tyro

import metamixer as mm
from metamixer.bench.machine import this_machine
from metamixer.deploy.timing import time_interleaved, torch_threads

SIDES = (14, 20, 28, 40, 56, 80, 112)


def main(dim: int = 64, repeats: int = 25) -> None:
    """Time every mixer at every size in turns and write the table with the fitted exponents."""
    torch.manual_seed(0)
    names = [name for name in mm.list_mixers() if name != "identity"]
    mixers = {name: mm.create_mixer(name, dim).eval() for name in names}
    inputs = {side: torch.randn(1, dim, side, side) for side in SIDES}
    calls = {(name, side): (lambda mixer=mixers[name], x=inputs[side]: mixer(x)) for name in names for side in SIDES}
    with torch_threads(1), torch.inference_mode():
        timings = time_interleaved(calls, repeats, 3)
    rows = []
    for name in names:
        medians = [timings[name, side].median_ms for side in SIDES]
        exponent = np.polyfit(np.log([side**2 for side in SIDES]), np.log(medians), 1)[0]
        rows.append(f"| {name} | " + " | ".join(f"{m:.2f}" for m in medians) + f" | **{exponent:.2f}** |")
    lines = [
        "# Time against tokens",
        "",
        f"Milliseconds of one mixer on {dim} channels, median of {repeats} calls in turns; one thread, batch 1, eager",
        "PyTorch; k is the least-squares fit of time ∝ tokens^k over all sizes.",
        f"{this_machine()}.",
        "",
        "| mixer | " + " | ".join(f"{side}²" for side in SIDES) + " | k |",
        "|---|" + "---|" * (len(SIDES) + 1),
        *rows,
        "",
        f"Made by `python benchmarks/tokens.py --dim {dim} --repeats {repeats}`.",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    tyro.cli(main)
