"""WebDataset tar shards: each picture a member ``KEY.jpg`` with its class in ``KEY.cls`` or ``KEY.json``.

A shard is read once for the places of its members; after that any picture is one seek away, so that shuffling and
resuming are as exact as with single files. Shards on other machines are copied into the cache first.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import sys
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, product
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from PIL import Image

from metamixer.data.archives import members
from metamixer.data.download import Part, cache_folder, download, one_process
from metamixer.data.files import make_folder, open_regular, read_text
from metamixer.data.formats import parse_json
from metamixer.data.packed import PackedNames
from metamixer.data.pictures import EXTENSIONS, decode_picture
from metamixer.data.source import SPLIT_NAMES, Pictures, Split, require_text
from metamixer.errors import MetamixerError
from metamixer.limits import ANY_BYTES, LABEL_BYTES, MOST_CLASSES, NAMES_BYTES, PICTURE_BYTES, SHARDS
from metamixer.printing import notices

_RANGE = r"\{(\d+)\.\.(\d+)\}"
CLASSES_FILE = "classes.txt"  # beside the shards: a name a line, in the order of their indices


class _Place(NamedTuple):
    """A picture's bytes in a shard, and its class as it is written there: an index or a name."""

    shard: int
    offset: int
    size: int
    key: str
    label: int | str


class ShardPictures(Pictures):
    """Pictures in tar shards, in the order in which they lie there.

    Args:
        shards: paths or addresses of uncompressed tar files.
        classes: names in the order of their indices; by default those of ``classes.txt`` beside local shards, else the
            names that the shards hold, sorted, or the indices themselves.

    A picture without ``.cls`` and ``.json`` (with an entry ``label`` or ``cls``) belongs to the class that its folder
    in the tar file is named after.

    Raises MetamixerError for a shard that is missing, compressed, cut short or without pictures, a class that is empty
    or unknown, and an address that cannot be read.
    """

    def __init__(self, shards: Sequence[str], classes: Sequence[str] | None = None) -> None:
        self.shards = [_local(shard) for shard in shards]
        self._shards, self._offsets, self._sizes = array("i"), array("q"), array("q")
        self._keys = PackedNames()
        labels = []
        for number, shard in enumerate(self.shards):
            for place in _index(number, shard):
                self._shards.append(place.shard)
                self._offsets.append(place.offset)
                self._sizes.append(place.size)
                self._keys.append(place.key)
                labels.append(sys.intern(place.label) if isinstance(place.label, str) else place.label)
        if not labels:
            raise MetamixerError(f"{shards[0]} holds no pictures" + (", nor do the others" if len(shards) > 1 else ""))
        given = classes if classes is not None else _classes_beside(self.shards[0])
        self.classes, self.labels = number_classes(labels, given, str(shards[0]))
        if classes is None:
            require_every_class(self.classes, self.labels, str(shards[0]))

    def read(self, index: int) -> Image.Image:
        with open_regular(self.shards[self._shards[index]], ANY_BYTES, "a shard") as file:
            file.seek(self._offsets[index])
            return decode_picture(file.read(self._sizes[index]), self.name(index))

    def name(self, index: int) -> str:
        return f"{self.shards[self._shards[index]]}:{self._keys[index]}"


def find_shards(where: str, split: Split | None) -> list[str]:
    """Paths or addresses of the shards that ``where`` means (see ``open_pictures``); empty where it means none.

    Raises MetamixerError where ``where`` has shards but none of that split.
    """
    if "://" in where or where.endswith(".tar"):
        if split is not None and "{split}" not in where:
            raise MetamixerError(f"{where} must have {{split}} where its shards' names say 'train' or 'val'")
        return expand_ranges(where.replace("{split}", split or ""))
    root = Path(where)
    if not os.path.isdir(root):
        return []
    if split is None:
        return sorted(str(path) for path in root.glob("*.tar"))
    for name in SPLIT_NAMES[split]:
        found = sorted([*root.glob(f"{name}*.tar"), *root.glob(f"{name}/*.tar")])
        if found:
            return [str(path) for path in found]
    if any(root.glob("*.tar")):
        raise MetamixerError(f"{root} holds tar files, but none whose name begins with {SPLIT_NAMES[split][0]!r}")
    return []


def expand_ranges(pattern: str) -> list[str]:
    """``a-{08..10}.tar`` to ``a-08.tar``, ``a-09.tar``, ``a-10.tar``; several ranges give all their pairs.

    Raises MetamixerError for ranges that stand for more than ``SHARDS`` files.
    """
    fixed = re.split(_RANGE, pattern)[::3]
    ends = re.findall(_RANGE, pattern)
    if any(len(end) > 18 for pair in ends for end in pair) or (
        math.prod(max(0, int(last) - int(first) + 1) for first, last in ends) > SHARDS
    ):
        raise MetamixerError(f"{pattern[:200]} stands for more than {SHARDS} shards")
    ranges = [[f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)] for first, last in ends]
    return [
        "".join(part + number for part, number in zip(fixed, (*chosen, ""), strict=True)) for chosen in product(*ranges)
    ]


def number_classes(
    labels: Sequence[int | str], classes: Sequence[str] | None, where: str
) -> tuple[list[str], array[int]]:
    """Class names, and every label as an index into them.

    Labels are indices where all of them are whole numbers, else names. Raises MetamixerError for one beyond
    ``classes``.
    """
    if all(isinstance(label, int) for label in labels):
        indices = [int(label) for label in labels]
        if max(indices, default=0) >= MOST_CLASSES:
            raise MetamixerError(
                f"{where} holds class {max(indices)}; {MOST_CLASSES} classes are the most there can be"
            )
        names = [str(i) for i in range(max(indices, default=-1) + 1)] if classes is None else list(classes)
        wrong = next((i for i in indices if not 0 <= i < len(names)), None)
        if wrong is not None:
            raise MetamixerError(f"{where} holds class {wrong}, where {len(names)} classes from 0 are known")
        return names, array("i", indices)
    names = require_text(sorted({str(label) for label in labels}), where) if classes is None else list(classes)
    index = {name: i for i, name in enumerate(names)}
    unknown = next((str(label) for label in labels if str(label) not in index), None)
    if unknown is not None:
        raise MetamixerError(f"{where}: {unknown!r} is none of the {len(names)} known classes")
    return names, array("i", (index[str(label)] for label in labels))


def require_every_class(classes: Sequence[str], labels: Sequence[int], where: str) -> None:
    """Raise MetamixerError where a class has no picture."""
    missing = sorted(set(range(len(classes))) - set(labels))
    if missing:
        raise MetamixerError(f"{where}: the class {classes[missing[0]]!r} has no pictures")


def _index(number: int, shard: Path) -> Iterator[_Place]:
    """The places of a shard's pictures. Members that share a key lie together, as WebDataset has it."""
    with open_regular(shard, ANY_BYTES, "a shard") as file:
        try:
            yield from _places(number, shard, file)
        except MetamixerError:
            raise
        except tarfile.ReadError as error:
            raise MetamixerError(f"{shard} cannot be read as an uncompressed tar file ({error})") from None
        except OSError as error:
            raise MetamixerError(f"{shard} cannot be read ({error.strerror or error})") from None
        except Exception as error:  # damaged headers make tarfile raise nearly anything, MemoryError too
            reason = " ".join(str(error).split()) or type(error).__name__
            raise MetamixerError(f"{shard} cannot be read as an uncompressed tar file ({reason})") from None


def _places(number: int, shard: Path, file: BinaryIO) -> Iterator[_Place]:
    length = os.fstat(file.fileno()).st_size
    with tarfile.open(fileobj=file, mode="r:") as tar:
        named = ((member, *_key_and_kind(member.name)) for member in members(tar) if member.isreg())
        for key, group in groupby(named, key=lambda entry: entry[1]):
            kinds = {kind: member for member, _, kind in group}
            picture = next((kinds[kind] for kind in kinds if f".{kind}".endswith(EXTENSIONS)), None)
            if picture is None:
                continue
            if picture.offset_data + picture.size > length:
                raise tarfile.ReadError("it is cut short")
            if picture.size > PICTURE_BYTES:
                raise MetamixerError(f"{shard}:{picture.name} is too large for a picture")
            yield _Place(number, picture.offset_data, picture.size, picture.name, _label(tar, key, kinds, str(shard)))


def _key_and_kind(name: str) -> tuple[str, str]:
    """``a/b.seg.png`` to ``a/b`` and ``seg.png``, as WebDataset cuts names: at the base name's first dot."""
    folder, slash, base = name.rpartition("/")
    stem, _, kind = base.partition(".")
    return folder + slash + stem, kind.lower()


def _label(tar: tarfile.TarFile, key: str, kinds: dict[str, tarfile.TarInfo], where: str) -> int | str:
    def text(kind: str) -> str:
        if kinds[kind].size > LABEL_BYTES:
            raise MetamixerError(f"{where}:{kinds[kind].name} is too large")
        file = tar.extractfile(kinds[kind])
        return file.read().decode("utf-8", "replace").strip() if file else ""

    if "cls" in kinds:
        return _as_label(text("cls"), f"{where}:{key}.cls")
    if "json" in kinds:
        entries = parse_json(text("json"), f"{where}:{key}.json")
        if isinstance(entries, dict):
            label = entries.get("label", entries.get("cls"))
            if isinstance(label, int | str):
                return _as_label(str(label), f"{where}:{key}.json")
    folder = PurePosixPath(key).parent.name
    if not folder:
        raise MetamixerError(f"{where}:{key} has neither a .cls file, a label in a .json file, nor a folder")
    return folder


def _as_label(text: str, where: str) -> int | str:
    """A class index below ``MOST_CLASSES``, or a name."""
    if not text.isdecimal():
        return text
    if len(text) > 18 or int(text) >= MOST_CLASSES:
        raise MetamixerError(f"{where} holds class {text[:18]}; {MOST_CLASSES} classes are the most there can be")
    return int(text)


def _classes_beside(shard: Path) -> list[str] | None:
    for folder in (shard.parent, shard.parent.parent):
        file = folder / CLASSES_FILE
        if os.path.lexists(file):
            return read_text(file, NAMES_BYTES, "class names").splitlines()
    return None


def _local(shard: str) -> Path:
    """The shard itself, or its copy in the cache."""
    if "://" not in shard:
        return Path(shard)
    folder, _, name = shard.rpartition("/")
    place = f"shards/{hashlib.sha256(folder.encode()).hexdigest()[:16]}/{name}"
    if shard.startswith(("http://", "https://")):
        return download(shard, place)
    return _copy(shard, cache_folder() / place)


def _copy(address: str, target: Path) -> Path:
    """``address``, read through fsspec, as ``target``; a copy that broke off is gone on with."""
    if not os.path.isfile(target):
        make_folder(target.parent)
        try:
            with one_process(target):
                if not os.path.isfile(target):  # while this one waited
                    notices.warning("fetching %s", address)
                    _copy_now(address, target)
        except OSError as error:  # those of the service were caught where they arose
            raise MetamixerError(f"{target} cannot be written ({error.strerror or error})") from None
    return target


def _copy_now(address: str, target: Path) -> None:
    part = Part(target)
    with _of_a_service(address):
        import fsspec

        system, path = fsspec.core.url_to_fs(address)
        about = system.info(path)
        if about.get("type") != "file":
            raise MetamixerError(f"{address} is no file")
        size = about["size"]
    goes_on = size is not None and part.held <= size
    try:
        with part.path.open("ab" if goes_on else "wb") as file:
            for chunk in _chunks(address, system, path, file.tell()):
                file.write(chunk)
                if size is not None and file.tell() > size:
                    raise MetamixerError(f"{address} goes on after the {size} bytes that it is said to have")
    except OSError:  # a full disk stays in the way of others
        part.drop()
        raise
    if size is not None and part.held != size:
        raise MetamixerError(f"{address} broke off; run the same command again to go on with it")
    part.take_name()


def _chunks(address: str, system: Any, path: str, start: int) -> Iterator[bytes]:
    with _of_a_service(address), system.open(path, "rb") as source:
        source.seek(start)
        while chunk := source.read(1 << 20):
            yield chunk


@contextmanager
def _of_a_service(address: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:  # fsspec names the package that the protocol needs
        raise MetamixerError(f"{address} cannot be read: {' '.join(str(error).split())}") from None
    except FileNotFoundError:
        raise MetamixerError(f"{address}: no such file") from None
    except MetamixerError:
        raise
    except Exception as error:  # every service's package has errors of its own
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise MetamixerError(f"{address} could not be read ({reason})") from None
