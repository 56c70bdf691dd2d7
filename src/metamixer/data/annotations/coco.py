"""COCO's JSON: pictures, categories, boxes, polygons, run-length codes, crowds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metamixer.data.annotations.files import picture_sizes, what_is_wrong
from metamixer.data.annotations.records import Checker, Instance, ObjectSet, Picture, Policy
from metamixer.errors import MetamixerError


def read_coco(
    file: Path, folders: Sequence[Path], policy: Policy = "raise", classes: Sequence[str] | None = None
) -> ObjectSet:
    """The pictures of one annotation file.

    Args:
        file: the JSON.
        folders: where pictures are looked for, by their whole ``file_name`` and then by its last part.
        policy: what to do about bad entries.
        classes: names in the order of their numbers; by default the file's categories in the order of their ids.

    Raises MetamixerError for a file that is no COCO JSON, and for bad entries where the policy says so.
    """
    content = _load(file)
    checker = Checker(policy)
    names: dict[int, str] = {}
    for category in sorted(content["categories"], key=lambda one: one["id"]):
        if category["id"] in names:
            checker.note(file, f"category {category['id']}", "an id that occurs twice")
            continue
        names[category["id"]] = category["name"]
    known = tuple(names.values()) if classes is None else tuple(classes)
    label_of = {number: known.index(name) for number, name in names.items() if name in known}

    entries: dict[Any, dict[str, Any]] = {}
    for image in content["images"]:
        if image["id"] in entries:
            checker.note(file, f"image {image['id']}", "an id that occurs twice")
            continue
        entries[image["id"]] = image
    found = {number: _find(image["file_name"], folders) for number, image in entries.items()}
    sizes: dict[Any, tuple[int, int]] = {}
    for (number, image), size in zip(entries.items(), picture_sizes(found.values()), strict=True):
        if size is None:
            checker.note(file, f"image {number}", f"{found[number]}: {what_is_wrong(found[number])}")
            continue
        stated = (image.get("height", size[0]), image.get("width", size[1]))
        if stated not in (size, size[::-1]):
            what = f"{found[number]} has {size[1]} × {size[0]} pixels, not {stated[1]} × {stated[0]}"
            checker.note(file, f"image {number}", what)
            continue
        sizes[number] = stated

    of_picture: dict[Any, list[Instance]] = {number: [] for number in sizes}
    seen: Counter[Any] = Counter()
    for annotation in content["annotations"]:
        number = annotation.get("id")
        entry = f"annotation {number}"
        seen[number] += 1
        if seen[number] > 1:
            checker.note(file, entry, "an id that occurs twice")
        elif annotation.get("image_id") not in entries:
            checker.note(file, entry, f"image {annotation.get('image_id')} is unknown")
        elif annotation.get("category_id") not in label_of:
            checker.note(file, entry, f"category {annotation.get('category_id')} is unknown")
        elif len(annotation.get("bbox") or ()) != 4:
            checker.note(file, entry, "no box of four numbers")
        elif annotation["image_id"] in sizes:  # what is wrong with its picture has been said
            size = sizes[annotation["image_id"]]
            left, top, width, height = map(float, annotation["bbox"])
            segmentation = annotation.get("segmentation") or None
            instance = Instance(
                label_of[annotation["category_id"]],
                (left, top, left + width, top + height),
                segmentation,
                bool(annotation.get("iscrowd", 0)),
                float(annotation.get("area", width * height)),
            )
            if sound := checker.instance(file, entry, instance, size):
                of_picture[annotation["image_id"]].append(sound)
    pictures = [Picture(found[number], size, tuple(of_picture[number])) for number, size in sizes.items()]
    return ObjectSet(pictures, known, checker.finish(file))


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise MetamixerError(f"{file}: no such file") from None
    except (OSError, ValueError) as error:
        raise MetamixerError(f"{file} cannot be read as JSON ({error})") from None
    missing = [key for key in ("images", "annotations", "categories") if key not in content]
    if not isinstance(content, dict) or missing:
        raise MetamixerError(f"{file} is no COCO annotation file: it has no {' and no '.join(missing)}")
    try:
        for image in content["images"]:
            _ = image["id"], image["file_name"]
        for category in content["categories"]:
            _ = category["id"], category["name"]
    except (KeyError, TypeError):
        raise MetamixerError(f"{file} is no COCO annotation file: an image or category lacks its id or name") from None
    return content


def _find(name: str, folders: Sequence[Path]) -> Path:
    tried = [folder / part for part in (name, Path(name).name) for folder in folders]
    return next((file for file in tried if file.is_file()), tried[0])
