"""How much faster are our merged networks than the papers' own code? One thread, batch 1, interleaved, PyTorch.

    python benchmarks/against_release.py --cas-vit CHECKOUT --ffnet CHECKOUT --token-mixers CHECKOUT

needs checkouts of Tianfang-Zhang/CAS-ViT, ysj9909/FFNet and microsoft/TokenMixers. The release runs in eager PyTorch
as its authors would run it; ours is merged, in eager PyTorch and compiled by ``torch.compile`` with frozen weights and
channels last.
Writes ``against_release.md`` beside this file.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from copy import deepcopy
from pathlib import Path

import timm
import torch
import tyro
from torch import nn

import metamixer as mm
from metamixer.bench.machine import this_machine
from metamixer.deploy.timing import time_interleaved, torch_threads
from released_models import released_affnet_et, released_casvit_xs, released_ffnet_1


def main(cas_vit: Path, ffnet: Path, token_mixers: Path, repeats: int = 60) -> None:
    """Time release, merged and merged-and-compiled networks in turns and write the table."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # the releases use names that torch has renamed
    torch.manual_seed(0)
    cases = [
        ("affnet_et", 256, released_affnet_et, token_mixers),
        ("casvit_xs", 224, released_casvit_xs, cas_vit),
        ("ffnet_1", 256, released_ffnet_1, ffnet),
    ]
    rows = []
    for name, size, build, checkout in cases:
        with contextlib.redirect_stdout(io.StringIO()):
            release = build(checkout).eval()
        merged = mm.merge(timm.create_model(name))
        rows.append(_row(name, size, release, merged, repeats))
        print(rows[-1])
    lines = [
        "# Our networks beside the released code",
        "",
        "Milliseconds per picture, median (quartiles); one thread, batch 1, calls in turns in one process.",
        f"{this_machine()}.",
        "",
        "| network | size | release, eager | merged, eager | merged, compiled | eager ratio | compiled ratio |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        "Made by `python benchmarks/against_release.py --cas-vit … --ffnet … --token-mixers …"
        f" --repeats {repeats}`; weights are random, which does not change the work done.",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")


def _row(name: str, size: int, release: nn.Module, merged: nn.Module, repeats: int) -> str:
    x = torch.randn(1, 3, size, size)
    with torch_threads(1), torch.no_grad(), torch._inductor.config.patch(freezing=True):
        x_last = x.contiguous(memory_format=torch.channels_last)
        # Without dynamic=False the next network's other picture size would compile for any size, which is slower.
        compiled = torch.compile(deepcopy(merged).to(memory_format=torch.channels_last), dynamic=False)
        compiled(x_last)
        timings = time_interleaved(
            {"release": lambda: release(x), "merged": lambda: merged(x), "compiled": lambda: compiled(x_last)},
            repeats,
            5,
        )
    cells = [f"{t.median_ms:.1f} ({t.low:.1f}–{t.high:.1f})" for t in timings.values()]
    ratios = [f"**{timings['release'].median_ms / timings[key].median_ms:.2f}×**" for key in ("merged", "compiled")]
    return f"| {name} | {size} | " + " | ".join(cells + ratios) + " |"


if __name__ == "__main__":
    tyro.cli(main)
