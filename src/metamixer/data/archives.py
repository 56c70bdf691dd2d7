"""Reading tar and zip archives that come from elsewhere."""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from metamixer.data.files import open_regular
from metamixer.errors import MetamixerError
from metamixer.limits import ANY_BYTES

LARGEST_MEMBER = 1 << 30  # bytes; no picture or table comes near it, a decompression bomb does


def read_archive(
    path: str | Path, wanted: Callable[[PurePosixPath], bool] = lambda name: True
) -> Iterator[tuple[PurePosixPath, bytes]]:
    """The regular files of a tar (of any compression) or zip archive: names and contents, in their order.

    Nothing is written. Names are relative and stay below the folder in which they are put.

    Args:
        path: the archive.
        wanted: which names to read.

    Raises MetamixerError, naming the member, for a name that leads elsewhere, a link or device, and an encrypted or
    huge one; and for a damaged archive.
    """
    try:
        with open_regular(path, ANY_BYTES, "an archive") as file:
            yield from (_zip if zipfile.is_zipfile(file) else _tar)(path, file, wanted)
    except MetamixerError:
        raise
    except MemoryError:  # a header asks for more than there is
        raise MetamixerError(f"{path} is a damaged archive (it asks for more memory than there is)") from None
    except Exception as error:  # damaged headers make tarfile, zipfile and the decompressors raise nearly anything
        raise MetamixerError(f"{path} is a damaged archive ({' '.join(str(error).split())})") from None


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file. Raises tarfile.ReadError for headers by which it would be read from where it was read
    already (and so for ever), and for sizes that no file has."""
    last = -1
    for member in tar:
        if member.offset <= last or member.size < 0:
            raise tarfile.ReadError("its headers lead back to where they come from")
        last = member.offset
        yield member


def require_stored(file: BinaryIO, name: str) -> None:
    """Raise MetamixerError where a ZIP file's parts grow when they are read: ``torch.save`` compresses nothing, so one
    that is compressed was made to fill the memory. What is no ZIP file passes."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                raise MetamixerError(f"{name} is compressed, which no file of torch.save is")
            if sum(part.file_size for part in parts) > file.seek(0, os.SEEK_END):
                raise MetamixerError(f"{name} has parts that overlap, which no file of torch.save has")
    file.seek(0)


def _tar(
    path: str | Path, file: BinaryIO, wanted: Callable[[PurePosixPath], bool]
) -> Iterator[tuple[PurePosixPath, bytes]]:
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:*") as tar:
        for member in members(tar):
            if member.isdir():
                continue
            name = _safe(path, member.name)
            if not member.isreg():
                raise MetamixerError(f"{path} holds a link or device, {member.name!r}, which is not unpacked")
            if wanted(name):
                _require_usual_size(path, member.name, member.size)
                opened = tar.extractfile(member)
                yield name, opened.read() if opened else b""


def _zip(
    path: str | Path, file: BinaryIO, wanted: Callable[[PurePosixPath], bool]
) -> Iterator[tuple[PurePosixPath, bytes]]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            name = _safe(path, member.filename)
            kind = member.external_attr >> 28  # the upper bits of a Unix mode; 8 is a regular file, 0 unknown
            if kind not in (0, 8):
                raise MetamixerError(f"{path} holds a link or device, {member.filename!r}, which is not unpacked")
            if member.flag_bits & 1:
                raise MetamixerError(f"{path} holds an encrypted file, {member.filename!r}")
            if wanted(name):
                _require_usual_size(path, member.filename, member.file_size)
                yield name, archive.read(member)


def _safe(path: str | Path, name: str) -> PurePosixPath:
    """The name as a path. Backslashes and drives count too, so that it is safe on Windows."""
    parts = name.replace("\\", "/").split("/")
    if not name or parts[0] == "" or ":" in parts[0] or ".." in parts or "\0" in name:
        raise MetamixerError(f"{path} holds a file that would be written elsewhere, {name!r}")
    return PurePosixPath(*parts)


def _require_usual_size(path: str | Path, name: str, size: int) -> None:
    if size > LARGEST_MEMBER:
        raise MetamixerError(f"{path} holds a file of {size} bytes, {name!r}, which is too large to be meant")
