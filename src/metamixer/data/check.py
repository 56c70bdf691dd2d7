"""Look through a folder of pictures for what would stop a training or spoil it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

from torch.utils.data import Dataset

from metamixer.data.annotations import find_problems
from metamixer.data.annotations.class_maps import locate
from metamixer.data.annotations.find import SPLITS, find_formats
from metamixer.data.files import walk
from metamixer.data.image_folder import class_folders, split_of
from metamixer.data.pictures import decode_picture, pictures_below, read_bytes
from metamixer.data.reading import Reader
from metamixer.data.source import SPLIT_NAMES
from metamixer.errors import MetamixerError
from metamixer.limits import Workers, checked
from metamixer.printing import progress

IMBALANCE = 10  # the largest class of a split is noted from so many times the smallest on
SMALL = 16  # pixels: a shorter side below it is noted


Group = tuple[str, ...]  # paths of files that are the same, or names of classes


@dataclass
class CheckReport:
    """What ``check_folder`` found. Paths are relative to the folder, splits named after their sub-folders.

    Problems, which stop or spoil a training:

    Attributes:
        corrupt: what is wrong with each picture that cannot be read to its end.
        empty_classes: class folders without pictures.
        unknown_classes: classes of a validation split that the training split has not got.
        too_few_classes: splits with fewer than two classes, where it is the training split.
        leaks: the same picture in two splits.
        contradictions: the same picture in two classes of a split.
        similar_classes: classes whose names differ in nothing but upper and lower case.
        annotations: bad entries of boxes, masks or class maps, in folders that have such.

    Notes, which may be meant:

    Attributes:
        same_bytes: copies of a file within a class.
        same_pixels: files within a class that differ, but whose pictures do not.
        imbalance: for each split the largest class divided by the smallest, from ``IMBALANCE`` on.
        small: pictures whose shorter side has less than ``SMALL`` pixels.
        not_pictures: files that are left out because their name has no picture's ending.
        similar_files: files of a class whose names differ in nothing but case; some systems keep only one of them.

    Figures:

    Attributes:
        counts: pictures that can be read, by split and class.
        sizes: pictures by "width × height", the commonest first.
        shortest, longest: sides in pixels.
        bytes: of all picture files.
    """

    folder: str
    corrupt: list[str] = field(default_factory=list)
    empty_classes: list[str] = field(default_factory=list)
    unknown_classes: list[str] = field(default_factory=list)
    too_few_classes: list[str] = field(default_factory=list)
    leaks: list[Group] = field(default_factory=list)
    contradictions: list[Group] = field(default_factory=list)
    similar_classes: list[Group] = field(default_factory=list)
    annotations: list[str] = field(default_factory=list)
    same_bytes: list[Group] = field(default_factory=list)
    same_pixels: list[Group] = field(default_factory=list)
    imbalance: dict[str, float] = field(default_factory=dict)
    small: list[str] = field(default_factory=list)
    not_pictures: list[str] = field(default_factory=list)
    similar_files: list[Group] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    shortest: int = 0
    longest: int = 0
    bytes: int = 0

    PROBLEMS: ClassVar[dict[str, str]] = {
        "corrupt": "corrupt pictures",
        "empty_classes": "classes without pictures",
        "unknown_classes": "classes that are not in train",
        "too_few_classes": "training splits of fewer than two classes",
        "leaks": "pictures in two splits",
        "contradictions": "pictures in two classes",
        "similar_classes": "classes that differ in case only",
        "annotations": "bad annotations",
    }
    NOTES: ClassVar[dict[str, str]] = {
        "same_bytes": "copies of a file in a class",
        "same_pixels": "files of the same pixels in a class",
        "imbalance": f"splits with a class {IMBALANCE} times as large as another",
        "small": f"pictures of less than {SMALL} pixels",
        "not_pictures": "files that are no pictures",
        "similar_files": "file names that differ in case only",
    }

    @property
    def ok(self) -> bool:
        """Nothing would stop or spoil a training."""
        return not any(getattr(self, name) for name in self.PROBLEMS)


class _File(NamedTuple):
    """A picture file's place, and what was seen in it; ``error`` is set where it could not be read."""

    path: str
    split: str = ""
    class_name: str = ""
    error: str = ""
    length: int = 0
    digest: bytes = b""
    pixels: bytes = b""
    size: tuple[int, int] = (0, 0)


@checked
def check_folder(folder: str | Path, workers: Workers = 0) -> CheckReport:
    """Read every picture of ``folder`` to its end, and compare them all or look into their annotations.

    Args:
        folder: ``CLASS/*.jpg``, or such folders as ``train``, ``val``, ``validation`` and ``test``; or pictures with
            boxes, masks or class maps, in a layout of :mod:`metamixer.data.annotations`.
        workers: processes that read; 0 for this one alone.

    Raises MetamixerError where the folder is missing, or has neither class folders nor annotations.
    """
    folder = Path(folder)
    report = CheckReport(str(folder))
    if _is_annotated(folder):
        files = [_File(_relative(path, folder)) for path in pictures_below(folder)]
        _measure(report, _sound(report, _read_all(folder, files, workers)))
        report.annotations = [str(problem) for problem in find_problems(folder)]
        return report
    splits = _splits(folder)
    todo: list[_File] = []
    for split, root in splits.items():
        classes = class_folders(root)
        report.counts[split] = dict.fromkeys(classes, 0)
        report.similar_classes += _same(classes, str.lower)
        pictures = pictures_below(root)
        known = set(pictures)
        report.not_pictures += [_relative(path, folder) for path in _files_below(root) if path not in known]
        places = [(path, path.relative_to(root).parts) for path in pictures]
        todo += [_File(_relative(path, folder), split, parts[0]) for path, parts in places if len(parts) > 1]
    sound = _sound(report, _read_all(folder, todo, workers))
    for file in sound:
        report.counts[file.split][file.class_name] += 1
    _measure(report, sound)
    _compare(report, sound)
    _judge_classes(report)
    return report


def _is_annotated(folder: Path) -> bool:
    """Whether there are boxes, masks or class maps beside the pictures."""
    return any(locate(folder, names) for names in (*SPLITS.values(), ())) or bool(find_formats(folder))


def _splits(folder: Path) -> dict[str, Path]:
    """The splits' folders by name; the folder itself, under an empty name, where it holds classes."""
    if not class_folders(folder):
        raise MetamixerError(f"{folder} holds no class folders; pictures are expected as {folder}/CLASS/NAME.jpg")
    names = [name for names in SPLIT_NAMES.values() for name in names if split_of(folder, (name,))]
    return {name: folder / name for name in names} or {"": folder}


def _files_below(root: Path) -> Iterable[Path]:
    for parent, names in walk(root):
        yield from (parent / name for name in names if not name.startswith("."))


def _read_all(folder: Path, files: list[_File], workers: int) -> list[_File]:
    loader = Reader(_Files(folder, files), batch_size=32, num_workers=workers, collate_fn=list)
    return [file for batch in progress(loader, "reading") for file in batch]


class _Files(Dataset[_File]):
    def __init__(self, folder: Path, files: list[_File]) -> None:
        self.folder = folder
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> _File:
        file = self.files[index]
        try:
            data = read_bytes(self.folder / file.path)
            picture = decode_picture(data, file.path)
        except MetamixerError as error:
            return file._replace(error=str(error))
        size = picture.size
        pixels = hashlib.blake2b(repr(size).encode() + picture.tobytes(), digest_size=16).digest()
        digest = hashlib.blake2b(data, digest_size=16).digest()
        return file._replace(length=len(data), digest=digest, pixels=pixels, size=size)


def _sound(report: CheckReport, files: list[_File]) -> list[_File]:
    """The files that can be read; the others are reported."""
    report.corrupt = [file.error for file in files if file.error]
    return [file for file in files if not file.error]


def _measure(report: CheckReport, files: list[_File]) -> None:
    sizes = Counter(f"{width} × {height}" for width, height in (file.size for file in files))
    report.sizes = dict(sizes.most_common())
    report.small = [file.path for file in files if min(file.size) < SMALL]
    report.shortest = min((min(file.size) for file in files), default=0)
    report.longest = max((max(file.size) for file in files), default=0)
    report.bytes = sum(file.length for file in files)


def _compare(report: CheckReport, files: list[_File]) -> None:
    """Pictures are the same where all their pixels are."""
    by_pixels: defaultdict[bytes, list[_File]] = defaultdict(list)
    for file in files:
        by_pixels[file.pixels].append(file)
    for same in (group for group in by_pixels.values() if len(group) > 1):
        if len({file.split for file in same}) > 1:
            report.leaks.append(tuple(file.path for file in same))
        by_class: defaultdict[tuple[str, str], list[_File]] = defaultdict(list)
        for file in same:
            by_class[file.split, file.class_name].append(file)
        for split in {file.split for file in same}:
            classes = [group for (name, _), group in by_class.items() if name == split]
            if len(classes) > 1:
                report.contradictions.append(tuple(file.path for group in classes for file in group))
        for group in by_class.values():
            report.same_bytes += [
                tuple(file.path for file in copies) for copies in _same(group, lambda file: file.digest)
            ]
            distinct = {file.digest: file.path for file in reversed(group)}
            if len(distinct) > 1:
                report.same_pixels.append(tuple(reversed(distinct.values())))
    by_class_folder: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for file in files:
        by_class_folder[file.split, file.class_name].append(file.path)
    for paths in by_class_folder.values():
        report.similar_files += _same(paths, str.lower)


def _judge_classes(report: CheckReport) -> None:
    training = report.counts.get("train", report.counts.get(""))
    for split, counts in report.counts.items():
        at = f"{split}/" if split else ""
        report.empty_classes += [f"{at}{name}" for name, count in counts.items() if count == 0]
        filled = [count for count in counts.values() if count]
        if counts is training and len(filled) < 2:
            report.too_few_classes.append(split or report.folder)
        if filled and max(filled) >= IMBALANCE * min(filled):
            report.imbalance[split] = max(filled) / min(filled)
        if training is not None:
            report.unknown_classes += [f"{at}{name}" for name in counts if name not in training]


Item = TypeVar("Item")


def _same(items: Iterable[Item], key: Callable[[Item], object]) -> list[tuple[Item, ...]]:
    """The groups of two or more that have the same key."""
    groups: defaultdict[object, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
