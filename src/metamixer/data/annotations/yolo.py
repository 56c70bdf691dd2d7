"""YOLO's text files: a line per object, ``class x y width height`` or ``class x y x y …``, in shares of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from metamixer.data.annotations.files import picture_sizes, what_is_wrong
from metamixer.data.annotations.records import Checker, Instance, ObjectSet, Picture, Policy
from metamixer.errors import MetamixerError


def read_yolo(files: Sequence[Path], source: Path, classes: Sequence[str], policy: Policy = "raise") -> ObjectSet:
    """Pictures and their label files (``…/images/NAME.jpg`` and ``…/labels/NAME.txt``, or both beside each other).

    A picture without a label file shows no object. Raises MetamixerError for bad entries where the policy says so.
    """
    checker = Checker(policy)
    pictures = []
    for file, size in zip(files, picture_sizes(files), strict=True):
        if size is None:
            checker.note(file, "", what_is_wrong(file))
            continue
        labels = label_file(file)
        instances = []
        lines = labels.read_text(errors="replace").splitlines() if labels.is_file() else []
        seen: dict[str, int] = {}
        for i, line in enumerate(lines, 1):
            line = " ".join(line.split())
            if not line:
                continue
            entry = f"line {i}"
            if line in seen:
                checker.note(labels, entry, f"the same as line {seen[line]}")
                continue
            seen[line] = i
            instance = _instance(line, size, len(classes))
            if isinstance(instance, str):
                checker.note(labels, entry, instance)
            elif sound := checker.instance(labels, entry, instance, size):
                instances.append(sound)
        pictures.append(Picture(file, size, tuple(instances)))
    return ObjectSet(pictures, tuple(classes), checker.finish(source))


def label_file(picture: Path) -> Path:
    """Where the labels of a picture are: the last folder called ``images`` on its path becomes ``labels``."""
    parts = list(picture.parts)
    places = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def read_yaml(file: Path) -> dict[str, Any]:
    """The data set's YAML file, ``names`` made a list. Raises MetamixerError where it is none."""
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise MetamixerError(f"{file} cannot be read as YAML ({' '.join(str(error).split())})") from None
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        names = [names[number] for number in sorted(names)] if sorted(names) == list(range(len(names))) else None
    if not isinstance(names, list) or not names:
        raise MetamixerError(f"{file} needs 'names', the classes in the order of their numbers")
    return {**content, "names": [str(name) for name in names]}


def _instance(line: str, size: tuple[int, int], classes: int) -> Instance | str:
    """The object of a line, or what is wrong with the line."""
    height, width = size
    first, *rest = line.split()
    try:
        label, values = int(first), [float(value) for value in rest]
    except ValueError:
        return "something else than numbers"
    if not 0 <= label < classes:
        return f"category {label} is unknown"
    if len(values) == 4:
        x, y, w, h = values
        box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
        return Instance(label, box, None, False, w * width * h * height)
    if len(values) < 6 or len(values) % 2:
        return f"a polygon of {len(values) // 2} points" if len(values) >= 2 else "too few numbers"
    polygon = [value * (height if i % 2 else width) for i, value in enumerate(values)]
    xs, ys = polygon[::2], polygon[1::2]
    area = abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2
    return Instance(label, (min(xs), min(ys), max(xs), max(ys)), [polygon], False, area)
