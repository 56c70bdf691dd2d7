"""Files on their way: temporary names, what dead processes left under them, the way to the disk, why that failed."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import time
import zlib
from contextlib import suppress
from functools import cache
from itertools import count, islice
from pathlib import Path
from threading import Lock

from safetensors import SafetensorError

_lock = Lock()
_cleared: set[Path] = set()  # folders, each looked at once: it may hold many files
_own: set[str] = set()  # names that this process was given; a folder has several names, and one may still be cleared
_numbers = count(1)


def temporary_beside(path: Path) -> Path:
    """A hidden name beside ``path`` for what is not finished yet, never given twice; what dead processes left there is
    deleted."""
    folder = path.parent.absolute()
    with _lock:
        if folder not in _cleared:
            _clear_leftovers(folder)
            _cleared.add(folder)
        name = f".{path.name}.{_machine()}-{os.getpid()}-{next(_numbers)}.part"
        _own.add(name)
    return path.with_name(name)


@cache
def _machine() -> str:
    """A short name, since processes have numbers on their own machine only and a folder may be shared by several."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _clear_leftovers(folder: Path) -> None:
    with suppress(OSError):
        for path in folder.iterdir():
            found = _LEFTOVER.fullmatch(path.name)
            if found is None or path.name in _own:
                continue
            here = found[1] == _machine()
            # This process was not given that name: its number stands for one before it, as happens in containers.
            dead = here and (int(found[2]) == os.getpid() or _is_dead(int(found[2])))
            if dead or time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


_LEFTOVER = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)(?:-\d+)?\.part")
_ABANDONED = 24 * 60 * 60  # seconds without a change, from where it cannot be asked whether a process lives


def _is_dead(process: int) -> bool:
    if os.name == "nt":  # where asking would end it
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # another user's
        return False
    return False


def sync(path: Path) -> None:
    """Have a file's contents, or all that a folder holds, on the disk. Raises OSError where that fails."""
    if not path.is_dir():
        with path.open("r+b" if os.name == "nt" else "rb") as file:  # others may have made it read-only
            os.fsync(file.fileno())
        return
    held = list(islice(path.rglob("*"), _ONE_BY_ONE + 1))
    if len(held) > _ONE_BY_ONE and hasattr(os, "sync"):
        os.sync()  # all of the machine's: a data set of 60,000 pictures would take minutes one by one
        return
    for inner in held:
        if inner.is_file():
            sync(inner)
        elif inner.is_dir():
            sync_names(inner)
    sync_names(path)


_ONE_BY_ONE = 300


def sync_names(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can be told to."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_NAMES:
            raise


# What SMB and some file systems in user space say of a folder, and what one says that may be written but not read.
_NO_NAMES = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES)


def reason_of_failed_write(error: BaseException, place: Path) -> str | None:
    """Why what lies at or below ``place`` could not be written, such as a full disk, whichever library says so; None
    for other errors, as of a file elsewhere that is missing."""
    if isinstance(error, OSError):
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
        inside = any(Path(name).absolute().is_relative_to(place.absolute()) for name in names)
        no_name = not names and (error.errno == errno.EACCES or _OF_LIBRARIES.search(str(error)) is not None)
        return (error.strerror or str(error)) if error.errno in _FULL or inside or no_name else None
    if isinstance(error, SafetensorError):
        number = re.search(r"\(os error (\d+)\)", str(error))
        return os.strerror(int(number[1])) if number and int(number[1]) in _FULL else None
    cause = error.__context__  # torch.save raises a RuntimeError while it handles the file's own
    return reason_of_failed_write(cause, place) if isinstance(cause, OSError) else None


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_OF_LIBRARIES = re.compile(r"requested and \d+ written|when writing image file")  # NumPy's and Pillow's


def is_full(folder: Path) -> bool:
    """Whether a disk has no room left, which libraries in C++ tell in their own ways, or not at all."""
    try:
        return shutil.disk_usage(folder).free < _NOTHING_LEFT
    except OSError:
        return False


_NOTHING_LEFT = 2**16  # bytes: libraries write in blocks, and what is less than one stays free
