"""YOLO's text files: a line per object, ``class x y width height`` or ``class x y x y …``, in shares of the picture."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metamixer.data.annotations.files import look_at_all
from metamixer.data.annotations.records import Checker, Fault, Instance, ObjectSet, Picture
from metamixer.data.files import read_regular
from metamixer.data.formats import read_yaml
from metamixer.data.pictures import pictures_below
from metamixer.errors import MetamixerError
from metamixer.limits import LABEL_BYTES


def read_yolo(files: Sequence[Path], source: Path, classes: Sequence[str], checker: Checker) -> ObjectSet:
    """Pictures and their label files (``…/images/NAME.jpg`` and ``…/labels/NAME.txt``, or both beside each other).

    A picture without a label file shows no object. Raises MetamixerError for bad entries where the checker's policy
    says so.
    """
    pictures = []
    for file, seen in zip(files, look_at_all(files), strict=True):
        if isinstance(seen, str):
            checker.note(file, "", "missing or broken picture", seen)
            continue
        pictures.append(Picture(file, seen.size, tuple(_instances(label_file(file), seen.size, len(classes), checker))))
    for labels in _without_picture(files):
        checker.note(labels, "", "annotations and picture that do not match", "a label file without its picture")
    return ObjectSet(pictures, tuple(classes), checker.finish(source))


def _instances(labels: Path, size: tuple[int, int], classes: int, checker: Checker) -> list[Instance]:
    if not os.path.lexists(labels):
        return []
    try:
        lines = read_regular(labels, LABEL_BYTES, "labels").decode(errors="replace").splitlines()
    except MetamixerError as error:
        checker.note(labels, "", "missing or broken file of annotations", str(error).removeprefix(f"{labels} "))
        return []
    instances = []
    places: dict[str, int] = {}
    for i, line in enumerate(lines, 1):
        line = " ".join(line.split())
        if not line:
            continue
        repeats = line in places
        found = Fault("duplicate", f"the same as line {places[line]}") if repeats else _instance(line, size, classes)
        places.setdefault(line, i)
        if sound := checker.instance(labels, f"line {i}", found, size):
            instances.append(sound)
    return instances


def _without_picture(files: Sequence[Path]) -> list[Path]:
    """Label files in the folders ``labels`` of these pictures, and below them, that belong to no picture at all."""
    used = {label_file(file): file for file in files}
    folders = {labels.parent: file.parent for labels, file in used.items() if "labels" in labels.parts}
    known = {label_file(picture) for pictures in set(folders.values()) for picture in pictures_below(pictures)}
    present = {labels for folder in folders for labels in folder.rglob("*.txt") if labels.name != "classes.txt"}
    return sorted(present - known - used.keys())


def label_file(picture: Path) -> Path:
    """Where the labels of a picture are: the last folder called ``images`` on its path becomes ``labels``."""
    parts = list(picture.parts)
    places = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def read_data_file(file: Path) -> dict[str, Any]:
    """The data set's YAML file, ``names`` made a list. Raises MetamixerError where it is none."""
    content = read_yaml(file)
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        names = [names.get(str(number)) for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise MetamixerError(f"{file} needs 'names', the classes in the order of their numbers")
    return {**content, "names": distinct(names, file)}


def distinct(names: list[str], file: Path) -> list[str]:
    """The names. Raises MetamixerError where one occurs twice."""
    twice = min((name for name, count in Counter(names).items() if count > 1), default=None)
    if twice is not None:
        raise MetamixerError(f"{file} names the class {twice!r} twice")
    return names


def _instance(line: str, size: tuple[int, int], classes: int) -> Instance | Fault:
    """The object of a line, or what is wrong with the line."""
    height, width = size
    first, *rest = line.split()
    try:
        label, values = int(first), [float(value) for value in rest]
    except ValueError:
        return Fault("entry that cannot be understood", "something else than numbers")
    if not 0 <= label < classes:
        return Fault("unknown category", f"category {label} is unknown")
    if len(values) == 4:
        x, y, w, h = values
        box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
        return Instance(label, box, None, False, w * width * h * height)
    if len(values) < 6 or len(values) % 2:
        what = f"a polygon of {len(values) // 2} points" if len(values) >= 2 else "too few numbers"
        return Fault("entry that cannot be understood", what)
    polygon = [value * (height if i % 2 else width) for i, value in enumerate(values)]
    xs, ys = polygon[::2], polygon[1::2]
    area = abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2
    return Instance(label, (min(xs), min(ys), max(xs), max(ys)), [polygon], False, area)
