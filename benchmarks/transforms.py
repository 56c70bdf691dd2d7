"""Where does an FFT overtake the matrix product? One thread, batch 1, 64 channels.

    python benchmarks/transforms.py

Writes ``transforms.md`` beside this file; ``ops/transform_choice.py`` takes its crossover from it.
"""

from __future__ import annotations

from pathlib import Path

import torch
import tyro

from metamixer.bench.machine import this_machine
from metamixer.deploy.timing import time_interleaved, torch_threads
from metamixer.ops import dct2, idct2, irdft2, rdft2, use_transform

SIDES = (8, 16, 32, 56, 64, 80, 96, 112, 128, 192, 256)


def main(dim: int = 64, repeats: int = 25, device: str = "cpu") -> None:
    """Time there-and-back DFT and DCT both ways and write the table."""
    torch.manual_seed(0)
    inputs = {side: torch.randn(1, dim, side, side, device=device) for side in SIDES}
    pairs = {
        "DFT": lambda x: irdft2(rdft2(x), x.shape[-1]),
        "DCT": lambda x: idct2(dct2(x)),
    }

    def call(name: str, choice: str, side: int) -> None:
        with use_transform(choice):
            pairs[name](inputs[side])
        if device != "cpu":
            torch.cuda.synchronize()

    keys = [(name, choice, side) for name in pairs for choice in ("matmul", "fft") for side in SIDES]
    with torch_threads(1), torch.inference_mode():
        timings = time_interleaved({key: (lambda key=key: call(*key)) for key in keys}, repeats, 3)
    rows = []
    for side in SIDES:
        cells = []
        for name in pairs:
            product, fft = (timings[name, choice, side].median_ms for choice in ("matmul", "fft"))
            cells += [f"{product:.3f}", f"{fft:.3f}", f"{fft / product:.2f}"]
        rows.append(f"| {side}² | " + " | ".join(cells) + " |")
    lines = [
        "# Matrix product or FFT",
        "",
        f"Milliseconds there and back on {dim} channels, median of {repeats} calls in turns; one thread, {device}.",
        "A ratio above 1 says that the product is faster.",
        f"{this_machine()}.",
        "",
        "| map | DFT product | DFT by FFT | ratio | DCT product | DCT by FFT | ratio |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"Made by `python benchmarks/transforms.py --dim {dim} --repeats {repeats} --device {device}`.",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    tyro.cli(main)
