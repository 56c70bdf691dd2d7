"""What is the most, and the least, of everything: typed ranges for settings, bytes of files, and memory.

A parameter or field that is annotated with one of the ranges below is checked where :func:`checked` or
:func:`check_settings` stands, be it a Python function, a dataclass of settings or a verb of the command line. The
ranges are plain pydantic types, so schemas of files use the same ones.
"""

from __future__ import annotations

import functools
import inspect
import os
import reprlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from metamixer.errors import MetamixerError, SettingError

# Ranges of settings. The upper ends are far above what is of use, and low enough that what they count fits somewhere.
Side = Annotated[int, Field(ge=1, le=8192)]  # pixels, of a network's input
TrainingSide = Annotated[int, Field(ge=16, le=8192)]  # pixels; below 16 nothing is left behind the stem
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
TrainingBatch = Annotated[int, Field(ge=2, le=65_536)]  # batch norm needs two pictures
Workers = Annotated[int, Field(ge=0, le=256)]  # processes that read
Threads = Annotated[int, Field(ge=1, le=1024)]
Epochs = Annotated[int, Field(ge=1, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]  # NumPy's end at 2³²; further processes and trainings count from it
Count = Annotated[int, Field(ge=1, le=1_000_000)]
CountOrNone = Annotated[int, Field(ge=0, le=1_000_000)]
Upscaling = Annotated[int, Field(ge=2, le=4)]  # by which super-resolution enlarges
Points = Annotated[int, Field(ge=2, le=100_000_000)]  # of a cloud
Width = Annotated[int, Field(ge=1, le=16_384)]  # channels
Depth = Annotated[int, Field(ge=0, le=128)]  # blocks one after the other, as of a stage
Kernel = Annotated[int, Field(ge=1, le=1023)]
Ratio = Annotated[int, Field(ge=1, le=256)]  # of a hidden width to the outer one
Steps = Annotated[int, Field(ge=0, le=2**31 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
ShareAboveZero = Annotated[float, Field(gt=0, le=1)]
Scale = Annotated[float, Field(gt=0, le=64)]  # a size as a multiple of another
Magnitude = Annotated[float, Field(ge=0, le=10)]  # of an augmentation
Positive = Annotated[float, Field(gt=0, le=1e38)]  # what float32 holds
NotNegative = Annotated[float, Field(ge=0, le=1e38)]
PixelValue = Annotated[int, Field(ge=0, le=65_535)]  # of a picture with one channel
Text = Annotated[str, Field(min_length=1, max_length=4096)]

MOST_CLASSES = 1_000_000

# Bytes of a file, by what it is. Public files of the kind are well below: COCO's annotations have 0.45 GB, LVIS's 1.1.
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PICTURE_BYTES = 1 * GIB
ANNOTATION_BYTES = 4 * GIB  # one JSON for a whole set
LABEL_BYTES = 16 * MIB  # the labels of one picture, XML or text
LIST_BYTES = 256 * MIB  # a line per picture
NAMES_BYTES = 64 * MIB  # a line per class
YAML_BYTES = 1 * MIB
YAML_VALUES = 1_000_000  # aliases counted as what they stand for
CONFIG_BYTES = 16 * MIB  # settings and records that we wrote ourselves
TABLE_BYTES = 2 * GIB  # CSV
CLOUD_BYTES = 16 * GIB
CHECKPOINT_BYTES = 256 * GIB
ANY_BYTES = 1 << 62  # what is never read whole: shards, videos, archives

NESTING = 100  # levels of lists and mappings in a file
LINE_CHARACTERS = 1 * MIB  # of text that is read by lines
SHARDS = 100_000  # files that a range in braces stands for


def in_words(count: float) -> str:
    """``3.2 GB`` and the like."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


# --- Memory ----------------------------------------------------------------------------------------------------------


_MEMBERSHIP, _CONTROL_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
BYTES_PER_PIXEL = 64  # of a picture in a network: the smallest take 76 to 124 (measured at 1536 × 1536)


def available_memory() -> int | None:
    """Bytes that this process may still take, by the system and by the control groups it is in; None if unknown."""
    found = [_free_in_system(), *_free_in_group()]
    return min((free for free in found if free is not None), default=None)


def require_memory(needed: int, what: str) -> None:
    """Raise MetamixerError where ``what`` needs more bytes than there are; to be asked before they are taken."""
    free = available_memory()
    if free is not None and needed > free:
        raise MetamixerError(
            f"too little memory for {what}: {in_words(needed)} or more are needed, and {in_words(free)} are free"
        )


def require_memory_for_pictures(count: int, height: int, width: int, at_once: int = 1) -> None:
    """Raise MetamixerError where pictures, and what the smallest networks make of them, do not fit into memory.

    Args:
        count: pictures that are held as float32.
        height, width: in pixels.
        at_once: how many of them a network works on in main memory.
    """
    needed = height * width * (12 * count + BYTES_PER_PIXEL * at_once)
    require_memory(needed, f"{count} {'picture' if count == 1 else 'pictures'} of {width} × {height} pixels")


def _free_in_system() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * KIB
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _free_in_group() -> Iterator[int]:
    """In every control group around this process that has a limit; what the page cache holds there can be freed."""
    for group, most, used, cache in _groups():
        try:
            limit, taken = (int((group / name).read_text(encoding="ascii")) for name in (most, used))
            lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
            held = next((int(line.split()[1]) for line in lines if line.startswith(f"{cache} ")), 0)
        except (OSError, ValueError):  # no such group, or "max"
            continue
        yield max(0, limit - taken + held)


def _groups() -> Iterator[tuple[Path, str, str, str]]:
    """Folders of the control groups, the process's own first, and the files there that say the limit, what is taken,
    and which line of ``memory.stat`` is cache: of version 2, and of version 1, whose memory has a tree of its own."""
    try:
        said = _MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        said = []
    for line in dict.fromkeys([*said, "0::/", "0:memory:/"]):  # a container may see its own group as the root
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            root, names = _CONTROL_GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = _CONTROL_GROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                yield folder, *names


# --- Checking settings -----------------------------------------------------------------------------------------------

Function = TypeVar("Function", bound=Callable[..., Any])


def checked(function: Function) -> Function:
    """The function, its arguments checked at every call against the ranges in its annotations.

    Arguments come to it as the annotated type: a NumPy whole number as int, a list as the tuple that is asked for.
    Raises SettingError, with the parameter's name, for one out of its range.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # which says what is missing
        hints = _ranged(function)
        for name in bound.arguments.keys() & hints.keys():
            bound.arguments[name] = check(name, bound.arguments[name], hints[name])
        return function(*bound.args, **bound.kwargs)

    return cast(Function, wrapper)


def check_settings(settings: Any) -> None:
    """:func:`checked` for a dataclass: to be called in ``__post_init__``, also of subclasses that add fields."""
    hints = _ranged(cast(Hashable, type(settings)))
    for field in fields(settings):
        if field.name in hints:
            value = getattr(settings, field.name)
            fit = check(field.name, value, hints[field.name])
            if fit is not value:
                object.__setattr__(settings, field.name, fit)


def check(name: str, value: Any, annotation: Any) -> Any:
    """``value`` as ``annotation`` has it. Raises SettingError, with the name, where it is out of range."""
    try:
        return _adapter(annotation).validate_python(value)
    except ValidationError:
        said = describe(annotation)
        sentence = f"{name} must be {said}, not {shortened(value)}" if said else f"{name} cannot be {shortened(value)}"
        raise SettingError(sentence, name) from None


def describe(annotation: Any) -> str:
    """A range in words: ``from 1 to 8192``, ``1 or more``, ``above 0``; what holds for each of several values."""
    spoken = dict.fromkeys(_describe_one(base, info) for base, info in _ranges(annotation))
    said = " or ".join(spoken)
    return f"{said} (or left out)" if NoneType in get_args(annotation) else said


def _describe_one(base: Any, info: FieldInfo) -> str:
    least: tuple[str, Any] | None = None
    most: tuple[str, Any] | None = None
    for limit in info.metadata:
        for key in ("ge", "gt", "min_length"):
            if getattr(limit, key, None) is not None:
                least = key, getattr(limit, key)
        for key in ("le", "lt", "max_length"):
            if getattr(limit, key, None) is not None:
                most = key, getattr(limit, key)
    if base is str:
        return f"a text of {least[1] if least else 0} to {most[1] if most else '…'} characters"
    kind = "a whole number " if base is int else "a number "
    if least and most and least[0] == "ge" and most[0] == "le":
        return f"{kind}from {least[1]} to {most[1]:.12g}"
    words = {"ge": "of {:.12g} or more", "gt": "above {:.12g}", "le": "of at most {:.12g}", "lt": "below {:.12g}"}
    return kind + " and ".join(words[limit[0]].format(limit[1]) for limit in (least, most) if limit)


def shortened(value: object) -> str:
    """A value in a few words, for messages."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    try:
        return short.repr(value)
    except ValueError:  # Python writes no whole numbers of more than 4300 digits
        return "a number of thousands of digits"


@functools.cache
def _ranged(owner: Any) -> dict[str, Any]:
    """The annotations of a function or class that hold a range."""
    hints = get_type_hints(owner, include_extras=True)
    return {name: hint for name, hint in hints.items() if name != "return" and any(True for _ in _ranges(hint))}


def _ranges(annotation: Any) -> Iterator[tuple[Any, FieldInfo]]:
    """The ranges in an annotation, with the type that each is of."""
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *extras = get_args(annotation)
        for extra in extras:
            if isinstance(extra, FieldInfo) and base in (int, float, str):
                yield base, extra
        yield from _ranges(base)
    elif origin in (Union, UnionType, tuple, list):
        for inner in get_args(annotation):
            yield from _ranges(inner)


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config={"allow_inf_nan": False, "arbitrary_types_allowed": True})
