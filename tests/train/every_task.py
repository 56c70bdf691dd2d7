"""A tiny training of every task, with all that is random in it: data, settings, a loop of two epochs.

``write_data`` fills a folder; ``CONFIGS[name](folder)`` gives the settings.
"""

from __future__ import annotations

import csv
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

import metamixer as mm
from metamixer.bench.race import RaceTask
from metamixer.data.clouds import CloudAugmentation
from metamixer.tasks.classification import Classification
from metamixer.tasks.detection import Detection
from metamixer.tasks.forecasting import Forecasting
from metamixer.tasks.point_clouds import PointSegmentation
from metamixer.tasks.segmentation import SemanticSegmentation
from metamixer.tasks.super_resolution import SuperResolution
from metamixer.weights import save_checkpoint

shapes = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "tasks" / "coloured_shapes.py")))

SMALL = ("depths=(1,1,1,1)", "dims=(8,8,16,16)")
BACKBONE = "mobilenetv3_small_050"  # with norms that learn, and fast
BATCH, STEPS, EPOCHS = 6, 3, 2
TRAIN, VAL = BATCH * STEPS, 7  # neither two nor three processes share seven equally


def write_data(root: Path) -> None:
    """The data of all tasks."""
    random = np.random.default_rng(0)
    for split, counts in {"train": (6, 6, 6), "val": (3, 2, 2)}.items():
        for label, count in enumerate(counts):
            folder = root / "pictures" / split / "abc"[label]
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 120, (24, 24, 3))
                pixels[..., label] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    torch.manual_seed(0)
    teacher = mm.create_model("metaformer_nano", num_classes=3, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))
    save_checkpoint(teacher, root / "teacher.safetensors", classes=["a", "b", "c"])
    for write, name in ((shapes.write_coco, "objects"), (shapes.write_class_maps, "maps")):
        write(root / name, pictures=VAL, side=32, copies=3)
    for split, count in {"train": TRAIN, "val": VAL}.items():
        folder = root / "large" / split
        folder.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(random.integers(0, 255, (26, 30 + i, 3)).astype(np.uint8)).save(folder / f"{i:02}.png")
    with (root / "waves.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["date", "one", "two"])
        for hour in range(60):
            writer.writerow([f"2020-01-{hour // 24 + 1:02} {hour % 24:02}:00:00", *random.normal(size=2)])
    for split, count in {"train": TRAIN, "val": VAL}.items():
        for i in range(count):
            points = 150 + 10 * i
            coord = random.uniform(0, 2, (points, 3)).astype(np.float32)
            arrays = {"coord": coord, "color": random.integers(0, 255, (points, 3)), "segment": coord[:, 2] > 1}
            folder = root / "rooms" / split / f"{i:02}"
            folder.mkdir(parents=True)
            for name, values in arrays.items():
                np.save(folder / f"{name}.npy", values.astype(np.float32 if name == "coord" else np.int64))


def classification(root: Path, kind: Callable[..., Any] = Classification, **changes: Any) -> Any:
    settings = dict(
        model="metaformer_nano", data=str(root / "pictures"), image_size=32, model_args=SMALL, policy="rand",
        colour_jitter=0.2, erase=0.5, mixup=0.2, cutmix=1.0, drop_path_rate=0.2,
    )  # fmt: skip
    return kind(**(settings | changes))


def detection(root: Path, head: str, **changes: Any) -> Any:
    return Detection(str(root / "objects"), head, BACKBONE, image_size=32, drop_path_rate=0.1, **changes)  # type: ignore[arg-type]


TASKS: dict[str, Callable[[Path], Any]] = {
    "classification": classification,
    "distillation": lambda root: classification(
        root, teacher=str(root / "teacher.safetensors"), distillation="soft", policy="three"
    ),
    "race": lambda root: classification(root, RaceTask, policy="trivial", pictures=6, val_pictures=2),
    "detection": lambda root: detection(root, "retinanet", model_args=("channels=16",), augmentation="crop"),
    "ssdlite": lambda root: detection(root, "ssdlite", augmentation="ssd"),
    "instance": lambda root: detection(root, "mask_rcnn", model_args=("channels=16",), augmentation="jitter"),
    "segmentation": lambda root: SemanticSegmentation(
        str(root / "maps"), "semantic_fpn", BACKBONE, model_args=("channels=16",), image_size=32, drop_path_rate=0.1
    ),
    "super_resolution": lambda root: SuperResolution(
        "ffnet_sr_nano", str(root / "large"), dim=8, depth=1, crop=24
    ),
    "forecasting": lambda root: Forecasting(
        data=str(root / "waves.csv"), lookback=12, horizon=5, dim=4, kernel_size=5, small_kernel=3, drop_rate=0.3
    ),
    "point_clouds": lambda root: PointSegmentation(
        "ffnet_points_tiny", str(root / "rooms"), classes=("low", "high"), features=("color",), grid=0.1, mix=0.5,
        points=80, augment=CloudAugmentation(),
    ),
}  # fmt: skip


def config(name: str, root: Path, out: Path, **changes: Any) -> mm.TrainConfig:
    """Two epochs of three steps; the task ``name``."""
    base = mm.TrainConfig(
        TASKS[name](root), out=str(out), epochs=EPOCHS, batch_size=BATCH, workers=0, save_every=2, lr=1e-3
    )
    if name == "classification":
        base = replace(base, sizes=(32, 48))
    if name == "distillation":
        base = replace(base, accumulate=2)
    return replace(base, **changes)
