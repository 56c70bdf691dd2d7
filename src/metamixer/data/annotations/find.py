"""Which format a folder is in, where its splits are, and its annotations."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from metamixer.data.annotations import class_maps
from metamixer.data.annotations.coco import read_coco
from metamixer.data.annotations.records import (
    Checker,
    ClassMaps,
    ObjectSet,
    Policy,
    Problem,
    require_objects,
)
from metamixer.data.annotations.voc import read_voc
from metamixer.data.annotations.yolo import distinct, read_data_file, read_yolo
from metamixer.data.files import open_regular, read_lines, read_regular
from metamixer.data.pictures import pictures_below
from metamixer.errors import MetamixerError
from metamixer.limits import ANNOTATION_BYTES, LIST_BYTES, NAMES_BYTES, YAML_BYTES
from metamixer.printing import notices

Format = Literal["auto", "coco", "voc", "yolo"]
Layout = Literal["coco", "voc", "yolo"]
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
EVERY = 5  # of a set without validation part, every fifth picture becomes it
_OTHER_JSON = ("captions", "person_keypoints", "panoptic", "stuff", "image_info", "semantic")
_EXPECTED = (
    "COCO (annotations/instances_train.json), VOC (Annotations/*.xml) or YOLO (data.yaml with images/ and labels/)"
)
_MapFolders = tuple[Path, Path, list[str] | None]  # what class_maps.locate gives


def open_objects(
    root: str | Path,
    split: str = "train",
    format: Format = "auto",
    policy: Policy = "raise",
    classes: Sequence[str] | None = None,
    masks: bool = False,
) -> ObjectSet:
    """Pictures with boxes, and masks where the format has them. Every picture is read, to know that it can be.

    Args:
        root: a folder in COCO's, VOC's or YOLO's layout.
        split: "train", "val" or "test". Where there is no validation part, every fifth training picture is "val", and
            "train" is the rest.
        format: which layout it is; found out by default.
        policy: what to do about bad entries.
        classes: names in the order of their numbers; by default what the annotations say.
        masks: masks are needed: an object without one is a bad entry.

    Raises MetamixerError for a folder in no known layout or in several, for a split that is missing or holds no object,
    and for bad entries where the policy says so.
    """
    root, kind = _folder_and_format(root, format)
    source, part = _source(root, kind, split)
    return _objects(root, kind, source, split if part else None, Checker(policy, masks), classes)


def open_objects_to_train(
    root: str | Path, format: Format = "auto", policy: Policy = "raise", masks: bool = False
) -> tuple[ObjectSet, ObjectSet]:
    """The parts "train" and "val" of :func:`open_objects`, with the classes of "train"; what is divided into both is
    read once."""
    root, kind = _folder_and_format(root, format)
    source, part = _source(root, kind, "train")
    if not part:
        train = open_objects(root, "train", kind, policy, None, masks)
        return train, open_objects(root, "val", kind, policy, train.classes, masks)
    whole = _objects(root, kind, source, None, Checker(policy, masks))
    train, val = (replace(whole, pictures=_share(whole.pictures, split, root)) for split in ("train", "val"))
    require_objects(train.pictures, root)
    require_objects(val.pictures, root)
    return train, val


def open_class_maps(
    root: str | Path,
    split: str = "train",
    policy: Policy = "raise",
    classes: Sequence[str] | None = None,
    void: int = class_maps.VOID,
    zero_is_void: bool = False,
) -> ClassMaps:
    """Pictures with a class for every pixel, from folders such as ``train/images`` and ``train/labels``,
    ``images/training`` and ``annotations/training`` (ADE20K), ``leftImg8bit/train`` and ``gtFine/train`` (Cityscapes),
    or ``JPEGImages`` and ``SegmentationClass`` with lists (VOC).

    Arguments are those of :func:`open_objects` and :func:`~metamixer.data.annotations.class_maps.read_class_maps`, and
    so is what it raises.
    """
    root = _folder(root)
    found, part = _map_folders(root, split)
    result = class_maps.read_class_maps(root, found, Checker(policy), classes, void, zero_is_void)
    return replace(result, pairs=_share(result.pairs, split, root)) if part else result


def open_class_maps_to_train(
    root: str | Path,
    policy: Policy = "raise",
    classes: Sequence[str] | None = None,
    void: int = class_maps.VOID,
    zero_is_void: bool = False,
) -> tuple[ClassMaps, ClassMaps]:
    """The parts "train" and "val" of :func:`open_class_maps`, with the classes of "train"; what is divided into both is
    read once."""
    root = _folder(root)
    found, part = _map_folders(root, "train")
    whole = class_maps.read_class_maps(root, found, Checker(policy), classes, void, zero_is_void)
    if not part:
        return whole, open_class_maps(root, "val", policy, whole.classes, void, zero_is_void)
    train, val = (replace(whole, pairs=_share(whole.pairs, split, root)) for split in ("train", "val"))
    return train, val


def find_problems(root: str | Path, kind: Literal["objects", "class maps"] | None = None) -> list[Problem]:
    """All bad entries of all splits of a folder, of boxes or of class maps; by default of what it holds. Boxes in more
    than one format are a problem of the folder, and each format is looked through. What makes a split unusable is a
    problem too, beside those of its entries.

    Raises MetamixerError for a folder that is missing or in no known layout.
    """
    root = _folder(root)
    formats = find_formats(root)
    if kind is None:
        maps = any(class_maps.locate(root, split) for split in (*SPLITS.values(), ()))
        kind = "class maps" if maps and not formats else "objects"
    problems: list[Problem] = []
    if kind == "objects" and len(formats) > 1:
        problems.append(Problem(root, "", _more_than_one(formats), "part that cannot be used"))
    layouts: list[Layout | None] = [None] if kind == "class maps" else [*formats] or [find_format(root)]
    for layout in layouts:
        classes = None
        for split in SPLITS:
            checker = Checker("clip", quiet=True)
            try:
                classes = _look_through(root, layout, split, checker, classes)
            except MetamixerError as error:
                what = str(error).removeprefix(f"{root} ")
                checker.note(root, "", "part that cannot be used", what)
            problems += checker.problems
    return list(dict.fromkeys(problems))


def _look_through(
    root: Path, layout: Layout | None, split: str, checker: Checker, classes: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """Read a split; its classes, or those given where there are. No test part is no fault."""
    if layout is None:
        if split == "test" and class_maps.locate(root, SPLITS["test"]) is None:
            return classes
        found, part = _map_folders(root, split)
        maps = class_maps.read_class_maps(root, found, checker, classes)
        if part:
            _share(maps.pairs, split, root)
        return maps.classes
    if split == "test" and _locate(root, layout, SPLITS["test"]) is None:
        return classes
    source, part = _source(root, layout, split)
    return _objects(root, layout, source, split if part else None, checker, classes).classes


def _objects(
    root: Path, kind: str, source: Any, part: str | None, checker: Checker, classes: Sequence[str] | None = None
) -> ObjectSet:
    """What is in ``source``, or ``part`` of it."""
    if kind == "coco":
        result = read_coco(source, _picture_folders(root, source), checker, classes)
    elif kind == "voc":
        result = read_voc(source, _voc_pictures(root, source), root, checker, classes)
    else:
        result = read_yolo(source, root, classes or _yolo_classes(root), checker)
    named = source if isinstance(source, Path) else root
    require_objects(result.pictures, named)
    if part:
        result = replace(result, pictures=_share(result.pictures, part, root))
        require_objects(result.pictures, named)
    return result


def find_format(root: Path) -> Layout:
    """The layout of a folder. Raises MetamixerError where it is none of those known, or several."""
    found = find_formats(root)
    if not found:
        raise MetamixerError(f"{root} holds no boxes in a known layout: {_EXPECTED}")
    if len(found) > 1:
        raise MetamixerError(f"{root} holds {_more_than_one(found)}")
    return found[0]


def _more_than_one(formats: Sequence[str]) -> str:
    return f"annotations in more than one format ({' and '.join(formats)}); choose one with format"


def find_formats(root: Path) -> list[Layout]:
    """All layouts of boxes that a folder holds."""
    found: list[Layout] = []
    if _coco_files(root):
        found.append("coco")
    if _voc_files(root, None):
        found.append("voc")
    if _yaml_file(root) or (os.path.isfile(root / "classes.txt") and any(root.rglob("labels/**/*.txt"))):
        found.append("yolo")
    return found


def _folder_and_format(root: str | Path, format: Format) -> tuple[Path, Layout]:
    root = _folder(root)
    return root, find_format(root) if format == "auto" else format


def _folder(root: str | Path) -> Path:
    root = Path(root)
    if not os.path.isdir(root):
        raise MetamixerError(f"{root}: no such folder")
    return root


def _names(split: str) -> tuple[str, ...]:
    if split not in SPLITS:
        raise MetamixerError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    return SPLITS[split]


def _map_folders(root: Path, split: str) -> tuple[_MapFolders, bool]:
    """Where the split's class maps are, and whether only a part of what is there belongs to it."""
    found = class_maps.locate(root, _names(split))
    part = found is None or (split == "train" and class_maps.locate(root, SPLITS["val"]) is None)
    if found is None and split == "val":
        found = class_maps.locate(root, SPLITS["train"])
    if found is None and split != "test" and not any(class_maps.locate(root, names) for names in SPLITS.values()):
        found = class_maps.locate(root, ())
    if found is None:
        raise MetamixerError(
            f"{root} holds no class maps for {split!r}; they are expected as {split}/images and {split}/labels, or "
            f"images/{split} and annotations/{split}"
        )
    return found, part


def _source(root: Path, kind: str, split: str) -> tuple[Any, bool]:
    """Where the split's annotations are, and whether only a part of what is there belongs to it."""
    own = _locate(root, kind, _names(split))
    if own is not None and (split != "train" or _locate(root, kind, SPLITS["val"]) is not None):
        return own, False
    if split != "test":
        shared = _locate(root, kind, SPLITS["train"])
        if shared is None and not any(_locate(root, kind, names) for names in SPLITS.values()):
            shared = _locate(root, kind, None)
        if shared is not None:
            notices.info("%s has no validation part: every fifth picture is taken for it", root)
            return shared, True
    raise MetamixerError(f"{root} has no split {split!r} in the layout of {kind}")


def _locate(root: Path, kind: str, names: Sequence[str] | None) -> Any:
    if kind == "coco":
        return _coco_file(root, names)
    files = _voc_files(root, names) if kind == "voc" else _yolo_pictures(root, names)
    return files or None


def _share(items: list[Any], split: str, root: Path) -> list[Any]:
    """Every fifth item for "val", the others for "train"."""
    if len(items) < EVERY:
        what = f"{len(items)} usable {'picture' if len(items) == 1 else 'pictures'}, too few to set some aside"
        raise MetamixerError(f"{root} has no validation part, and {what} for it; add a val part or more pictures")
    return [item for i, item in enumerate(items) if (i % EVERY == EVERY - 1) == (split == "val")]


# COCO


def _coco_files(root: Path) -> list[Path]:
    folders = [root, root / "annotations", *(root / name for names in SPLITS.values() for name in names)]
    found = [
        file for folder in dict.fromkeys(folders) for file in sorted(folder.glob("*.json")) if os.path.isfile(file)
    ]
    return [file for file in found if not file.name.startswith(_OTHER_JSON) and _mentions(file, b'"images"')]


def _mentions(file: Path, key: bytes) -> bool:
    """Whether the file names a key, read in pieces: COCO's own are hundreds of megabytes."""
    with open_regular(file, ANNOTATION_BYTES, "annotations") as stream:
        tail = b""
        while piece := stream.read(1 << 20):
            if key in tail + piece:
                return True
            tail = piece[-len(key) :]
    return False


def _coco_file(root: Path, names: Sequence[str] | None) -> Path | None:
    files = _coco_files(root)
    for name in names or ("",):
        pattern = re.compile(rf"(^|[^a-z]){name}([^a-z]|$)")
        own = [f for f in files if not name or pattern.search(f.stem.lower()) or f.parent.name == name]
        preferred = [file for file in own if file.name.startswith("instances")] or own
        if len(preferred) > 1:
            raise MetamixerError(
                f"{root} holds several annotation files{f' for {name}' if name else ''} "
                f"({', '.join(file.name for file in preferred)}); keep one, or name it instances_{name or 'train'}.json"
            )
        if preferred:
            return preferred[0]
    return None


def _picture_folders(root: Path, file: Path) -> list[Path]:
    word = re.search(r"(train|val|test)[a-z]*\d*", file.stem.lower())
    names = [word.group(0), word.group(1)] if word else []
    names += [name for split in SPLITS.values() for name in split]
    folders = [file.parent, root, root / "images", *(base / name for name in names for base in (root, root / "images"))]
    return [folder for folder in dict.fromkeys(folders) if os.path.isdir(folder)]


# VOC


def _voc_bases(root: Path) -> list[Path]:
    return [folder.parent for pattern in ("", "*/", "*/*/") for folder in sorted(root.glob(f"{pattern}Annotations"))]


def _voc_files(root: Path, names: Sequence[str] | None) -> list[Path]:
    bases = _voc_bases(root)
    everything = [file for base in bases for file in sorted((base / "Annotations").glob("*.xml"))]
    if names is None:
        splits = [root / name for split in SPLITS.values() for name in split]
        return everything or [file for folder in dict.fromkeys(splits) for file in sorted(folder.rglob("*.xml"))]
    for name in names:
        listed = [(base, base / "ImageSets" / "Main" / f"{name}.txt") for base in bases]
        files = [
            base / "Annotations" / f"{line.split()[0]}.xml"
            for base, file in listed
            if os.path.lexists(file)
            for line in read_lines(file, LIST_BYTES, "a list of pictures")
        ]
        if files or (files := sorted((root / name).rglob("*.xml"))):
            return files
    return []


def _voc_pictures(root: Path, files: Sequence[Path]) -> list[Path]:
    folders = [base / name for base in _voc_bases(root) for name in ("JPEGImages", "images", ".")]
    folders += [file.parent for file in files]
    folders += [file.parent.parent / "images" for file in files]
    return [folder for folder in dict.fromkeys(folders) if os.path.isdir(folder)] or [root]


# YOLO


def _yaml_file(root: Path) -> Path | None:
    files = [*sorted(root.glob("*.yaml")), *sorted(root.glob("*.yml"))]
    names = re.compile(rb"^names\s*:", re.M)
    return next((file for file in files if names.search(read_regular(file, YAML_BYTES, "YAML"))), None)


def _yolo_classes(root: Path) -> list[str]:
    file = _yaml_file(root)
    if file is not None:
        return list(read_data_file(file)["names"])
    listed = root / "classes.txt"
    return distinct(read_lines(listed, NAMES_BYTES, "class names"), listed)


def _yolo_pictures(root: Path, names: Sequence[str] | None) -> list[Path]:
    if names is None:
        return pictures_below(root / "images") if os.path.isdir(root / "images") else []
    file = _yaml_file(root)
    content = read_data_file(file) if file else {}
    base = root / str(content.get("path") or ".")
    for name in names:
        if stated := content.get(name):
            try:
                return [picture for one in _listed(stated) for picture in _yolo_place(one, base, root)]
            except ValueError:
                raise MetamixerError(f"{file} states {name}: {stated}, where there are no pictures") from None
        for place in (root / "images" / name, root / name / "images", root / name):
            if os.path.isdir(place) and (found := pictures_below(place)):
                return found
    return []


def _listed(stated: Any) -> list[Any]:
    return stated if isinstance(stated, list) else [stated]


def _yolo_place(stated: Any, base: Path, root: Path) -> list[Path]:
    """The pictures in a folder, or of a list of them. Raises ValueError where there is no such thing."""
    inside = re.sub(r"^(\.\./)+", "", str(stated))  # some tools write paths as seen from another folder
    for place in (base / inside, root / inside, base / str(stated)):
        if place.suffix == ".txt" and os.path.isfile(place):
            lines = read_lines(place, LIST_BYTES, "a list of pictures")
            return [file if (file := Path(line)).is_absolute() else place.parent / file for line in lines]
        if os.path.isdir(place) and (found := pictures_below(place)):
            return found
    raise ValueError(stated)
