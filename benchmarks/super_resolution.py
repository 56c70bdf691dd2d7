"""How well does a super-resolution network enlarge Set5 and Set14, beside bicubic enlargement?

    python benchmarks/super_resolution.py --data FOLDER --sets Set5 Set14

FOLDER holds the sets as sub-folders. PSNR (dB) and SSIM on luma without a border as wide as the scale; small pictures
by MATLAB's imresize. Measures the network that is shipped, or another with ``--model NAME --checkpoint FILE``. Writes
``super_resolution.md`` beside this file.
"""

from __future__ import annotations

from pathlib import Path

import torch
import tyro

from metamixer.models import create_model, load_model
from metamixer.networks import FFNetSR
from metamixer.networks.super_resolution import tiled
from metamixer.tasks.super_resolution import evaluate_folder


def main(
    data: Path,
    sets: tuple[str, ...] = ("Set5", "Set14"),
    model: str = "ffnet_sr_nano",
    checkpoint: Path | None = None,
) -> None:
    """Measure and write the table.

    Args:
        data: folder with the sets as sub-folders.
        sets: their names.
        model: the network; by its name alone with the weights that are shipped for it.
        checkpoint: other weights, ours or the authors'.
    """
    network = (load_model(model) if checkpoint is None else create_model(model, checkpoint=checkpoint)).eval()
    assert isinstance(network, FFNetSR)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    lines = [
        "# Super-resolution",
        "",
        f"PSNR (dB) / SSIM on luma, border {network.scale}; `{model}`, {parameters / 1e6:.3f} M parameters.",
        "",
        "| set | pictures | network | bicubic | gain, dB |",
        "|---|---|---|---|---|",
    ]
    for name in sets:
        found = evaluate_folder(network, data / name)
        lines.append(
            f"| {name} ×{network.scale} | {found.count} | {found.psnr:.2f} / {found.ssim:.4f}"
            f" | {found.bicubic_psnr:.2f} / {found.bicubic_ssim:.4f} | **{found.psnr - found.bicubic_psnr:+.2f}** |"
        )
    picture = torch.rand(1, 3, 200, 280)
    with torch.inference_mode():
        whole = network(picture)
        seams = {
            overlap: float((tiled(network, picture, 96, overlap) - whole).abs().max()) for overlap in (8, 32, None)
        }
    lines += [
        "",
        "Largest difference between tiles of 96 pixels and the whole picture, on noise from 0 to 1 (one grey level is"
        f" {1 / 255:.1e}): " + ", ".join(f"overlap {k or network.reach} {v:.1e}" for k, v in seams.items()) + ".",
        "",
        f"Made by `python benchmarks/super_resolution.py --data … --model {model}`.",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    tyro.cli(main)
