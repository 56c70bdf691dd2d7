"""Artefacts, files or folders, that are either whole or not there."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metamixer.data.unfinished import sync, sync_names, temporary_beside
from metamixer.deploy.report import report_path
from metamixer.errors import MetamixerError

_FULL_OR_FORBIDDEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
_NOTHING_LEFT = 2**16  # bytes: libraries write in blocks, and what is less than one stays free


@contextmanager
def artefact(path: Path) -> Iterator[Path]:
    """A path of the same name in a hidden folder beside ``path``, moved to it when the block ends well.

    A report that the block leaves beside the temporary path (:func:`~metamixer.deploy.report.report_path`) moves along.
    However the block ends, nothing else is left, and what a killed process left is deleted; the contents are on disk
    before the name is. Whatever else is written on the way, such as a converter's files, belongs into that folder too.
    An earlier export at ``path`` is replaced; a folder that is none is left alone. Raises MetamixerError where the
    place cannot be written.
    """
    if not path.parent.is_dir():
        raise MetamixerError(f"{path.parent}: no such folder")
    if path.is_dir() and any(path.iterdir()) and not report_path(path).is_file():
        raise MetamixerError(f"{path} is a folder that is no earlier export; name another place")
    if report_path(path).is_dir():
        raise MetamixerError(f"{report_path(path)} is a folder where the report is to be written")
    room = temporary_beside(path)
    try:
        room.mkdir()
        yield room / path.name
        sync(room / path.name)
        if path.is_dir():  # a folder cannot be renamed onto another one that holds something
            path.rename(room / "replaced")
        (room / path.name).replace(path)
        if report_path(room / path.name).is_file():
            try:
                report_path(room / path.name).replace(report_path(path))
            except BaseException:  # no artefact without its report
                path.rename(room / path.name)
                raise
        sync_names(path.parent)
    except Exception as error:
        if isinstance(error, OSError) and tells_of_place(error, path.parent):
            raise MetamixerError(f"{path} cannot be written ({error.strerror or error})") from None
        if _is_full(room):  # which libraries in C++ tell in their own ways, or not at all
            raise MetamixerError(f"{path} cannot be written ({os.strerror(errno.ENOSPC)})") from None
        raise
    finally:
        shutil.rmtree(room, ignore_errors=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder among the system's temporary files, deleted in the end; what a killed process left there is deleted."""
    room = temporary_beside(Path(tempfile.gettempdir(), f"metamixer-{secrets.token_hex(4)}"))
    room.mkdir(mode=0o700)
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


def tells_of_place(error: OSError, folder: Path) -> bool:
    """Whether an error means that something below a folder cannot be written, and not that another file is missing."""
    if isinstance(error.filename, (str, bytes)):
        return Path(os.fsdecode(error.filename)).absolute().is_relative_to(folder.absolute())
    return error.errno in _FULL_OR_FORBIDDEN


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _NOTHING_LEFT
    except OSError:
        return False


def size_in_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size
