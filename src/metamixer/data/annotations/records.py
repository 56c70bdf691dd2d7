"""What annotations come down to, whatever format they came in, and what is done about bad ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from metamixer.data.annotations.shapes import fault_of_mask, fault_of_polygon
from metamixer.errors import MetamixerError
from metamixer.printing import notices

Policy = Literal["raise", "drop", "clip"]
"""What to do about bad entries: refuse the data; leave them out; or cut boxes at the picture's edge and leave out what
cannot be mended so."""
Kind = Literal[
    "missing or broken picture",
    "missing or broken file of annotations",
    "annotations and picture that do not match",
    "picture of another size",
    "entry that cannot be understood",
    "duplicate",
    "unknown picture",
    "unknown category",
    "box without area",
    "box outside its picture",
    "unusable mask",
    "object without a mask",
    "unusable class map",
    "label above the class count",
    "part that cannot be used",
]
"""What bad entries are counted by."""
Box = tuple[float, float, float, float]
SLACK = 1.0  # pixels by which a box may leave the picture unremarked: rounding, and formats that count from 1


@dataclass(frozen=True)
class Instance:
    """One object.

    Attributes:
        label: class number, from 0.
        box: left, top, right and bottom in pixels, inside the picture.
        segmentation: polygons (``[[x, y, x, y …], …]``) or a run-length code, as in COCO; None where there is no mask.
        crowd: a group that is not told apart: not learnt from, and no mistake to find.
        area: of the object in pixels, by which COCO's metric sorts into small, medium and large.
    """

    label: int
    box: Box
    segmentation: Any = None
    crowd: bool = False
    area: float = 0.0


@dataclass(frozen=True)
class Picture:
    """A picture's file, its height and width in pixels, and its objects."""

    file: Path
    size: tuple[int, int]
    instances: tuple[Instance, ...] = ()


@dataclass(frozen=True)
class ObjectSet:
    """Pictures with objects; ``problems`` is what was left out or mended."""

    pictures: list[Picture]
    classes: tuple[str, ...]
    problems: list[Problem] = field(default_factory=list, compare=False)

    @property
    def has_masks(self) -> bool:
        """Whether every object that is no crowd has a mask."""
        return all(one.segmentation is not None for p in self.pictures for one in p.instances if not one.crowd)


@dataclass(frozen=True)
class ClassMaps:
    """Pairs of a picture's file and that of its class map.

    Attributes:
        colours: ``red, green, blue`` of every class where maps are coloured pictures; None where they hold numbers.
        void: the number in the files of pixels without a class, beside 255.
        zero_is_void: 0 is void too, and the first class is 1 in the files.
    """

    pairs: list[tuple[Path, Path]]
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...] | None = None
    void: int = 255
    zero_is_void: bool = False
    problems: list[Problem] = field(default_factory=list, compare=False)


class Fault(NamedTuple):
    """What is wrong with something, in a word and in a sentence."""

    kind: Kind
    what: str


class Problem(NamedTuple):
    """A bad entry: the file, the entry in it (empty for the whole file), what is wrong, and what it is counted as."""

    file: Path
    entry: str
    what: str
    kind: Kind

    def __str__(self) -> str:
        return f"{self.file}{f', {self.entry}' if self.entry else ''}: {self.what}"


class Checker:
    """Collects bad entries while a set is read, and decides what becomes of them.

    Args:
        policy: what to do about them.
        masks: an object without a mask is one.
        quiet: log nothing.
    """

    def __init__(self, policy: Policy, masks: bool = False, quiet: bool = False) -> None:
        self.policy = policy
        self.masks = masks
        self.quiet = quiet
        self.problems: list[Problem] = []
        self.masked = 0  # objects with a sound mask

    def note(self, file: Path, entry: str, kind: Kind, what: str) -> None:
        self.problems.append(Problem(file, entry, what, kind))

    def instance(self, file: Path, entry: str, found: Instance | Fault, size: tuple[int, int]) -> Instance | None:
        """The instance if it is sound or was mended, else None; all that is wrong with it is noted."""
        if isinstance(found, Fault):
            self.note(file, entry, *found)
            return None
        fault = _fault_of_box(found.box, size)
        if fault is not None:
            self.note(file, entry, *fault)
            return None
        height, width = size
        left, top, right, bottom = found.box
        if max(-left, -top, right - width, bottom - height) > SLACK:
            what = f"the box reaches outside the picture of {width} × {height} pixels"
            self.note(file, entry, "box outside its picture", what)
            if self.policy != "clip":
                return None
        segmentation = found.segmentation
        if segmentation is None and self.masks and not found.crowd:
            self.note(file, entry, "object without a mask", "the object has no mask")
            return None
        if segmentation is not None:
            if unfit := fault_of_mask(segmentation, size):
                self.note(file, entry, "unusable mask", unfit)
                polygons = segmentation if isinstance(segmentation, list) else []
                segmentation = [polygon for polygon in polygons if not fault_of_polygon(polygon, size)]
                if not segmentation or self.policy != "clip":
                    return None
            self.masked += 1
        inside = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
        return replace(found, box=inside, segmentation=segmentation)

    def finish(self, source: Path) -> list[Problem]:
        """Raise MetamixerError for bad entries unless they may be left out, and log every one of them."""
        if not self.problems:
            return []
        if self.masks and not self.masked:
            raise MetamixerError(f"{source} holds no mask to learn from; a head that finds boxes alone needs none")
        counts = Counter(problem.kind for problem in self.problems)
        counted = ", ".join(f"{count} × {kind}" for kind, count in counts.most_common())
        count = len(self.problems)
        if not self.quiet:
            for problem in self.problems:
                notices.warning("%s", problem)
        if self.policy == "raise":
            raise MetamixerError(
                f"{source} has {count} bad {'entry' if count == 1 else 'entries'} ({counted}), the first is "
                f"{self.problems[0]}; leave them out with bad_entries='drop', or also cut boxes at the edge with 'clip'"
            )
        if not self.quiet:
            verb = "left out" if self.policy == "drop" else "mended or left out"
            notices.warning("%s: %d bad entries %s (%s)", source, count, verb, counted)
        return self.problems


def require_objects(pictures: Sequence[Picture], source: Path) -> None:
    """Raise MetamixerError for a split without pictures or without any object."""
    if not pictures:
        raise MetamixerError(f"{source} holds no usable picture")
    if not any(picture.instances for picture in pictures):
        raise MetamixerError(f"{source} holds no usable object in any of its {len(pictures)} pictures")


def _fault_of_box(box: Box, size: tuple[int, int]) -> Fault | None:
    (left, top, right, bottom), (height, width) = box, size
    if not all(math.isfinite(side) for side in box):
        return Fault("entry that cannot be understood", "a side of the box is no number")
    if right <= left or bottom <= top:
        sign = "negative" if right < left or bottom < top else "zero"
        what = f"the box has {sign} width or height ({right - left:g} × {bottom - top:g})"
        return Fault("box without area", what)
    if min(right, width) <= max(left, 0) or min(bottom, height) <= max(top, 0):
        return Fault("box outside its picture", f"the box lies outside the picture of {width} × {height} pixels")
    return None
