"""JSON, YAML, XML and lists of arrays that come from elsewhere: parsed within bounds, never more than they say.

What a parser would do without end, or with all memory, is refused here once: values that are repeated by reference
(YAML's aliases, XML's entities), nesting without end, whole numbers of thousands of digits, arrays larger than their
file.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
import yaml
from numpy.typing import NDArray

from metamixer.data.files import open_regular, read_regular, read_text
from metamixer.errors import MetamixerError
from metamixer.limits import (
    CLOUD_BYTES,
    CONFIG_BYTES,
    LABEL_BYTES,
    LINE_CHARACTERS,
    NESTING,
    YAML_BYTES,
    YAML_VALUES,
    in_words,
    require_memory,
)


def read_json(path: str | Path, at_most: int = CONFIG_BYTES, what: str = "JSON") -> Any:
    """What a JSON file holds. Raises MetamixerError for what :func:`read_regular` refuses and for what is no JSON."""
    return parse_json(read_regular(path, at_most, what), str(path), what)


def parse_json(data: str | bytes, name: str, what: str = "JSON") -> Any:
    """What JSON text holds; ``name`` is what the sentence of an error calls it. Raises MetamixerError."""
    try:
        return json.loads(data)
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:  # no UTF-8 and numbers of too many digits are such, too
        reason = _one_line(error)
    raise MetamixerError(f"{name} cannot be read as {what} ({reason})")


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds: mappings, lists and texts, no numbers or dates, which would be guesses.

    Raises MetamixerError for what :func:`read_text` refuses, for what is no YAML, for aliases that stand for more than
    ``YAML_VALUES`` values (a few of them can mean a billion), and for nesting beyond ``NESTING`` levels.
    """
    text = read_text(path, YAML_BYTES, "YAML")
    try:
        return yaml.load(text, _PlainLoader)
    except (ValueError, yaml.YAMLError) as error:
        raise MetamixerError(f"{path} cannot be read as YAML ({_one_line(error)})") from None


class _PlainLoader(yaml.BaseLoader):
    depth = 0
    values = 0  # so far, those that aliases repeat counted each time

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.values_at: dict[str, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        anchor, before = getattr(self.peek_event(), "anchor", None), self.values
        if self.check_event(yaml.AliasEvent) and anchor in self.anchors:
            self.values += self.values_at.get(str(anchor), YAML_VALUES)  # one inside what it stands for has no end
        self.values += 1
        if self.values > YAML_VALUES:
            raise yaml.YAMLError(f"its aliases such as *this stand for more than {YAML_VALUES} values")
        if self.depth >= NESTING:
            raise yaml.YAMLError(f"it is nested more than {NESTING} levels deep")
        self.depth += 1
        try:
            node = super().compose_node(parent, index)
        finally:
            self.depth -= 1
        if anchor is not None:
            self.values_at.setdefault(anchor, self.values - before)
        return node


def read_xml(path: str | Path) -> ElementTree.Element:
    """The root of an XML file. Raises MetamixerError for what :func:`read_regular` refuses, for what is no XML, for
    definitions of entities (a few of them can mean a billion letters), and for nesting beyond ``NESTING`` levels."""
    data = read_regular(path, LABEL_BYTES, "XML")
    builder, parser, depth = ElementTree.TreeBuilder(), expat.ParserCreate(), 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > NESTING:
            raise ValueError(f"it is nested more than {NESTING} levels deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def entity(*_: object) -> None:
        raise ValueError("definitions of entities are not read")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = builder.data, entity
    try:
        parser.Parse(data, True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError) as error:  # LookupError: unknown encoding
        raise MetamixerError(f"{path} cannot be read as XML ({_one_line(error)})") from None


def short_lines(file: TextIO, name: str, at_most: int) -> Iterator[str]:
    """The lines of an open text, read one by one: one without an end is no line, nor is a text without one.

    Args:
        file: text, perhaps decompressed while it is read.
        name: what the sentence of an error calls it.
        at_most: characters of all lines.

    Raises MetamixerError for a line of more than ``LINE_CHARACTERS``, and for more than ``at_most`` in all.
    """
    while line := file.readline(LINE_CHARACTERS + 1):
        at_most -= len(line)
        if len(line) > LINE_CHARACTERS:
            raise MetamixerError(f"{name} has a line of more than {LINE_CHARACTERS} characters")
        if at_most < 0:
            raise MetamixerError(f"{name} is too large when unpacked")
        yield line


# --- NumPy's files ---------------------------------------------------------------------------------------------------


def read_npy(path: str | Path) -> NDArray:
    """The array of an ``.npy`` file; nothing in it is run.

    Raises MetamixerError for what :func:`open_regular` refuses, for what is no array of numbers, and for a header that
    states more numbers than the file holds or memory has room for.
    """
    with open_regular(path, CLOUD_BYTES, "a NumPy array") as file:
        size = file.seek(0, 2)
        file.seek(0)
        return _in_one_sentence(str(path), lambda: _array(file, size))


def read_npz(path: str | Path, wanted: Callable[[str], bool]) -> dict[str, NDArray]:
    """Those arrays of an ``.npz`` file whose names are wanted. Raises as :func:`read_npy`, by the array's name."""

    def read() -> dict[str, NDArray]:
        with zipfile.ZipFile(file) as archive:
            found = {}
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if not wanted(name):
                    continue
                if name == member.filename:
                    raise ValueError(f"its part {name} is no array")
                with archive.open(member) as opened:
                    found[name] = _array(opened, member.file_size)  # type: ignore[arg-type]
            return found

    with open_regular(path, CLOUD_BYTES, "a NumPy archive") as file:
        return _in_one_sentence(str(path), read)


def names_in_npz(path: str | Path) -> list[str]:
    """The names of the arrays in an ``.npz`` file, none of them read. Raises as :func:`read_npz`."""

    def read() -> list[str]:
        with zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]

    with open_regular(path, CLOUD_BYTES, "a NumPy archive") as file:
        return _in_one_sentence(str(path), read)


def _array(file: BinaryIO, size: int) -> NDArray:
    """The array at the beginning of a file of ``size`` bytes, its header checked before anything is taken for it."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of NumPy's format")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_column, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("Python objects are not read")
    needed, left = math.prod(shape) * dtype.itemsize, size - file.tell()
    if needed > left:
        raise ValueError(f"its header states {in_words(needed)}, {in_words(left)} follow")
    require_memory(needed, f"an array of {' × '.join(map(str, shape))}")
    data, filled = bytearray(needed), 0
    while filled < needed and (got := file.readinto(memoryview(data)[filled:])):  # type: ignore[attr-defined]
        filled += got
    if filled < needed:
        raise ValueError("it is cut short")
    return np.ndarray(shape, dtype, data, order="F" if by_column else "C")


def _in_one_sentence(name: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except MetamixerError as error:
        raise MetamixerError(str(error) if str(error).startswith(name) else f"{name}: {error}") from None
    except Exception as error:  # damaged bytes make decompression and parsing raise nearly anything
        raise MetamixerError(f"{name} cannot be read as NumPy arrays ({_one_line(error)})") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160].rstrip(".") or type(error).__name__
