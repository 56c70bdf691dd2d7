"""Tiny data sets of coloured rectangles, on which a network can overfit in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ((220, 40, 40), (40, 60, 220))
NAMES = ("red", "blue")
GRID = 8  # edges lie on it, so that a network of coarse maps can be exact


def scene(
    rng: np.random.Generator, side: int, count: int, first: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, list[int]]]]:
    """A picture, its class map (0 is background) and its objects; no rectangle overlaps another.

    Classes take turns, from ``first`` on.
    """
    pixels = rng.integers(100, 130, (side, side, 3)).astype(np.uint8)
    labels = np.zeros((side, side), np.uint8)
    objects = []
    for i in range(count):
        low, high = side // count * i, side // count * (i + 1)
        width = int(rng.integers((high - low) // 2, high - low - 3)) // GRID * GRID
        height = int(rng.integers(side // (count + 1), side // 2 + side // 4 // count)) // GRID * GRID
        left, top = (int(rng.integers(a, b)) // GRID * GRID for a, b in ((low, high - width), (0, side - height)))
        label = (first + i) % 2
        pixels[top : top + height, left : left + width] = COLOURS[label]
        labels[top : top + height, left : left + width] = label + 1
        objects.append((label, [left, top, left + width, top + height]))
    return pixels, labels, objects


def write_coco(root: Path, pictures: int = 8, side: int = 64, copies: int = 10, count: int = 1) -> Path:
    """The same pictures for training (many times, for fewer epochs) and validation, in COCO's layout."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
    for i in range(pictures):
        pixels, _, objects = scene(rng, side, count, first=i)
        for split, times in (("train", copies), ("val", 1)):
            for copy in range(times):
                Image.fromarray(pixels).save(root / split / f"{i + 100 * copy}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": side, "width": side})
        for label, (left, top, right, bottom) in objects:
            entry = {"id": len(annotations), "image_id": i, "category_id": label + 1, "iscrowd": 0}
            entry |= {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
            entry["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]
            annotations.append(entry)
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)]
    (root / "annotations").mkdir()
    for split, times in (("train", copies), ("val", 1)):
        content = {
            "images": [
                {**one, "id": one["id"] + 100 * i, "file_name": f"{one['id'] + 100 * i}.png"}
                for i in range(times)
                for one in images
            ],
            "annotations": [
                {**one, "id": one["id"] + 100 * i, "image_id": one["image_id"] + 100 * i}
                for i in range(times)
                for one in annotations
            ],
            "categories": categories,
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def write_class_maps(root: Path, pictures: int = 8, side: int = 64, copies: int = 10) -> Path:
    """The same pictures for training (many times, for fewer epochs) and validation, a frame of void around each."""
    rng = np.random.default_rng(1)
    for i in range(pictures):
        pixels, labels, _ = scene(rng, side, 2, first=i)
        labels[:2] = labels[-2:] = labels[:, :2] = labels[:, -2:] = 255
        for split, times in (("train", copies), ("val", 1)):
            for kind, values in (("images", pixels), ("labels", labels)):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                for copy in range(times):
                    Image.fromarray(values).save(root / split / kind / f"{i + 100 * copy}.png")
    (root / "classes.txt").write_text("\n".join(("ground", *NAMES)) + "\n")
    return root
