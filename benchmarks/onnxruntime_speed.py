"""How fast are our exports in ONNX Runtime, beside the released networks' and beside timm's? One thread, batch 1.

    python benchmarks/onnxruntime_speed.py --cas-vit CHECKOUT --ffnet CHECKOUT --token-mixers CHECKOUT [--peers]

needs checkouts of Tianfang-Zhang/CAS-ViT, ysj9909/FFNet and microsoft/TokenMixers. The release is exported by
``torch.onnx.export(dynamo=True)``, ours as ``metamixer export`` does it; every round calls each session once, all in
one process. Writes ``onnxruntime_speed.md`` beside this file.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
import tyro
from torch import nn

import metamixer as mm
from metamixer.bench.machine import this_machine
from metamixer.deploy import onnx
from metamixer.deploy.quiet import quiet
from metamixer.deploy.timing import Timing, time_interleaved
from released_models import released_affnet_et, released_casvit_xs, released_ffnet_1

PEERS = ("mobilenetv4_conv_small", "repvit_m0_9", "fastvit_t8", "mobilevitv2_050")


def main(cas_vit: Path, ffnet: Path, token_mixers: Path, repeats: int = 100, peers: bool = False) -> None:
    """Export all, time them in turns and write the table."""
    warnings.filterwarnings("ignore")  # the releases use names that torch has renamed
    torch.manual_seed(0)
    cases = [
        ("affnet_et", 256, released_affnet_et, token_mixers),
        ("casvit_xs", 224, released_casvit_xs, cas_vit),
        ("ffnet_1", 256, released_ffnet_1, ffnet),
    ]
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    sizes = {name: size for name, size, _, _ in cases}
    with tempfile.TemporaryDirectory() as folder:
        for name, size, build, checkout in cases:
            with contextlib.redirect_stdout(io.StringIO()):
                release = build(checkout).eval()
            calls[name, "release"] = _released(release, size, Path(folder, f"{name}_release.onnx"))
            calls[name, "ours"] = _exported(timm.create_model(name), size, Path(folder, f"{name}.onnx"))
        for name in PEERS if peers else ():
            model = timm.create_model(name)
            sizes[name] = model.pretrained_cfg["input_size"][-1]
            calls[name, "peer"] = _exported(model, sizes[name], Path(folder, f"{name}.onnx"))
        timings = time_interleaved(calls, repeats, warmup=5)
    lines = [
        "# Speed in ONNX Runtime",
        "",
        "Milliseconds per picture, median (quartiles); one thread, batch 1, calls in turns in one process.",
        f"{this_machine()}.",
        "",
        "| network | size | release, exported as it is | ours, merged | ratio |",
        "|---|---|---|---|---|",
    ]
    for name, size, _, _ in cases:
        release, ours = timings[name, "release"], timings[name, "ours"]
        ratio = release.median_ms / ours.median_ms
        lines.append(f"| {name} | {size} | {_text(release)} | {_text(ours)} | **{ratio:.2f}×** |")
    for (name, kind), timing in timings.items():
        if kind == "peer":
            lines.append(f"| {name} (timm, merged) | {sizes[name]} | | {_text(timing)} | |")
    lines += [
        "",
        "Made by `python benchmarks/onnxruntime_speed.py --cas-vit … --ffnet … --token-mixers …"
        f" --repeats {repeats}{' --peers' if peers else ''}`; weights are random, which does not change the work done.",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _released(model: nn.Module, size: int, path: Path) -> Callable[[], object]:
    """The network as its authors wrote it, through PyTorch's exporter with nothing else done."""
    example = torch.zeros(1, 3, size, size)
    with quiet():
        program = torch.onnx.export(model, (example,), dynamo=True, verbose=False)
        assert program is not None
        program.save(str(path), external_data=False)
    return _call(path, size)


def _exported(model: nn.Module, size: int, path: Path) -> Callable[[], object]:
    with quiet():
        onnx.write(mm.merge(model), torch.zeros(1, 3, size, size), path)
    return _call(path, size)


def _call(path: Path, size: int) -> Callable[[], object]:
    run = onnx.load(path, threads=1)
    pictures = np.random.default_rng(0).standard_normal((1, 3, size, size), np.float32)
    return lambda: run(pictures)


def _text(timing: Timing) -> str:
    return f"{timing.median_ms:.1f} ({timing.low:.1f}–{timing.high:.1f})"


if __name__ == "__main__":
    tyro.cli(main)
