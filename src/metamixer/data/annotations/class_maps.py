"""Class maps: a PNG per picture whose values are class numbers, or colours with a table of them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from metamixer.data.annotations.files import find_picture, in_threads, look_at
from metamixer.data.annotations.records import Checker, ClassMaps, Fault, Kind
from metamixer.data.files import read_lines, read_text
from metamixer.data.pictures import opened_picture, pictures_below, why_unreadable
from metamixer.errors import MetamixerError
from metamixer.limits import LIST_BYTES, NAMES_BYTES
from metamixer.printing import notices

VOID = 255  # the label of pixels that belong to no class, here and wherever class maps are met
PICTURES = ("images", "image", "img", "leftImg8bit", "JPEGImages")
MAPS = ("masks", "mask", "labels", "label", "annotations", "annots", "gtFine", "SegmentationClass", "gt")
_CITYSCAPES_PICTURE, _CITYSCAPES_MAP = "_leftImg8bit", "_labelTrainIds"


def locate(root: Path, split: Sequence[str]) -> tuple[Path, Path, list[str] | None] | None:
    """Folders of pictures and of class maps of a split (by any of its names), and the list of its pictures where a
    list says which they are; None where there are none. An empty ``split`` means a folder that is not split."""
    for base in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        for name in split:
            listed = base / "ImageSets" / "Segmentation" / f"{name}.txt"
            if os.path.lexists(listed) and os.path.isdir(base / "SegmentationClass"):
                names = [line.split()[0] for line in read_lines(listed, LIST_BYTES, "a list of pictures")]
                return base / "JPEGImages", base / "SegmentationClass", names
    tried: list[tuple[Path, Path]] = []
    for name in split:
        tried += [(root / name / one, root / name / other) for one in PICTURES for other in MAPS]
        tried += [(root / one / name, root / other / name) for one in PICTURES for other in MAPS]
        tried += [(root / name, root / f"{name}{ending}") for ending in ("annot", "_labels", "_masks")]
    if not split:
        tried += [(root / one, root / other) for one in PICTURES for other in MAPS]
    for pictures, maps in tried:
        if os.path.isdir(pictures) and os.path.isdir(maps) and pictures_below(pictures) and pictures_below(maps):
            return pictures, maps, None
    return None


def read_class_maps(
    root: Path,
    found: tuple[Path, Path, list[str] | None],
    checker: Checker,
    classes: Sequence[str] | None = None,
    void: int = VOID,
    zero_is_void: bool = False,
) -> ClassMaps:
    """Pairs of pictures and class maps, every one of them read.

    Args:
        root: the data set's folder, which may hold the classes' names: ``classes.txt`` with one a line,
            ``class_dict.csv`` with ``name,r,g,b`` for coloured maps, or ADE20K's ``objectInfo150.txt``.
        found: what :func:`locate` gave.
        checker: what collects bad entries; none of these can be clipped.
        classes: names in the order of their numbers; by default what the folder says, else as many numbers as occur.
        void: the value of pixels without a class, beside 255.
        zero_is_void: 0 is void too, and the first class is 1.

    Raises MetamixerError where nothing is left, for fewer than two classes, and for bad entries where the checker's
    policy says so. Classes that never occur are noted in the log, unless ``classes`` says which there are.
    """
    pictures, maps, names = found
    said, colours = _classes_of(root)
    known = tuple(classes) if classes is not None else said
    result = ClassMaps(_pairs(pictures, maps, names, checker), known or (), colours, void, zero_is_void)
    if not result.pairs and not checker.problems:
        raise MetamixerError(f"{pictures} holds no pictures")
    looked = in_threads(lambda pair: _look(pair, result), result.pairs, "reading class maps")
    values: set[int] = set().union(*(found for found in looked if isinstance(found, set))) - {VOID}
    if known is None:
        known = tuple(str(i) for i in range(max(values, default=-1) + 1))
    if len(known) > VOID:
        raise MetamixerError(f"{maps}: {len(known)} classes are more than the 255 that a class map can tell apart")
    kept: list[tuple[Path, Path]] = []
    for pair, seen in zip(result.pairs, looked, strict=True):
        if isinstance(seen, Fault):
            checker.note(pair[1], "", *seen)
        elif above := sorted(value for value in seen - {VOID} if value >= len(known)):
            shift = int(zero_is_void)
            stated = ", ".join(str(value + shift) for value in above[:5])
            what = f"label {stated} above the class count (with {len(known)} classes)"
            checker.note(pair[1], "", "label above the class count", what)
        else:
            kept.append(pair)
    problems = checker.finish(root)
    if not kept:
        raise MetamixerError(f"{pictures} holds no usable picture")
    if not values:
        raise MetamixerError(f"{maps}: every pixel is void ({void} or 255); class maps hold 0, 1, 2 …")
    if len(known) < 2:
        raise MetamixerError(
            f"{maps}: {known[0]!r} is the only class, and two are needed; 255 is void, not a class: masks of 0 and 255 "
            "must be written as 0 and 1"
        )
    never = [name for number, name in enumerate(known) if number not in values and number != void]
    if never and classes is None and not checker.quiet:
        listed = ", ".join(never[:5]) + (" …" if len(never) > 5 else "")
        notices.warning("%s: %d of %d classes never occur (%s)", maps, len(never), len(known), listed)
    return replace(result, pairs=kept, classes=known, problems=problems)


def read_class_map(file: Path, maps: ClassMaps) -> np.ndarray:
    """``H × W``, uint8: class numbers, and 255 for void. Raises MetamixerError where the file cannot be understood."""
    try:
        with opened_picture(file) as picture:
            values = np.asarray(picture)
    except MetamixerError:
        raise
    except Exception as error:  # damaged bytes make decoders raise nearly anything
        raise MetamixerError(f"{file} cannot be read as a class map ({why_unreadable(error)})") from None
    if values.ndim == 3:
        return _read_colours(file, values, maps)
    labels = values.astype(np.int64)
    void = (labels == maps.void) | (labels == VOID)
    if maps.zero_is_void:
        void |= labels == 0
    known = values[~void]
    if known.size and not (known.min() >= 0 and known.max() < VOID and (known == labels[~void]).all()):
        unfit = known.min() if known.min() < 0 else known.max()
        raise MetamixerError(f"{file} holds the label {unfit}; class maps hold whole numbers from 0 to 254")
    return np.where(void, VOID, labels - int(maps.zero_is_void)).astype(np.uint8)


def _read_colours(file: Path, values: np.ndarray, maps: ClassMaps) -> np.ndarray:
    if maps.colours is None:
        raise MetamixerError(f"{file} is coloured; its folder needs a class_dict.csv with name,r,g,b")
    if values.shape[2] < 3:
        raise MetamixerError(f"{file} is grey with transparency; class maps hold numbers or colours")
    code = values[..., :3].astype(np.int64) @ [65536, 256, 1]
    labels = np.full(code.shape, VOID, np.uint8)
    for number, (red, green, blue) in enumerate(maps.colours):
        labels[code == red * 65536 + green * 256 + blue] = number
    unknown = np.unique(code[labels == VOID])
    if len(unknown):
        listed = " and ".join(f"{one >> 16}, {one >> 8 & 255}, {one & 255}" for one in unknown[:3].tolist())
        more = " …" if len(unknown) > 3 else ""
        raise MetamixerError(f"{file} holds colours that are not in class_dict.csv: {listed}{more}")
    return np.where(labels == maps.void, VOID, labels).astype(np.uint8)


def _look(pair: tuple[Path, Path], maps: ClassMaps) -> set[int] | Fault:
    """The values that occur, or what is wrong."""
    picture, file = pair
    seen = look_at(picture)
    if isinstance(seen, str):
        return Fault("missing or broken picture", f"its picture {picture}: {seen}")
    try:
        labels = read_class_map(file, maps)
    except MetamixerError as error:
        return Fault("unusable class map", str(error).removeprefix(f"{file} "))
    if labels.shape not in seen:
        (height, width), size = labels.shape, seen.size
        what = f"a mask of {width} × {height} pixels on a picture of {size[1]} × {size[0]}"
        return Fault("picture of another size", what)
    return set(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist())


def _pairs(pictures: Path, maps: Path, names: list[str] | None, checker: Checker) -> list[tuple[Path, Path]]:
    unmatched: Kind = "annotations and picture that do not match"
    files: dict[str, Path] = {}
    if names is None:
        for file in pictures_below(pictures):
            if (first := files.setdefault(_key(file, pictures), file)) != file:
                checker.note(file, "", "duplicate", f"the same name as {first}")
    else:
        files = {name: find_picture([pictures], stem=name) for name in names}
    exact: dict[str, Path] = {}
    longer: dict[str, list[Path]] = {}  # by every beginning of their name: `a_mask` belongs to the picture `a`
    for file in pictures_below(maps):
        key = _key(file, maps)
        exact[key] = file
        words = key.split("_")
        for i in range(1, len(words)):
            longer.setdefault("_".join(words[:i]), []).append(file)
    pairs = []
    used = set()
    for key, file in files.items():
        candidates = [exact[key]] if key in exact else longer.get(key, [])
        if len(candidates) > 1:
            candidates = [one for one in candidates if one.stem.endswith(_CITYSCAPES_MAP)] or candidates
        if len(candidates) != 1:
            said = f"{len(candidates)} class maps, such as {candidates[0].name}" if candidates else "no class map"
            checker.note(file, "", unmatched, f"{said} in {maps}")
            continue
        used.add(candidates[0])
        pairs.append((file, candidates[0]))
    if names is None:
        unused = [key for key, file in exact.items() if file not in used and _CITYSCAPES_MAP not in file.stem]
        if not any(one.stem.endswith(_CITYSCAPES_MAP) for one in used):  # Cityscapes has three more beside each
            for key in unused:
                checker.note(exact[key], "", unmatched, f"a class map without its picture in {pictures}")
    return pairs


def _key(file: Path, folder: Path) -> str:
    return str(file.relative_to(folder).with_suffix("")).removesuffix(_CITYSCAPES_PICTURE)


def _classes_of(root: Path) -> tuple[tuple[str, ...] | None, tuple[tuple[int, int, int], ...] | None]:
    """Names and colours that the folder states."""
    table, listed, ade = root / "class_dict.csv", root / "classes.txt", root / "objectInfo150.txt"
    if os.path.lexists(table):
        try:
            text = read_text(table, NAMES_BYTES, "class names")
            rows = [row for row in csv.reader(io.StringIO(text)) if len(row) >= 4 and row[1].strip().isdigit()]
            colours = tuple((int(row[1]), int(row[2]), int(row[3])) for row in rows)
        except (ValueError, csv.Error) as error:
            raise MetamixerError(f"{table} cannot be read as class names ({error})") from None
        if not rows or not all(0 <= value <= 255 for colour in colours for value in colour):
            raise MetamixerError(f"{table} needs lines of name,r,g,b, with colours from 0 to 255")
        return tuple(row[0] for row in rows), colours
    if os.path.lexists(listed):
        return tuple(read_lines(listed, NAMES_BYTES, "class names")), None
    if os.path.lexists(ade):
        lines = read_lines(ade, NAMES_BYTES, "class names")[1:]
        return tuple(line.split("\t")[-1].split(",")[0].strip() for line in lines), None
    return None, None
