"""What is the backbone worth in a dense network, and what its weights? The same head on ours and on peers.

    python benchmarks/dense_peers.py camvid DATA --out runs/peers --epochs 4 --image-size 256 --crop 192

trains the recipe's head with each backbone on the same pictures in the same order, for the same steps: ours from the
weights that come with the package, ours from random weights, and networks of timm of about its size from random
weights. Interrupted, it goes on where it was. Writes ``dense_peers_TASK.md`` beside this file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from tyro.conf import Positional

from metamixer.bench.machine import this_machine
from metamixer.bench.macs import count_macs_of
from metamixer.data.files import replace_when_done
from metamixer.tasks.dense import evaluate_dense, load_dense_model
from metamixer.tasks.detection import Detection
from metamixer.tasks.segmentation import SemanticSegmentation
from metamixer.train.config import TrainConfig
from metamixer.train.loop import train
from metamixer.train.recipes.detection import small_detection, small_instances
from metamixer.train.recipes.segmentation import camvid_semantic_fpn

RECIPES = {"camvid": camvid_semantic_fpn, "bccd": small_detection, "pennfudan": small_instances}
SHOWN = {"camvid": ("mIoU", "pixel_accuracy"), "bccd": ("mAP50", "mAP"), "pennfudan": ("mAP50", "mask_mAP50")}
TESTED = {"camvid": "test", "bccd": "test", "pennfudan": "val"}  # Penn-Fudan has no part for tests
BACKBONES = ("casvit_nano.tiny_in", "casvit_nano", "mobilenetv4_conv_small", "edgenext_xx_small")


def main(
    task: Positional[Literal["camvid", "bccd", "pennfudan"]],
    data: Positional[Path],
    out: Path = Path("runs/peers"),
    backbones: tuple[str, ...] = BACKBONES,
    epochs: int = 4,
    image_size: int = 256,
    crop: int | None = None,
    model_args: tuple[str, ...] = ("channels=64",),
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Train and test all, one after the other.

    Args:
        task: recipe whose head and settings are taken: semantic FPN on CamVid, RetinaNet on BCCD, Mask R-CNN on
            Penn-Fudan.
        data: the data set's folder.
        out: folder of the runs.
        backbones: timm names; those with ``.tag`` start from its weights, the others from random ones.
        epochs: of each run.
        image_size: shorter side of the pictures.
        crop: side of the training crops on CamVid; the recipe's by default.
        model_args: of the head; a slim one shows more of the backbone.
        seed: of all runs.
        threads: of PyTorch.
    """
    torch.set_num_threads(threads)
    base = RECIPES[task]()
    rows = []
    for backbone in backbones:
        config = replace(
            base,
            task=_task(base, data, backbone, model_args, image_size, crop),
            out=str(out / f"{task}_{backbone}"),
            resume="auto",
            save_every=100,
            epochs=epochs,
            seed=seed,
            workers=threads,
        )
        rows.append(_row(task, config, backbone, data))
        _write(task, rows, _settings(config))
        print(rows[-1], flush=True)


def _task(
    base: TrainConfig, data: Path, backbone: str, model_args: tuple[str, ...], image_size: int, crop: int | None
) -> SemanticSegmentation | Detection:
    """The recipe's task with another backbone, all of which learns."""
    given = base.task
    assert isinstance(given, SemanticSegmentation | Detection)
    given = replace(
        given, data=str(data), backbone=backbone, model_args=model_args, image_size=image_size, frozen_stages=0
    )
    if isinstance(given, SemanticSegmentation):
        return replace(given, crop=given.crop if crop is None else crop)
    return given


def _row(task: str, config: TrainConfig, backbone: str, data: Path) -> str:
    """Train, and test the best epoch: a line of the table."""
    result = train(config)
    model = load_dense_model(result.best)
    assert model is not None
    void = 11 if task == "camvid" else 255
    tested = evaluate_dense(model, data, TESTED[task], void=void)
    shown = [f"{result.metrics[SHOWN[task][0]]:.3f}", *(f"{tested[name]:.3f}" for name in SHOWN[task])]
    name, _, tag = backbone.partition(".")
    macs = count_macs_of(model.backbone, torch.zeros(1, 3, 256, 256)) / 1e6
    parameters = sum(weight.numel() for weight in model.backbone.parameters()) / 1e6
    cells = [f"`{name}`", f"`{tag}`" if tag else "random", f"{parameters:.2f}", f"{macs:.0f}", *shown]
    return f"| {' | '.join(cells)} |"


def _settings(config: TrainConfig) -> str:
    task = config.task
    assert isinstance(task, SemanticSegmentation | Detection)
    crop = f", crops of {task.crop_side}" if isinstance(task, SemanticSegmentation) else ""
    head = f"`{task.head}` ({', '.join(task.model_args)})"
    return f"{head}, shorter side {task.side}{crop}, {config.epochs} epochs, seed {config.seed}"


def _write(task: str, rows: Sequence[str], how: str) -> None:
    first, second = SHOWN[task]
    part = TESTED[task]
    lines = [
        "# The same head on our backbone and on peers",
        "",
        f"{task}: {how}.",
        "Each network is tested once, as it was after its best epoch in validation. Parameters and multiply-adds (at",
        "256 × 256) are the backbone's.",
        "",
        f"| backbone | starts from | parameters, M | MACs, M | {first}, val | {first}, {part} | {second}, {part} |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"{this_machine()}.",
        "",
        f"Made by `python benchmarks/dense_peers.py {' '.join(sys.argv[1:])}`.",
    ]
    with replace_when_done(Path(__file__).with_name(f"dense_peers_{task}.md")) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
