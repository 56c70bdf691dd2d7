"""Pascal VOC's XML: one file per picture, boxes counted from pixel 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from metamixer.data.annotations.files import picture_sizes, what_is_wrong
from metamixer.data.annotations.records import Checker, Instance, ObjectSet, Picture, Policy


def read_voc(
    files: Sequence[Path],
    folders: Sequence[Path],
    source: Path,
    policy: Policy = "raise",
    classes: Sequence[str] | None = None,
) -> ObjectSet:
    """The pictures that these XML files describe.

    Args:
        files: the XML files.
        folders: where pictures are looked for, by their ``filename`` and by the XML file's own name.
        source: what to name in messages.
        policy: what to do about bad entries.
        classes: names in the order of their numbers; by default those that occur, sorted. Objects that VOC marks
            difficult are taken for crowds: not learnt from, and no mistake to find.

    Raises MetamixerError for bad entries where the policy says so.
    """
    checker = Checker(policy)
    trees: dict[Path, ElementTree.Element] = {}
    pictures_of: dict[Path, Path] = {}
    for file in files:
        if not file.is_file():
            checker.note(file, "", "no such file")
            continue
        try:
            trees[file] = ElementTree.parse(file).getroot()
        except (ElementTree.ParseError, ValueError) as error:
            checker.note(file, "", f"cannot be read as XML ({error})")
            continue
        pictures_of[file] = _find(trees[file].findtext("filename") or "", file.stem, folders)
    if classes is None:
        classes = sorted({one.findtext("name") or "" for tree in trees.values() for one in tree.iter("object")})
    sizes = dict(zip(trees, picture_sizes(pictures_of.values()), strict=True))
    taken: dict[Path, Path] = {}
    pictures = []
    for file, tree in trees.items():
        picture, size = pictures_of[file], sizes[file]
        if size is None:
            checker.note(file, "", f"{picture}: {what_is_wrong(picture)}")
            continue
        if picture in taken:
            checker.note(file, "", f"{picture} has a second file of annotations, beside {taken[picture]}")
            continue
        taken[picture] = file
        stated = (_number(tree, "size/height"), _number(tree, "size/width"))
        if stated[0] and stated[1] and stated not in (size, size[::-1]):  # some tools write a size of 0 × 0
            checker.note(file, "", f"{picture} has {size[1]} × {size[0]} pixels, not {stated[1]:g} × {stated[0]:g}")
            continue
        instances = []
        for i, one in enumerate(tree.iter("object"), 1):
            entry, name = f"object {i}", one.findtext("name")
            if name not in classes:
                checker.note(file, entry, f"category {name!r} is unknown")
                continue
            sides = [_number(one, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
            left, top, right, bottom = (float("nan") if side is None else side for side in sides)
            if right > left and bottom > top:
                left, top = left - 1, top - 1  # pixels are counted from 1, and the last belongs to the box
            box = (left, top, right, bottom)
            area = (right - left) * (bottom - top)
            crowd = one.findtext("difficult") == "1"
            if sound := checker.instance(file, entry, Instance(classes.index(name), box, None, crowd, area), size):
                instances.append(sound)
        pictures.append(Picture(picture, size, tuple(instances)))
    return ObjectSet(pictures, tuple(classes), checker.finish(source))


def _number(tree: ElementTree.Element, path: str) -> float | None:
    try:
        return float(tree.findtext(path) or "")
    except ValueError:
        return None


def _find(name: str, stem: str, folders: Sequence[Path]) -> Path:
    names = [name] if name else []
    names += [f"{stem}{ending}" for ending in (".jpg", ".jpeg", ".png", ".JPG", ".bmp", ".webp")]
    tried = [folder / one for folder in folders for one in names]
    return next((file for file in tried if file.is_file()), tried[0])
