"""Pascal VOC's XML: one file per picture, boxes counted from pixel 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from metamixer.data.annotations.files import find_picture, look_at_all
from metamixer.data.annotations.records import Checker, Fault, Instance, ObjectSet, Picture
from metamixer.data.formats import read_xml
from metamixer.errors import MetamixerError


def read_voc(
    files: Sequence[Path],
    folders: Sequence[Path],
    source: Path,
    checker: Checker,
    classes: Sequence[str] | None = None,
) -> ObjectSet:
    """The pictures that these XML files describe.

    Args:
        files: the XML files.
        folders: where pictures are looked for, by their ``filename`` and by the XML file's own name.
        source: what to name in messages.
        checker: what collects bad entries.
        classes: names in the order of their numbers; by default those that occur, sorted. Objects that VOC marks
            difficult are taken for crowds: not learnt from, and no mistake to find.

    Raises MetamixerError for bad entries where the checker's policy says so.
    """
    trees: dict[Path, ElementTree.Element] = {}
    for file in files:
        try:
            trees[file] = read_xml(file)
        except MetamixerError as error:
            what = str(error).removeprefix(str(file)).lstrip(": ")
            checker.note(file, "", "missing or broken file of annotations", what)
    if classes is None:
        classes = sorted({name for tree in trees.values() for one in tree.iter("object") if (name := _name(one))})
    places = {file: find_picture(folders, _file_names(tree), file.stem) for file, tree in trees.items()}
    taken: dict[Path, Path] = {}
    pictures = []
    for (file, tree), seen in zip(trees.items(), look_at_all(places.values()), strict=True):
        picture, height, width = places[file], _number(tree, "size/height"), _number(tree, "size/width")
        if isinstance(seen, str):
            checker.note(file, "", "missing or broken picture", f"{picture}: {seen}")
        elif picture in taken:
            what = f"{picture} has a second file of annotations, beside {taken[picture]}"
            checker.note(file, "", "duplicate", what)
        elif size := seen.stated(height, width):
            taken[picture] = file
            pictures.append(Picture(picture, size, tuple(_instances(file, tree, size, classes, checker))))
        else:
            what = f"{picture} has {seen.size[1]} × {seen.size[0]} pixels, not {width:g} × {height:g}"
            checker.note(file, "", "picture of another size", what)
    return ObjectSet(pictures, tuple(classes), checker.finish(source))


def _instances(
    file: Path, tree: ElementTree.Element, size: tuple[int, int], classes: Sequence[str], checker: Checker
) -> list[Instance]:
    instances = []
    places: dict[Instance, int] = {}
    for i, one in enumerate(tree.iter("object"), 1):
        found = _instance(one, classes)
        if isinstance(found, Instance) and found in places:
            found = Fault("duplicate", f"the same as object {places[found]}")
        elif isinstance(found, Instance):
            places[found] = i
        if sound := checker.instance(file, f"object {i}", found, size):
            instances.append(sound)
    return instances


def _instance(one: ElementTree.Element, classes: Sequence[str]) -> Instance | Fault:
    """The object of an element, or what is wrong with it."""
    name = _name(one)
    if name not in classes:
        return Fault("unknown category", f"category {name!r} is unknown" if name else "an object without a name")
    sides = [_number(one, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    left, top, right, bottom = (float("nan") if side is None else side for side in sides)
    if right > left and bottom > top:
        left, top = left - 1, top - 1  # pixels are counted from 1, and the last belongs to the box
    crowd = one.findtext("difficult") == "1"
    return Instance(classes.index(name), (left, top, right, bottom), None, crowd, (right - left) * (bottom - top))


def _name(one: ElementTree.Element) -> str:
    return (one.findtext("name") or "").strip()


def _number(tree: ElementTree.Element, path: str) -> float | None:
    try:
        return float(tree.findtext(path) or "")
    except ValueError:
        return None


def _file_names(tree: ElementTree.Element) -> list[str]:
    name = (tree.findtext("filename") or "").strip()
    return [name] if name else []
