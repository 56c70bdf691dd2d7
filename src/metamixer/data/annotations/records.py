"""What annotations come down to, whatever format they came in, and what is done about bad ones."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from metamixer.errors import MetamixerError

notices = logging.getLogger("metamixer")

Policy = Literal["raise", "drop", "clip"]
"""What to do about bad entries: refuse the data; leave them out; or cut boxes at the picture's edge and leave out what
cannot be mended so."""
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


class Problem(NamedTuple):
    """A bad entry: the file, the entry in it (empty for the whole file), and what is wrong."""

    file: Path
    entry: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}{f', {self.entry}' if self.entry else ''}: {self.what}"


class Checker:
    """Collects bad entries while a set is read, and decides what becomes of them."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.problems: list[Problem] = []

    def note(self, file: Path, entry: str, what: str) -> None:
        self.problems.append(Problem(file, entry, what))

    def instance(self, file: Path, entry: str, instance: Instance, size: tuple[int, int]) -> Instance | None:
        """The instance if it is sound or was mended, else None."""
        height, width = size
        left, top, right, bottom = instance.box
        if not all(math.isfinite(side) for side in instance.box):
            self.note(file, entry, "a side of the box is no number")
            return None
        if right <= left or bottom <= top:
            kind = "negative" if right < left or bottom < top else "zero"
            self.note(file, entry, f"the box has {kind} width or height ({right - left:g} × {bottom - top:g})")
            return None
        inside = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            self.note(file, entry, f"the box lies outside the picture of {width} × {height} pixels")
            return None
        if max(-left, -top, right - width, bottom - height) > SLACK:
            self.note(file, entry, f"the box reaches outside the picture of {width} × {height} pixels")
            if self.policy != "clip":
                return None
        segmentation = instance.segmentation
        if isinstance(segmentation, list):
            sound = [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0]
            if len(sound) < len(segmentation) or not segmentation:
                worst = min((len(p) for p in segmentation), default=0)
                self.note(file, entry, f"a polygon of {worst // 2} points" if segmentation else "no polygon")
                if not sound or self.policy != "clip":
                    return None
            segmentation = sound
        elif isinstance(segmentation, dict) and (fault := _fault_of_code(segmentation, size)):
            self.note(file, entry, fault)
            return None
        return replace(instance, box=inside, segmentation=segmentation)

    def finish(self, source: Path) -> list[Problem]:
        """Raise MetamixerError for bad entries unless they may be left out, and log every one of them."""
        if not self.problems:
            return []
        for problem in self.problems:
            notices.warning("%s", problem)
        kinds = Counter(problem.what.partition(" (")[0].partition(" of ")[0] for problem in self.problems)
        counted = ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common(4))
        count = len(self.problems)
        if self.policy == "raise":
            raise MetamixerError(
                f"{source} has {count} bad {'entry' if count == 1 else 'entries'} ({counted}), the first is "
                f"{self.problems[0]}; leave them out with bad_entries='drop', or also cut boxes at the edge with 'clip'"
            )
        verb = "left out" if self.policy == "drop" else "mended or left out"
        notices.warning("%s: %d bad entries %s (%s)", source, count, verb, counted)
        return self.problems


def require_objects(pictures: Sequence[Picture], source: Path) -> None:
    """Raise MetamixerError for a split without pictures or without any object."""
    if not pictures:
        raise MetamixerError(f"{source} holds no usable picture")
    if not any(picture.instances for picture in pictures):
        raise MetamixerError(f"{source} holds no usable object in any of its {len(pictures)} pictures")


def _fault_of_code(code: dict[str, Any], size: tuple[int, int]) -> str | None:
    counts = code.get("counts")
    if "size" not in code or counts is None:
        return "a run-length code without counts or size"
    if list(code["size"]) != list(size):
        height, width = code["size"]
        return f"a mask of {width} × {height} pixels on a picture of another size"
    if isinstance(counts, list) and sum(counts) != size[0] * size[1]:
        return "a run-length code that does not fill its picture"
    return None
