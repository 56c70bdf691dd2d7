"""COCO's JSON: pictures, categories, boxes, polygons, run-length codes, crowds."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metamixer.data.annotations.files import find_picture, look_at_all
from metamixer.data.annotations.records import Checker, Fault, Instance, ObjectSet, Picture
from metamixer.data.formats import read_json
from metamixer.errors import MetamixerError
from metamixer.limits import ANNOTATION_BYTES

_ID = (int, float, str)


def read_coco(file: Path, folders: Sequence[Path], checker: Checker, classes: Sequence[str] | None = None) -> ObjectSet:
    """The pictures of one annotation file.

    Args:
        file: the JSON.
        folders: where pictures are looked for, by their whole ``file_name`` and then by its last part.
        checker: what collects bad entries.
        classes: names in the order of their numbers; by default the file's categories in the order of their ids.

    Raises MetamixerError for a file that is no COCO JSON, and for bad entries where the checker's policy says so.
    """
    content = _load(file)
    categories = _by_id(content["categories"], "category", file, checker)
    names: dict[Any, str] = {}
    taken: set[str] = set()
    for number in sorted(categories, key=lambda number: (isinstance(number, str), number)):
        name = categories[number].get("name")
        if not isinstance(name, str):
            checker.note(file, f"category {number}", "entry that cannot be understood", f"{name!r} is no name")
        elif name in taken:
            checker.note(file, f"category {number}", "duplicate", f"a second category called {name!r}")
        else:
            names[number] = name
            taken.add(name)
    known = tuple(names.values()) if classes is None else tuple(classes)
    label_of_name = {name: label for label, name in reversed(list(enumerate(known)))}
    label_of = {number: label_of_name[name] for number, name in names.items() if name in label_of_name}

    images = _by_id(content["images"], "image", file, checker)
    pictures = _pictures(images, folders, file, checker)
    of_picture: dict[Any, list[Instance]] = {number: [] for number in pictures}
    seen = set()
    for place, annotation in enumerate(content["annotations"], 1):
        number = annotation.get("id") if isinstance(annotation, dict) else None
        entry = f"annotation at place {place}" if number is None else f"annotation {number}"
        if not isinstance(annotation, dict) or not isinstance(number, (*_ID, type(None))):
            checker.note(file, entry, "entry that cannot be understood", "no annotation with a number")
            continue
        image = annotation.get("image_id")
        if number is not None and number in seen:
            checker.note(file, entry, "duplicate", "an id that occurs twice")
        elif not _is_one_of(image, images):
            checker.note(file, entry, "unknown picture", f"image {image} is unknown")
        elif image in pictures:  # what is wrong with its picture has been said
            sound = checker.instance(file, entry, _instance(annotation, label_of), pictures[image].size)
            of_picture[image] += [sound] if sound else []
        seen.add(number)
    found = [replace(picture, instances=tuple(of_picture[number])) for number, picture in pictures.items()]
    return ObjectSet(found, known, checker.finish(file))


def _load(file: Path) -> dict[str, Any]:
    content = read_json(file, ANNOTATION_BYTES)
    if not isinstance(content, dict):
        raise MetamixerError(f"{file} is no COCO annotation file: it holds {type(content).__name__}, not a dict")
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if missing:
        raise MetamixerError(f"{file} is no COCO annotation file: it has no list of {' and no list of '.join(missing)}")
    return content


def _by_id(entries: list[Any], what: str, file: Path, checker: Checker) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    for place, entry in enumerate(entries, 1):
        number = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(number, _ID):
            checker.note(file, f"{what} at place {place}", "entry that cannot be understood", "no id")
        elif number in found:
            checker.note(file, f"{what} {number}", "duplicate", "an id that occurs twice")
        else:
            found[number] = entry
    return found


def _pictures(
    images: dict[Any, dict[str, Any]], folders: Sequence[Path], file: Path, checker: Checker
) -> dict[Any, Picture]:
    """The usable pictures by their id, without objects."""
    places: dict[Any, Path] = {}
    for number, image in images.items():
        name = image.get("file_name")
        if isinstance(name, str) and name:
            places[number] = find_picture(folders, (name, Path(name).name))
        else:
            checker.note(file, f"image {number}", "entry that cannot be understood", f"{name!r} is no file name")
    pictures: dict[Any, Picture] = {}
    taken: dict[Path, Any] = {}
    for (number, place), seen in zip(places.items(), look_at_all(places.values()), strict=True):
        entry, height, width = f"image {number}", images[number].get("height"), images[number].get("width")
        if isinstance(seen, str):
            checker.note(file, entry, "missing or broken picture", f"{place}: {seen}")
        elif place in taken:
            checker.note(file, entry, "duplicate", f"{place} is image {taken[place]} already")
        elif size := seen.stated(height, width):
            pictures[number] = Picture(place, size)
            taken[place] = number
        else:
            what = f"{place} has {seen.size[1]} × {seen.size[0]} pixels, not {width!r} × {height!r}"
            checker.note(file, entry, "picture of another size", what)
    return pictures


def _instance(annotation: dict[str, Any], label_of: dict[Any, int]) -> Instance | Fault:
    """The object of an annotation, or what is wrong with it."""
    category, box = annotation.get("category_id"), annotation.get("bbox")
    if not _is_one_of(category, label_of):
        return Fault("unknown category", f"category {category} is unknown")
    if not isinstance(box, list) or len(box) != 4:
        return Fault("entry that cannot be understood", "no box of four numbers")
    try:
        left, top, width, height = map(float, box)
        crowd = bool(int(annotation.get("iscrowd") or 0))
        stated = annotation.get("area")
        area = width * height if stated is None else float(stated)
    except (TypeError, ValueError, OverflowError) as error:
        return Fault("entry that cannot be understood", f"box, area or iscrowd is no number ({error})")
    if not math.isfinite(area) and stated is not None:
        return Fault("entry that cannot be understood", f"an area of {area}")
    sides = (left, top, left + width, top + height)
    return Instance(label_of[category], sides, annotation.get("segmentation") or None, crowd, area)


def _is_one_of(number: Any, known: Container[Any]) -> bool:
    return isinstance(number, _ID) and number in known
