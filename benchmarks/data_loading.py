"""Does our loader deliver pictures as fast as timm's? Same files, augmentation, batches and worker processes.

    python benchmarks/data_loading.py --small DIR --large DIR

Both read folders ``CLASS/*.jpg``, augment 8-bit pixels in the workers and hand out normalised float32 batches. Writes
``data_loading.md`` beside this file.
"""

from __future__ import annotations

import resource
import statistics
import time
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import tyro
from timm.data import create_dataset, create_loader

from metamixer.bench.machine import this_machine
from metamixer.data.image_folder import ImageFolder
from metamixer.data.memory import keep_in_memory
from metamixer.data.packed import PackedNames
from metamixer.data.source import PictureLoader
from metamixer.data.transforms import Preprocessing, evaluation_transform, training_transform

# Ours and timm's words for the same. At a larger magnitude timm's posterising may ask Pillow 12 and later for no bits
# at all, which they refuse.
KEPT = "crop and mirror, ours kept in memory"
RAND = "rand-m8-mstd0.25-inc1"
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "crop and mirror": ({}, {}),
    KEPT: ({}, {}),
    "colour jitter 0.4": ({"colour_jitter": 0.4}, {"color_jitter": 0.4}),
    "RandAugment, erasing 0.25": (
        {"policy": "rand", "magnitude": 8.0, "magnitude_std": 0.25, "erase": 0.25},
        {"auto_augment": RAND, "re_prob": 0.25, "re_mode": "pixel"},
    ),
}
CROP = {"scale": (0.35, 1.0), "ratio": (3 / 4, 4 / 3)}


def main(small: Path, large: Path, repeats: int = 15, pictures: int = 512) -> None:
    """Time epochs of both loaders in turns and write the table.

    Args:
        small: tiny pictures, such as CIFAR-10's, resized to 48 pixels.
        large: photographs, resized to 224.
        repeats: epochs of each loader.
        pictures: of each folder at most.
    """
    rows = []
    for folder, size, batch in ((small, 48, 64), (large, 224, 16)):
        for name in ("evaluation", *SETTINGS):
            for workers in (0, 1):
                ours, count = our_loader(folder, size, batch, workers, name, pictures)
                theirs = timm_loader(folder, size, batch, workers, name, pictures)
                seconds = interleaved({"ours": ours, "timm": theirs}, repeats)
                ratio = statistics.median(b / a for a, b in zip(seconds["ours"], seconds["timm"], strict=True))
                speeds = [count / statistics.median(seconds[which]) for which in ("ours", "timm")]
                rows.append(f"| {size} | {name} | {workers} | {speeds[0]:.0f} | {speeds[1]:.0f} | {ratio:.2f} |")
                print(rows[-1], flush=True)
    lines = [
        "# Our loader beside timm's",
        "",
        "Pictures a second of processor time (the workers' and their start included, so that a busy machine does not",
        f"matter), median of {repeats} epochs in turns, and the median ratio of neighbouring epochs; above 1 ours is",
        "faster. Bicubic resizing; the batches that come out are normalised float32. 0 workers: read by the loop",
        "itself. 48: CIFAR-10 (32 × 32 JPEG); 224: photographs of ImageNet classes (sides 287 to 800 pixels).",
        f"{this_machine()}.",
        "",
        "| size | augmentation | workers | ours | timm | ratio |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"Made by `python benchmarks/data_loading.py --small DIR --large DIR --repeats {repeats} "
        f"--pictures {pictures}`.",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")


def our_loader(
    folder: Path, size: int, batch: int, workers: int, name: str, pictures: int
) -> tuple[Callable[[], Iterable[Any]], int]:
    """A function that gives an epoch's batches, and the number of pictures."""
    preprocessing = Preprocessing(size, crop_pct=0.9)
    if name == "evaluation":
        transform: Any = evaluation_transform(preprocessing)
    else:
        options = SETTINGS[name][0]
        transform = training_transform(
            size, CROP["scale"], crop_ratio=CROP["ratio"], interpolation="bicubic", **options
        )
    source = ImageFolder(folder, transform)
    kept = range(0, len(source), max(1, len(source) // pictures))[: pictures // batch * batch]
    source.files, source.labels = (
        PackedNames(source.files[i] for i in kept),
        array("i", (source.labels[i] for i in kept)),
    )
    pictures_read = keep_in_memory(source) if name == KEPT else source
    loader = PictureLoader(pictures_read, batch, shuffle=name != "evaluation", num_workers=workers)
    return lambda: ((preprocessing.normalise(pixels), labels) for pixels, labels in loader), len(source)


def timm_loader(
    folder: Path, size: int, batch: int, workers: int, name: str, pictures: int
) -> Callable[[], Iterable[Any]]:
    dataset = create_dataset("", str(folder))
    samples = dataset.reader.samples
    dataset.reader.samples = samples[:: max(1, len(samples) // pictures)][: pictures // batch * batch]
    training = name != "evaluation"
    options = {"color_jitter": None, **SETTINGS[name][1], **CROP} if training else {}
    loader = create_loader(
        dataset,
        size,
        batch,
        is_training=training,
        interpolation="bicubic",
        crop_pct=0.9,
        num_workers=workers,
        device=torch.device("cpu"),
        persistent_workers=False,
        **options,
    )
    return lambda: iter(loader)


def interleaved(epochs: dict[str, Callable[[], Iterable[Any]]], repeats: int) -> dict[str, list[float]]:
    """Processor seconds of each epoch, those of its worker processes included; the first is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in epochs}
    for repeat in range(repeats + 1):
        for name, epoch in epochs.items():
            started = processor_seconds()
            for _ in epoch():
                pass
            if repeat:
                seconds[name].append(processor_seconds() - started)
    return seconds


def processor_seconds() -> float:
    """Of this process and of the workers that have ended."""
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + workers.ru_utime + workers.ru_stime


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.cli(main)
