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

from metamixer.data.files import require_replaceable, room_beside
from metamixer.data.unfinished import is_full, sync, sync_names, temporary_beside
from metamixer.deploy.report import report_path
from metamixer.errors import MetamixerError


@contextmanager
def artefact(path: Path) -> Iterator[Path]:
    """A path of the same name in a hidden folder beside ``path``, moved to it when the block ends well.

    A report that the block leaves beside the temporary path (:func:`~metamixer.deploy.report.report_path`) moves along.
    However the block ends, nothing else is left, and what a killed process left is deleted; the contents are on disk
    before the name is. Whatever else is written on the way, such as a converter's files, belongs into that folder too.
    An earlier export at ``path`` is replaced; a folder that is none is left alone. Raises MetamixerError where the
    place cannot be written.
    """
    for target in (path, report_path(path)):
        require_replaceable(target)
    if not path.parent.is_dir():
        raise MetamixerError(f"{path.parent}: no such folder")
    if path.is_dir() and any(path.iterdir()) and not report_path(path).is_file():
        raise MetamixerError(f"{path} is a folder that is no earlier export; name another place")
    if report_path(path).is_dir():
        raise MetamixerError(f"{report_path(path)} is a folder where the report is to be written")
    with room_beside(path) as room:
        try:
            yield room / path.name
            _move(room / path.name, path)
        except Exception:
            if is_full(room):  # what failed is not the cause
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            raise


def _move(made: Path, path: Path) -> None:
    sync(made)
    if path.is_dir():  # a folder cannot be renamed onto another one that holds something
        path.rename(made.with_name("replaced"))
    made.replace(path)
    if report_path(made).is_file():
        try:
            report_path(made).replace(report_path(path))
        except BaseException:  # no artefact without its report
            path.rename(made)
            raise
    sync_names(path.parent)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder among the system's temporary files, deleted in the end; what a killed process left there is deleted."""
    room = temporary_beside(Path(tempfile.gettempdir(), f"metamixer-{secrets.token_hex(4)}"))
    room.mkdir(mode=0o700)
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


def size_in_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size
